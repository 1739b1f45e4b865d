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
// Non-finite inputs: zeros of the band times Inf reach all 8 columns of a block, so that each of them betrays it. One
// in
//        two is looked at (half an instruction per output); a chunk with any is computed again without the band.
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
static_assert(sizeof(DepthwiseToeplitzParams) == 200, "the host packs this struct");

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

// A stream: a band of one image.
struct ToeplitzStream {
    int32 image;
    int32 first_row;  // of y
    bool exists;

    DEVICE ToeplitzStream(const DepthwiseToeplitzParams& p, int32 stream)
        : image(stream), first_row(0), exists(stream < p.streams) {
        if (p.bands > 1) image = stream / p.bands, first_row = (stream - image * p.bands) * p.band;
    }
};

// Row `unit` of the products: a column block of one of the streams of a group.
struct ToeplitzUnit {
    int32 stream;  // in the group; kNone: nothing
    int32 column;
    static constexpr int32 kNone = 1 << 16;

    DEVICE ToeplitzUnit(const DepthwiseToeplitzParams& p, int32 unit) : stream(unit / p.blocks) {
        column = (int32(blockIdx.y) * p.blocks + unit - stream * p.blocks) * 8;
        if (stream >= p.per_group) stream = kNone;
    }

    // Output rows that there are of a stream.
    DEVICE int32 rows(const DepthwiseToeplitzParams& p, const ToeplitzStream& s) const {
        return stream == kNone || !s.exists ? 0 : min_of(p.band, p.out[0] - s.first_row);
    }
};

// What one lane copies of every row: the columns of x under the windows of the strip, VECTOR at a time, stream by
// stream.
template <class X, int VECTOR, int COPIES, int INPUTS>
struct ToeplitzCopies {
    static constexpr int32 kNone = -1;
    static constexpr int kLoads = 8;  // in flight together where VECTOR = 1
    int32 place[COPIES];              // stream * 2^16 + column, or kNone
    uint32 destination[COPIES];
    const X* source[COPIES];
    int32 row[COPIES];

    // ring: shared address of this warp's ring; window: column of x under its first column.
    DEVICE ToeplitzCopies(const DepthwiseToeplitzParams& p, uint32 ring, int32 lane, int32 window, int32 width) {
        const int32 from = max_of(window, 0), to = min_of(window + width, p.in[1]);
        const int32 vectors = max_of(to - from, 0) / VECTOR;
#pragma unroll
        for (int c = 0; c < COPIES; c++) {
            const int32 i = lane + 32 * c, stream = vectors ? i / vectors : p.per_group;
            const int32 column = from + (i - stream * vectors) * VECTOR;
            place[c] = stream < p.per_group ? stream << 16 | column : kNone;
            destination[c] = ring + stream * p.stream_pitch + (column - window) * int(sizeof(X));
        }
    }

    // Go to the first rows of a group of streams.
    DEVICE void aim(const DepthwiseToeplitzParams& p, const X* x, int32 group, int32 stride) {
#pragma unroll
        for (int c = 0; c < COPIES; c++) {
            const ToeplitzStream stream(p, group * p.per_group + (place[c] >> 16));
            const int32 first = stream.first_row * stride - p.padding[0];
            source[c] = x + stream.image * p.x_image + int64(first) * p.x_row + (place[c] & 0xffff);
            row[c] = stream.exists ? first : p.in[0];  // a missing stream is read as zeros
        }
    }

    static DEVICE bool inside(const DepthwiseToeplitzParams& p, int32 row) { return uint32(row) < uint32(p.in[0]); }

