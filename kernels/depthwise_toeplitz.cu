// Depthwise convolution of channels-first 16-bit data on the tensor cores: rows of x times banded Toeplitz matrices.
//
// Eight neighbouring outputs of a row are a product with the filter row r as an 8-column band:
//     y[8b + n] = sum over k of x[STRIDE * 8b - left + k] * T_r[k][n],   T_r[k][n] = w[r][k - STRIDE * n - lead].
// `left` = padding + lead keeps every 8-column window of x on an aligned address; lead < VECTOR zeros pay for that.
//
// Warp: one channel. A product has 16 rows: the `blocks` column blocks of `per_group` streams, a stream being a band of
//        output rows of one image. The warp walks down its streams in step. An input row is read once from shared
//        memory and feeds ROWS / STRIDE output rows, whose sums rotate through registers; T stays in registers
//        throughout. Then it goes on to the next group of streams. Warps share nothing, so there is no barrier.
// Lane: in sums, two neighbouring columns of two column blocks: eight lanes store one row of 4-byte words side by side.
// Shared memory: per warp a ring of STAGES chunks of rows, filled by asynchronous copies of VECTOR columns (VECTOR = 1:
//        plain loads, for rows that no 4-byte address fits). Columns in the padding are zeroed once.
// Traffic: x once plus ROWS - STRIDE rows per band, y and residual once, w once per warp (from the caches).
// Non-finite inputs: zeros of the band times Inf reach all 8 columns of a block, so that each of them betrays it.
//        One in two is looked at (half an instruction per output); a chunk with any is computed again without the band.
// One spatial axis: the images are the rows of one image, or (few images) the strips of a row are the rows.
// Limits: column stride 1 in x and y; an image is shorter than 2^31 elements from its first to its last row.
#include "toeplitz.cuh"

// How a warp walks down: an input row feeds output rows `kLive - 1` back to 0; a chunk is unrolled, so that the
// rotation of the sums costs nothing, and is the unit of staging.
template <int ROWS, int STRIDE, int REPEATS>
struct ToeplitzWalk {
    static constexpr int kLive = ceil_div(ROWS, STRIDE);
    static constexpr int kOutputs = kLive * REPEATS;
    static constexpr int kInputs = kOutputs * STRIDE;
    static constexpr int kLastPhase =
        (ROWS - 1) % STRIDE;  // after this row of a step its oldest output row is complete
};

// STRIPS: rows of x and y are strips of one row.
template <class X, class BIAS, class Y, int ROWS, int STRIDE, int REPEATS, int STEPS, int VECTOR, int COPIES,
          int Y_VECTOR, int STAGES, bool STRIPS, bool RESIDUAL, int ACT, int MIN_BLOCKS>
