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
// Non-finite inputs: zeros of the band times Inf would reach all 8 columns of a block, so each of them betrays it. One
// in
//        two is looked at (half an instruction per output); chunks of rows with any are computed again without the
//        band.
// Limits: column stride 1 in x and y; an image is shorter than 2^31 elements from its first to its last row.
#include "epilogue.cuh"
#include "tensor_core.cuh"

constexpr int kToeplitzWarps = 4;

// Strides in elements; rows, then columns.
struct DepthwiseToeplitzParams {
    int64 x_image;
    int64 x_channel;
    int64 w_group;
    int64 w_multiplier;
    int64 w_row;
    int64 w_column;
    int64 y_image;
    int64 y_group;
    int64 y_multiplier;
    int64 residual_image;
    int64 residual_group;
    int64 residual_multiplier;
    double alpha;
    double beta;
    int32 x_row;
    int32 y_row;
    int32 residual_row;
    int32 channels;  // of y
    int32 multiplier;
    int32 in[2];
    int32 out[2];
    int32 padding[2];
    int32 filter_columns;
    int32 lead;
    int32 blocks;     // column blocks of 8 outputs in a strip; blockIdx.y counts strips
    int32 per_group;  // streams that a warp walks down together
    int32 streams;    // of a channel
    int32 groups;     // of a channel
    int32 bands;      // of an image
    int32 band;       // output rows of a band
    int32 chunks;     // of a band
    int32 groups_per_warp;
    int32 stream_pitch;  // bytes of one row of one stream in shared memory

    // Offsets of an output channel.
    DEVICE int64 x_offset(int32 channel) const { return channel / multiplier * x_channel; }
    DEVICE int64 w_offset(int32 channel) const {
        return channel / multiplier * w_group + channel % multiplier * w_multiplier;
    }
    DEVICE int64 y_offset(int32 channel) const {
        return channel / multiplier * y_group + channel % multiplier * y_multiplier;
    }
    DEVICE int64 residual_offset(int32 channel) const {
        return channel / multiplier * residual_group + channel % multiplier * residual_multiplier;
    }
};
static_assert(sizeof(DepthwiseToeplitzParams) == 208, "the host packs this struct");

// How a warp walks down: an input row feeds output rows `kLive - 1` back to 0; a chunk is unrolled, so that the
// rotation of the sums costs nothing, and is the unit of staging: at least 4 rows, so that memory is read in long runs.
template <int ROWS, int STRIDE>
struct ToeplitzWalk {
    static constexpr int kLive = ceil_div(ROWS, STRIDE);
    static constexpr int kOutputs = kLive * ceil_div(4, kLive);
    static constexpr int kInputs = kOutputs * STRIDE;
    static constexpr int kLastPhase =
        (ROWS - 1) % STRIDE;  // after this row of a step its oldest output row is complete
};

// Elements tap and tap + 1 of a filter row as one word, zero outside.
template <class X>
DEVICE uint32 band_word(const X* row, int64 step, int32 tap, int32 taps) {
    uint32 word = 0;
    if (uint32(tap) < uint32(taps)) word = load<X, 1>(row + tap * step).word[0];
    if (uint32(tap + 1) < uint32(taps)) word |= load<X, 1>(row + (tap + 1) * step).word[0] << 16;
    return word;
}

// One row of a column block: which image, where in it.
struct ToeplitzUnit {
    int32 image, first_row, rows;  // output rows; 0 rows: nothing to compute
    int32 column;

    DEVICE ToeplitzUnit(const DepthwiseToeplitzParams& p, int32 group, int32 unit) {
        const int32 stream = group * p.per_group + unit / p.blocks;
        image = stream / p.bands;
        first_row = stream % p.bands * p.band;
        const bool live = unit < p.per_group * p.blocks && stream < p.streams;
        rows = live ? min_of(p.band, p.out[0] - first_row) : 0;
        column = (int32(blockIdx.y) * p.blocks + unit % p.blocks) * 8;
    }
};

