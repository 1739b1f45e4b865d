// Depthwise convolution of channels-first 16-bit data with filters of many rows, on the tensor cores.
//
// The products are those of depthwise_toeplitz.cu: rows are column blocks of several images, the filter row r is a
// banded Toeplitz matrix. Here neither the filter nor all sums that an input row feeds fit in registers: Warp: one
// channel, 16 * TILES column blocks, OUTPUTS output rows, whose sums stay in registers. Every input row that
//        reaches them goes by once, in a ring of chunks as there; each feeds up to OUTPUTS rows through OUTPUTS bands.
// Block: kToeplitzWarps warps and one copy of the bands in shared memory, laid out as lanes read them: 8 bytes a lane.
//        TILES products share what is read; two make the tensor cores and not shared memory the limit.
// Traffic: x (OUTPUTS + rows of the filter - 1) / OUTPUTS times from the second-level cache, less at the borders; once
//        from memory, as the bands of one image follow each other.
// Non-finite inputs: as in depthwise_toeplitz.cu, by bands of OUTPUTS rows.
// Limits: stride 1, column stride 1 in x and y.
#include "toeplitz.cuh"

template <class X, class BIAS, class Y, int OUTPUTS, int TILES, int STEPS, int VECTOR, int COPIES, int Y_VECTOR,
          int STAGES, bool RESIDUAL, int ACT, int MIN_BLOCKS>