__global__ void __launch_bounds__(kToeplitzWarps * 32, MIN_BLOCKS)
    depthwise_toeplitz(const X* x, const X* w, const BIAS* bias, const Y* residual, const int32*, const int32*, Y* y,
                       void*, const DepthwiseToeplitzParams p) {
    static_assert(sizeof(X) == 2, "the products take 16-bit elements");
    static_assert(STRIDE == 1 || STRIDE == 2, "a wider stride would leave most of a window unused");
    static_assert(VECTOR == 1 || VECTOR == 2 || VECTOR == 4, "wider copies would need a lead of up to 7 zero columns");
    static_assert(STAGES >= 2, "one chunk is computed while another one arrives");
    static_assert(!STRIPS || (ROWS == 1 && STRIDE == 1), "only a filter of one row mixes no strips");
    typedef ToeplitzWalk<ROWS, STRIDE, REPEATS> Walk;
    constexpr int kBuffers =
        ROWS * STEPS < 20 ? 2 : 1;  // rows in registers: the next one loads while one is multiplied
    // Where the sums are probed moves code. The faster choice in the recorded run (H100, 56x56, batch 32, 144 and 96
    // channels): 3x3 takes 26 us when probed after its stores and was seen at 46 before, 7x7 18 before and 27 after.
    // But bodies unrolled as far as this one seem to run at two speeds: 5x5, stride 2, whose code this choice leaves
    // alone, took 23 us in one run and 47 in another. The instruction cache is suspected; binaries were not compared.
    constexpr bool kProbeFirst = RESIDUAL || ROWS > 4;
    extern __shared__ __align__(16) unsigned char shared[];

    const int32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int32 channel = blockIdx.x;
    int32 group = (int32(blockIdx.y) * kToeplitzWarps + warp) * p.groups_per_warp;
    int32 left = min_of(p.groups_per_warp, p.groups - group) * p.chunks;
    if (left <= 0) return;

    const X* const whole_x = x;
    Y* const whole_y = y;
    const Y* const whole_residual = residual;
    x += p.x_offset(channel), y += p.y_offset(channel);
    if constexpr (RESIDUAL) residual += p.residual_offset(channel);

    const uint32 row_bytes = p.per_group * p.stream_pitch, stage_bytes = Walk::kInputs * row_bytes;
    const uint32 ring = shared_address(shared) + warp * STAGES * stage_bytes, last_slot = (STAGES - 1) * stage_bytes;
    for (uint32 i = lane * 16; i < STAGES * stage_bytes; i += 512) shared_store_16(ring + i, {0, 0, 0, 0});
    __syncwarp();

    const int32 window = int32(blockIdx.z) * p.blocks * 8 * STRIDE - p.padding[1] - p.lead;
    const int32 width = (p.blocks - 1) * 8 * STRIDE + STEPS * 16;
    ToeplitzCopies<X, VECTOR, COPIES, Walk::kInputs, STRIPS> copies(p, ring, lane, window, width);
    int32 copy_group = group, copy_chunk = 0;
    auto copy_next = [&](uint32 slot) {
        if (copy_chunk == 0) {
            copies.aim(
                p, x, [&](int32 s) { return ToeplitzStream(p, copy_group * p.per_group + s); },
                [&](const ToeplitzStream& s) { return s.first_row * STRIDE - p.padding[0]; });
        }
        copies.copy(p, slot, row_bytes);
        if (++copy_chunk == p.chunks) copy_chunk = 0, copy_group++;
    };
#pragma unroll 1
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < left) copy_next(s * stage_bytes);
        copy_commit();
    }

    uint32 band[ROWS][STEPS][2];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int k = 0; k < 2 * STEPS; k++) {
            band[r][k / 2][k % 2] = band_word(w + p.w_offset(channel) + r * p.w_row, p.w_column,
                                              8 * k + 2 * t - STRIDE * g - p.lead, p.filter[1]);
        }
    }
    const float start = bias ? fetch<float>(bias + channel) : 0.0f;
    const Epilogue<ACT, float> epilogue(p.alpha, p.beta);

    // Where the line of a fragment that this lane names lies in a row: one unit, low or high half of the k axis.
    const int32 line_unit = lane % 16 < p.per_group * p.blocks ? lane % 16 : 0;
    const int32 line_stream = line_unit * p.reciprocal >> 16;
    const uint32 line =
        ring + line_stream * p.stream_pitch + (line_unit - line_stream * p.blocks) * (16 * STRIDE) + lane / 16 * 16;
    auto load_row = [&](uint32(&a)[STEPS][4], uint32 address) {
#pragma unroll
        for (int s = 0; s < STEPS; s++) ldmatrix_x4(a[s], address + 32 * s);
    };

    const ToeplitzUnit units[2] = {{p, g}, {p, g + 8}};
    const int32 columns[2] = {p.out[1] - units[0].column - 2 * t, p.out[1] - units[1].column - 2 * t};
    float sum[Walk::kLive][2][2];  // output row; unit g or g + 8; column
    const Y* residual_row[2] = {residual, residual};
    Y* y_row[2];
    int32 rows[2], row_columns[2];
    uint32 slot = 0;
    for (int32 chunk = 0; left > 0; left--) {
        if (chunk == 0) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const ToeplitzStream stream(p, group * p.per_group + units[half].stream);
                const int32 column = units[half].column + 2 * t, before = stream.first_row - Walk::kLive + 1;
                rows[half] = columns[half] > 0 ? units[half].rows(p, stream) : 0;
                if (STRIPS) row_columns[half] = columns[half] - before * p.shift;
                y_row[half] = y + stream.image * p.y_image + int64(before) * p.y_row + column;
                if constexpr (RESIDUAL) {
                    residual_row[half] =
                        residual + stream.image * p.residual_image + int64(before) * p.residual_row + column;
                }
            }
        }
        copy_wait<STAGES - 2>();
        __syncwarp();  // this chunk is there, and all lanes are done with the one that is overwritten next
        if (left >= STAGES) copy_next(slot == 0 ? last_slot : slot - stage_bytes);
        copy_commit();

        const int32 first = chunk * Walk::kOutputs - Walk::kLive + 1;  // output row that is complete first
        float probe = 0.0f;
        int32 again = Walk::kOutputs;  // first row to compute again; a residual may be y itself: stored once, in order
        uint32 a[kBuffers][STEPS][4];
        if (kBuffers == 2) load_row(a[0], line + slot);