    // Start the copies of the next INPUTS rows to `slot` bytes behind the start of the ring.
    DEVICE void copy(const DepthwiseToeplitzParams& p, uint32 slot, uint32 row_bytes) {
#pragma unroll
        for (int c = 0; c < COPIES; c++) {
            if (place[c] == kNone) continue;
            if constexpr (VECTOR > 1) {
#pragma unroll
                for (int i = 0; i < INPUTS; i++) {
                    copy_async<VECTOR* int(sizeof(X))>(destination[c] + slot + i * row_bytes,
                                                       source[c] + int64(i) * p.x_row, inside(p, row[c] + i));
                }
            } else {
#pragma unroll
                for (int first = 0; first < INPUTS; first += kLoads) {
                    uint16 bits[kLoads];  // all loads before the first store
#pragma unroll
                    for (int i = first; i < min_of(first + kLoads, INPUTS); i++) {
                        bits[i - first] = 0;
                        if (inside(p, row[c] + i)) bits[i - first] = source[c][int64(i) * p.x_row].bits;
                    }
#pragma unroll
                    for (int i = first; i < min_of(first + kLoads, INPUTS); i++) {
                        shared_store_2(destination[c] + slot + i * row_bytes, bits[i - first]);
                    }
                }
            }
            source[c] += int64(INPUTS) * p.x_row;
            row[c] += INPUTS;
        }
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
DEVICE void exact_rows(const DepthwiseToeplitzParams& p, const X* x, const X* w, const Y* residual, Y* y, int32 channel,
                       int32 group, int32 first, int32 count, float start, const Epilogue<ACT, float>& epilogue) {
    const int32 lane = threadIdx.x % 32;
    x += p.x_offset(channel), w += p.w_offset(channel), y += p.y_offset(channel);
    if constexpr (RESIDUAL) residual += p.residual_offset(channel);
#pragma unroll 1
    for (int i = 0; i < 4 * count; i++) {
        const ToeplitzUnit unit(p, lane / 4 + i / 2 % 2 * 8);
        const ToeplitzStream stream(p, group * p.per_group + unit.stream);
        const int32 column = unit.column + lane % 4 * 2 + i % 2;
        if (uint32(first + i / 4) >= uint32(unit.rows(p, stream)) || column >= p.out[1]) continue;
        const int32 row = stream.first_row + first + i / 4;
        const int32 top = row * STRIDE - p.padding[0], left = column * STRIDE - p.padding[1];
        float sum = start;
#pragma unroll 1
        for (int r = max_of(-top, 0); r < min_of(ROWS, p.in[0] - top); r++) {
            const X* from = x + stream.image * p.x_image + int64(top + r) * p.x_row + left;
#pragma unroll 1
            for (int s = max_of(-left, 0); s < min_of(p.filter_columns, p.in[1] - left); s++) {
                sum = fmaf(fetch<float>(from + s), fetch<float>(w + r * p.w_row + s * p.w_column), sum);
            }
        }
        if constexpr (RESIDUAL) {
            sum += fetch<float>(residual + stream.image * p.residual_image + int64(row) * p.residual_row + column);
        }
        y[stream.image * p.y_image + int64(row) * p.y_row + column] = from_accumulator<Y>(epilogue.activate(sum));
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
    constexpr int kBuffers =
        ROWS * STEPS < 20 ? 2 : 1;  // rows in registers: the next one loads while one is multiplied
    extern __shared__ __align__(16) unsigned char shared[];

    const int32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int32 channel = int32(blockIdx.x) % p.channels;
    int32 group = (int32(blockIdx.x) / p.channels * kToeplitzWarps + warp) * p.groups_per_warp;
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

    const int32 window = int32(blockIdx.y) * p.blocks * 8 * STRIDE - p.padding[1] - p.lead;
    const int32 width = (p.blocks - 1) * 8 * STRIDE + STEPS * 16;
    ToeplitzCopies<X, VECTOR, COPIES, Walk::kInputs> copies(p, ring, lane, window, width);
    int32 copy_group = group, copy_chunk = 0;
    auto copy_next = [&](uint32 slot) {
        if (copy_chunk == 0) copies.aim(p, x, copy_group, STRIDE);
        copies.copy(p, slot, row_bytes);
        if (++copy_chunk == p.chunks) copy_chunk = 0, copy_group++;
    };
#pragma unroll
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
                                              8 * k + 2 * t - STRIDE * g - p.lead, p.filter_columns);
        }
    }
    const float start = bias ? fetch<float>(bias + channel) : 0.0f;
    const Epilogue<ACT, float> epilogue(p.alpha, p.beta);

    // Where the line of a fragment that this lane names lies in a row: one unit, low or high half of the k axis.
    const int32 line_unit = lane % 16 < p.per_group * p.blocks ? lane % 16 : 0;
    const uint32 line =
        ring + line_unit / p.blocks * p.stream_pitch + line_unit % p.blocks * (16 * STRIDE) + lane / 16 * 16;
    auto load_row = [&](uint32(&a)[STEPS][4], uint32 address) {
#pragma unroll
        for (int s = 0; s < STEPS; s++) ldmatrix_x4(a[s], address + 32 * s);
    };

    const ToeplitzUnit units[2] = {{p, g}, {p, g + 8}};
    float sum[Walk::kLive][2][2];  // output row; unit g or g + 8; column
    const Y* residual_row[2] = {residual, residual};
    Y* y_row[2];
    int32 rows[2];
    uint32 slot = 0;
    for (int32 chunk = 0; left > 0; left--) {
        if (chunk == 0) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const ToeplitzStream stream(p, group * p.per_group + units[half].stream);
                const int32 column = units[half].column + 2 * t, before = stream.first_row - Walk::kLive + 1;
                rows[half] = column < p.out[1] ? units[half].rows(p, stream) : 0;
                y_row[half] = y + stream.image * p.y_image + int64(before) * p.y_row + column;
                if constexpr (RESIDUAL) {
                    residual_row[half] =
                        residual + stream.image * p.residual_image + int64(before) * p.residual_row + column;
                }
            }
        }
        copy_wait<STAGES - 2>();
        __syncwarp();  // all lanes' copies of this chunk have landed, and all have read the one that is overwritten
                       // next
        if (left >= STAGES) copy_next(slot == 0 ? last_slot : slot - stage_bytes);
        copy_commit();

        const int32 first = chunk * Walk::kOutputs - Walk::kLive + 1;  // output row that is complete first
        float probe = 0.0f;
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
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float (&complete)[2] = sum[(step + 1) % Walk::kLive][half];
                probe = fmaf(0.0f, complete[0], probe);
                if (uint32(first + step) < uint32(rows[half])) {
                    finish_pair<Y, Y_VECTOR, RESIDUAL>(complete, residual_row[half], y_row[half],
                                                       units[half].column + 2 * t + 1 < p.out[1], epilogue);
                }
                y_row[half] += p.y_row;
                if constexpr (RESIDUAL) residual_row[half] += p.residual_row;
            }
        }
        if (__any_sync(0xffffffffu, probe != probe)) {
            exact_rows<X, Y, ROWS, STRIDE, RESIDUAL>(p, whole_x, w, whole_residual, whole_y, opaque(channel), group,
                                                     first, Walk::kOutputs, start, epilogue);
        }
        slot = slot == last_slot ? 0 : slot + stage_bytes;
        if (++chunk == p.chunks) chunk = 0, group++;
    }
}