// Two neighbouring outputs of a row; `second`: whether the right one exists.
template <class Y, int Y_VECTOR, bool RESIDUAL, int ACT>
DEVICE void finish_pair(const float (&sum)[2], const Y* residual, Y* y, bool second,
                        const Epilogue<ACT, float>& epilogue) {
    float values[2] = {sum[0], sum[1]};
    if constexpr (RESIDUAL && Y_VECTOR == 2) {
        const Vector<Y, 2> extra = load<Y, 2>(residual);
        values[0] += element<float>(extra, 0), values[1] += element<float>(extra, 1);
    } else if constexpr (RESIDUAL) {
        values[0] += fetch<float>(residual);
        if (second) values[1] += fetch<float>(residual + 1);
    }
#pragma unroll
    for (float& v : values) v = epilogue.activate(v);
    if constexpr (Y_VECTOR == 2) {
        store(y, pack<Y>(values));
    } else {
        y[0] = from_accumulator<Y>(values[0]);
        if (second) y[1] = from_accumulator<Y>(values[1]);
    }
}

// The outputs of this lane in `count` rows from `first` on once more, tap by tap: padding and neighbours play no part.
template <class X, class Y, int ROWS, int STRIDE, bool RESIDUAL, int ACT>
DEVICE void exact_rows(const DepthwiseToeplitzParams& p, const X* x, const X* w, const Y* residual, Y* y, int32 group,
                       int32 first, int32 count, float start, const Epilogue<ACT, float>& epilogue) {
    const int32 lane = threadIdx.x % 32;
#pragma unroll 1
    for (int i = 0; i < 4 * count; i++) {
        const ToeplitzUnit unit(p, group, lane / 4 + i / 2 % 2 * 8);
        const int32 column = unit.column + lane % 4 * 2 + i % 2;
        if (uint32(first + i / 4) >= uint32(unit.rows) || column >= p.out[1]) continue;
        const int32 row = unit.first_row + first + i / 4;
        const int32 top = row * STRIDE - p.padding[0], left = column * STRIDE - p.padding[1];
        float sum = start;
#pragma unroll 1
        for (int r = max_of(-top, 0); r < min_of(ROWS, p.in[0] - top); r++) {
            const X* from = x + unit.image * p.x_image + int64(top + r) * p.x_row + left;
#pragma unroll 1
            for (int s = max_of(-left, 0); s < min_of(p.filter_columns, p.in[1] - left); s++) {
                sum = fmaf(fetch<float>(from + s), fetch<float>(w + r * p.w_row + s * p.w_column), sum);
            }
        }
        if constexpr (RESIDUAL) {
            sum += fetch<float>(residual + unit.image * p.residual_image + int64(row) * p.residual_row + column);
        }
        y[unit.image * p.y_image + int64(row) * p.y_row + column] = from_accumulator<Y>(epilogue.activate(sum));
    }
}

template <class X, class BIAS, class Y, int ROWS, int STRIDE, int STEPS, int VECTOR, int COPIES, int Y_VECTOR,
          int STAGES, bool RESIDUAL, int ACT, int MIN_BLOCKS>