#pragma unroll
        for (int i = 0; i < Walk::kInputs; i++) {
            const int next = i + kBuffers - 1;
            if (next < Walk::kInputs) load_row(a[next % kBuffers], line + slot + next * row_bytes);
            const int step = i / STRIDE, phase = i % STRIDE;
            if (phase == 0) {
                for (int e = 0; e < 4; e++) sum[step % Walk::kLive][e / 2][e % 2] = start;
            }
#pragma unroll
            for (int r = phase; r < ROWS; r += STRIDE) {
                float (&s)[2][2] = sum[(step + Walk::kLive - r / STRIDE) % Walk::kLive];
#pragma unroll
                for (int k = 0; k < STEPS; k++) mma<X, X>(s[0], s[1], a[i % kBuffers][k], band[r][k][0], band[r][k][1]);
            }
            if (phase != Walk::kLastPhase) continue;
            float (&complete)[2][2] = sum[(step + 1) % Walk::kLive];
            if (kProbeFirst) probe = fmaf(0.0f, complete[1][0], fmaf(0.0f, complete[0][0], probe));
            if (RESIDUAL && again == Walk::kOutputs && __any_sync(0xffffffffu, probe != probe)) again = step;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                if (!kProbeFirst) probe = fmaf(0.0f, complete[half][0], probe);
                int32 exist = uint32(first + step) < uint32(rows[half]) && step < again ? columns[half] : 0;
                if (STRIPS) {
                    exist = min_of(exist, max_of(row_columns[half], 0));
                    row_columns[half] -= p.shift;
                }
                finish_pair<Y, Y_VECTOR, RESIDUAL>(complete[half], residual_row[half], y_row[half], exist, epilogue);
                y_row[half] += p.y_row;
                if constexpr (RESIDUAL) residual_row[half] += p.residual_row;
            }
        }
        if (!RESIDUAL && __any_sync(0xffffffffu, probe != probe)) again = 0;
        if (again < Walk::kOutputs) {
            exact_rows<X, Y, 2, STRIDE, RESIDUAL, STRIPS>(
                p, whole_x, w, whole_residual, whole_y, opaque(channel), first + again, Walk::kOutputs - again, start,
                epilogue, [&](int32 s) { return ToeplitzStream(p, group * p.per_group + s); });
        }
        slot = slot == last_slot ? 0 : slot + stage_bytes;
        if (++chunk == p.chunks) chunk = 0, group++;
    }
}