__global__ void __launch_bounds__(kToeplitzWarps * 32, MIN_BLOCKS)
    depthwise_toeplitz_tall(const X* x, const X* w, const BIAS* bias, const Y* residual, const int32*, const int32*,
                            Y* y, void*, const DepthwiseToeplitzParams p) {
    static_assert(sizeof(X) == 2, "the products take 16-bit elements");
    static_assert(VECTOR == 1 || VECTOR == 2 || VECTOR == 4, "wider copies would need a lead of up to 7 zero columns");
    static_assert(STAGES >= 2, "one chunk is computed while another one arrives");
    constexpr int kInputs = 4;  // rows of a chunk
    constexpr uint32 kRowOfBands = STEPS * 32 * 8;
    extern __shared__ __align__(16) unsigned char shared[];

    const int32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int32 channel = blockIdx.x;
    int32 group = (int32(blockIdx.y) * kToeplitzWarps + warp) * p.groups_per_warp;
    const int32 last_group = min_of(group + p.groups_per_warp, p.groups);
    const X* const image = x + p.x_offset(channel);

    const uint32 bands = shared_address(shared);
    const uint32 row_bytes = p.per_group * p.stream_pitch, stage_bytes = kInputs * row_bytes;
    const uint32 ring = bands + p.filter[0] * kRowOfBands + warp * STAGES * stage_bytes;
    const uint32 last_slot = (STAGES - 1) * stage_bytes;
    for (uint32 i = lane * 16; i < STAGES * stage_bytes; i += 512) shared_store_16(ring + i, {0, 0, 0, 0});
    __syncwarp();

    // A group is one band of per_group images; the bands of an image follow each other.
    auto stream_of = [&](int32 group, int32 s) {
        const int32 index = group / p.bands * p.per_group + s;
        return ToeplitzStream(index, group % p.bands * p.band, index < p.streams);
    };
    // Rows of x that reach a group: [first, end), at least one chunk.
    auto first_of = [&](int32 group) { return max_of(group % p.bands * p.band - p.padding[0], 0); };
    auto end_of = [&](int32 group) {
        return min_of(group % p.bands * p.band + p.band - 1 + p.filter[0] - p.padding[0], p.in[0]);
    };
    auto chunks_of = [&](int32 group) { return max_of(ceil_div(end_of(group) - first_of(group), kInputs), 1); };

    const int32 window = int32(blockIdx.z) * p.blocks * 8 - p.padding[1] - p.lead;
    ToeplitzCopies<X, VECTOR, COPIES, kInputs> copies(p, ring, lane, window, (p.blocks - 1) * 8 + STEPS * 16);
    int32 copy_group = group, copy_left = 0;
    auto copy_next = [&](uint32 slot) {
        if (copy_group < last_group) {
            if (copy_left == 0) {
                copy_left = chunks_of(copy_group);
                copies.aim(
                    p, image, [&](int32 s) { return stream_of(copy_group, s); },
                    [&](const ToeplitzStream&) { return first_of(copy_group); });
            }
            copies.copy(p, slot, row_bytes);
            if (--copy_left == 0) copy_group++;
        }
        copy_commit();
    };
#pragma unroll 1
    for (int s = 0; s < STAGES - 1; s++) copy_next(s * stage_bytes);

    for (int32 i = threadIdx.x; i < p.filter[0] * STEPS * 32; i += kToeplitzWarps * 32) {
        const int32 r = i / (STEPS * 32), tap = i / 32 % STEPS * 16 + 2 * t - g - p.lead;
        const X* row = w + p.w_offset(channel) + r * p.w_row;
        shared_store_8(bands + i * 8, band_word(row, p.w_column, tap, p.filter[1]),
                       band_word(row, p.w_column, tap + 8, p.filter[1]));
    }
    __syncthreads();
    const float start = bias ? fetch<float>(bias + channel) : 0.0f;
    const Epilogue<ACT, float> epilogue(p.alpha, p.beta);

    uint32 line[TILES];  // the line of a fragment that this lane names: one unit, low or high half of the k axis
#pragma unroll
    for (int m = 0; m < TILES; m++) {
        int32 unit = lane % 16 + 16 * m;
        if (unit >= p.per_group * p.blocks) unit = 0;
        const int32 stream = unit * p.reciprocal >> 16;
        line[m] = ring + stream * p.stream_pitch + (unit - stream * p.blocks) * 16 + lane / 16 * 16;
    }

    uint32 slot = 0;
    for (; group < last_group; group++) {
        float sum[OUTPUTS][TILES][2][2];  // output row; tile; unit g or g + 8; column
#pragma unroll
        for (int e = 0; e < OUTPUTS * TILES * 4; e++) sum[e / (TILES * 4)][e / 4 % TILES][e / 2 % 2][e % 2] = start;
        const int32 end = end_of(group);
        int32 tap = first_of(group) + p.padding[0] - group % p.bands * p.band;  // row of the filter for output row 0
        int32 row = first_of(group);
        for (int32 left = chunks_of(group); left > 0; left--) {
            copy_wait<STAGES - 2>();
            __syncwarp();  // this chunk is there, and all lanes are done with the one that is overwritten next
            copy_next(slot == 0 ? last_slot : slot - stage_bytes);
#pragma unroll 1
            for (int i = 0; i < kInputs && row < end; i++, row++, tap++) {
                uint32 a[TILES][STEPS][4];
#pragma unroll
                for (int m = 0; m < TILES; m++) {
#pragma unroll
                    for (int k = 0; k < STEPS; k++) ldmatrix_x4(a[m][k], line[m] + slot + i * row_bytes + 32 * k);
                }
                const uint32 band = bands + tap * kRowOfBands + lane * 8;
#pragma unroll
                for (int o = 0; o < OUTPUTS; o++) {
                    if (uint32(tap - o) >= uint32(p.filter[0])) continue;
#pragma unroll
                    for (int k = 0; k < STEPS; k++) {
                        uint32 b[2];
                        shared_load_8(b, band - o * kRowOfBands + k * 256);
#pragma unroll
                        for (int m = 0; m < TILES; m++) mma<X, X>(sum[o][m][0], sum[o][m][1], a[m][k], b[0], b[1]);
                    }
                }
            }
            slot = slot == last_slot ? 0 : slot + stage_bytes;
        }

        float probe = 0.0f;
#pragma unroll
        for (int e = 0; e < OUTPUTS * TILES * 2; e++) {
            probe = fmaf(0.0f, sum[e / (TILES * 2)][e / 2 % TILES][e % 2][0], probe);
        }
        if (__any_sync(0xffffffffu, probe != probe)) {
            exact_rows<X, Y, 2 * TILES, 1, RESIDUAL>(p, x, w, residual, y, opaque(channel), 0, OUTPUTS, start, epilogue,
                                                     [&](int32 s) { return stream_of(group, s); });
            continue;
        }
#pragma unroll
        for (int half = 0; half < 2 * TILES; half++) {
            const ToeplitzUnit unit(p, g + 8 * half);
            const ToeplitzStream stream = stream_of(group, unit.stream);
            const int32 column = unit.column + 2 * t, rows = column < p.out[1] ? unit.rows(p, stream) : 0;
            Y* to = y + p.y_offset(channel) + stream.image * p.y_image + int64(stream.first_row) * p.y_row + column;
            const Y* extra = residual;
            if constexpr (RESIDUAL) {
                extra += p.residual_offset(channel) + stream.image * p.residual_image +
                         int64(stream.first_row) * p.residual_row + column;
            }
#pragma unroll
            for (int o = 0; o < OUTPUTS; o++) {
                const int32 exist = o < rows ? p.out[1] - column : 0;
                finish_pair<Y, Y_VECTOR, RESIDUAL>(sum[o][half / 2][half % 2], extra, to, exist, epilogue);
                to += p.y_row;
                if constexpr (RESIDUAL) extra += p.residual_row;
            }
        }
    }
}