__global__ void __launch_bounds__(kToeplitzWarps * 32, MIN_BLOCKS)
    depthwise_toeplitz(const X* x, const X* w, const BIAS* bias, const Y* residual, const int32*, const int32*, Y* y,
                       void*, const DepthwiseToeplitzParams p) {
    static_assert(sizeof(X) == 2, "the products take 16-bit elements");
    static_assert(STRIDE == 1 || STRIDE == 2, "a wider stride would leave most of a window unused");
    static_assert(VECTOR == 1 || VECTOR == 2 || VECTOR == 4, "wider copies would need a lead of up to 7 zero columns");
    static_assert(STAGES >= 2, "one chunk is computed while another one arrives");
    typedef ToeplitzWalk<ROWS, STRIDE> Walk;
    extern __shared__ __align__(16) unsigned char shared[];

    const int32 lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int32 channel = blockIdx.x % p.channels, member = channel % p.multiplier;
    const int32 first_group =
        (int32(blockIdx.x) / p.channels * kToeplitzWarps + int32(threadIdx.x) / 32) * p.groups_per_warp;
    const int32 chunks = min_of(p.groups_per_warp, p.groups - first_group) * p.chunks;
    if (chunks <= 0) return;
    x += channel / p.multiplier * p.x_channel;
    w += channel / p.multiplier * p.w_group + member * p.w_multiplier;
    y += channel / p.multiplier * p.y_group + member * p.y_multiplier;
    if constexpr (RESIDUAL) residual += channel / p.multiplier * p.residual_group + member * p.residual_multiplier;

    const int32 row_bytes = p.per_group * p.stream_pitch, stage_bytes = Walk::kInputs * row_bytes;
    unsigned char* const ring = shared + threadIdx.x / 32 * (STAGES * stage_bytes);
    for (int32 i = lane * 16; i < STAGES * stage_bytes; i += 512)
        *reinterpret_cast<uint4*>(ring + i) = make_uint4(0, 0, 0, 0);
    __syncwarp();

    // This lane's copies of a row: the columns of x under the strip's windows, VECTOR at a time, stream after stream.
    const int32 window = int32(blockIdx.y) * p.blocks * 8 * STRIDE - p.padding[1] - p.lead;
    const int32 from = max_of(window, 0);
    const int32 to = min_of(window + (p.blocks - 1) * 8 * STRIDE + STEPS * 16, p.in[1]);
    const int32 vectors = max_of(to - from, 0) / VECTOR;
    int32 copy_stream[COPIES], copy_column[COPIES];
#pragma unroll
    for (int c = 0; c < COPIES; c++) {
        const int32 i = lane + 32 * c;
        copy_stream[c] = vectors ? i / vectors : p.per_group;
        copy_column[c] = vectors ? from + i % vectors * VECTOR : 0;
    }
    const X* source[COPIES];
    int32 source_row[COPIES];
    int32 staging_chunk = 0, staging_left = chunks, staging_group = first_group, staging_offset = 0;

    auto stage_next = [&] {
        if (staging_left > 0) {
            if (staging_chunk == 0) {
#pragma unroll
                for (int c = 0; c < COPIES; c++) {
                    const int32 stream = staging_group * p.per_group + copy_stream[c];
                    const int32 row = stream % p.bands * p.band * STRIDE - p.padding[0];
                    source[c] = x + stream / p.bands * p.x_image + int64(row) * p.x_row + copy_column[c];
                    source_row[c] = stream < p.streams ? row : p.in[0];  // missing streams read zeros
                }
            }
#pragma unroll
            for (int c = 0; c < COPIES; c++) {
                if (copy_stream[c] >= p.per_group) continue;
                unsigned char* destination = ring + staging_offset + copy_stream[c] * p.stream_pitch +
                                             (copy_column[c] - window) * int(sizeof(X));
#pragma unroll
                for (int i = 0; i < Walk::kInputs; i++) {
                    const X* from = source[c] + i * p.x_row;
                    const bool inside = uint32(source_row[c] + i) < uint32(p.in[0]);
                    if constexpr (VECTOR == 1) {
                        *reinterpret_cast<uint16*>(destination) = inside ? uint16(load<X, 1>(from).word[0]) : uint16(0);
                    } else {
                        copy_async<VECTOR* int(sizeof(X))>(shared_address(destination), from, inside);
                    }
                    destination += row_bytes;
                }
                source[c] += Walk::kInputs * p.x_row;
                source_row[c] += source_row[c] >= p.in[0] ? 0 : Walk::kInputs;
            }
            staging_left--;
            staging_offset = staging_offset == (STAGES - 1) * stage_bytes ? 0 : staging_offset + stage_bytes;
            if (++staging_chunk == p.chunks) staging_chunk = 0, staging_group++;
        }
        copy_commit();
    };
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) stage_next();

    uint32 band[ROWS][STEPS][2];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int k = 0; k < 2 * STEPS; k++) {
            band[r][k / 2][k % 2] =
                band_word(w + r * p.w_row, p.w_column, 8 * k + 2 * t - STRIDE * g - p.lead, p.filter_columns);
        }
    }
    const float start = bias ? fetch<float>(bias + channel) : 0.0f;
    const Epilogue<ACT, float> epilogue(p.alpha, p.beta);

    // Where this lane's line of a fragment lies in a row: 8 columns of one unit, low or high half of the k axis.
    const int32 line_unit = lane % 16 < p.per_group * p.blocks ? lane % 16 : 0;
    const uint32 line = shared_address(ring) + line_unit / p.blocks * p.stream_pitch +
                        line_unit % p.blocks * (16 * STRIDE) + lane / 16 * 16;
    auto load_row = [&](uint32(&a)[STEPS][4], uint32 address) {
#pragma unroll
        for (int s = 0; s < STEPS; s++) ldmatrix_x4(a[s], address + 32 * s);
    };

    float sum[Walk::kLive][2][2];  // output row, unit g or g + 8, column
    const Y* residual_row[2] = {residual, residual};
    Y* y_row[2];
    int32 rows[2];
    bool second[2];
    int32 offset = 0, group = first_group, chunk = 0;
    for (int32 left = chunks; left > 0; left--) {
        if (chunk == 0) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const ToeplitzUnit unit(p, group, g + 8 * half);
                const int32 column = unit.column + 2 * t;
                rows[half] = column < p.out[1] ? unit.rows : 0;
                second[half] = column + 1 < p.out[1];
                y_row[half] = y + unit.image * p.y_image + int64(unit.first_row - Walk::kLive + 1) * p.y_row + column;
                if constexpr (RESIDUAL) {
                    residual_row[half] = residual + unit.image * p.residual_image +
                                         int64(unit.first_row - Walk::kLive + 1) * p.residual_row + column;
                }
            }
        }
        copy_wait<STAGES - 2>();
        __syncwarp();  // every lane's copies have landed, and every lane has read the chunk that the next copies
                       // replace
        stage_next();

        const int32 first_row = chunk * Walk::kOutputs - Walk::kLive + 1;  // output row that this chunk completes first
        float probe = 0.0f;
        uint32 a[2][STEPS][4];
        uint32 address = line + offset;
        load_row(a[0], address);
#pragma unroll
        for (int i = 0; i < Walk::kInputs; i++) {
            if (i + 1 < Walk::kInputs) load_row(a[(i + 1) % 2], address += row_bytes);
            const int step = i / STRIDE, phase = i % STRIDE;
            if (phase == 0) {
#pragma unroll
                for (int e = 0; e < 4; e++) sum[step % Walk::kLive][e / 2][e % 2] = start;
            }
#pragma unroll
            for (int r = phase; r < ROWS; r += STRIDE) {
                float (&s)[2][2] = sum[(step + Walk::kLive - r / STRIDE) % Walk::kLive];
#pragma unroll
                for (int k = 0; k < STEPS; k++) mma<X, X>(s[0], s[1], a[i % 2][k], band[r][k][0], band[r][k][1]);
            }
            if (phase != Walk::kLastPhase) continue;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float (&s)[2] = sum[(step + 1) % Walk::kLive][half];
                probe = fmaf(0.0f, s[0], probe);
                if (uint32(first_row + step) < uint32(rows[half])) {
                    finish_pair<Y, Y_VECTOR, RESIDUAL>(s, residual_row[half], y_row[half], second[half], epilogue);
                }
                y_row[half] += p.y_row;
                if constexpr (RESIDUAL) residual_row[half] += p.residual_row;
            }
        }
        if (__any_sync(0xffffffffu, probe != probe)) {
            exact_rows<X, Y, ROWS, STRIDE, RESIDUAL>(p, x, w, residual, y, group, first_row, Walk::kOutputs, start,
                                                     epilogue);
        }
        offset = offset == (STAGES - 1) * stage_bytes ? 0 : offset + stage_bytes;
        if (++chunk == p.chunks) chunk = 0, group++;
    }
}
