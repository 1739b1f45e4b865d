// Depthwise convolution on the tensor cores, channels last, 2 spatial axes, stride 1 or 2, 16-bit floats, float32 sums.
//
// 8 channels of 16 pixels times a diagonal matrix are a tap of the filter; two taps of a filter row, one below the
// other along k, are one product of 16 pixels x 16 x 8 channels:
//     y[pixel][channel] += [x[pixel + s] | x[pixel + s + 1]] * [diag(w[r][s]); diag(w[r][s + 1])]
// An odd last column takes a product of half the depth.
//
// Block: GROUPS groups of 8 channels; `streams` streams, a stream being a band of output rows of one image; of each
//        `strips` strips of 8 columns. It copies all of its input with the halo by asynchronous copies of 16 bytes, in
//        `stages` groups of rows, and begins when the first rows are there.
// Warp:  one group of channels, two units (a unit is a strip of a stream). It walks down their input rows: fragments of
//        a row are read once for ROWS filter rows, the sums of kLive output rows and the filter stay in registers.
// Lane:  of pixel g of both units two neighbouring channels: four lanes store 16 bytes side by side.
// Shared memory: [group][stream][row][column] of 16 bytes: eight pixels of a matrix lie side by side, without bank
//        conflicts. Stride 2: the even columns of a row, then the odd ones, so that this holds there as well.
// Traffic: y and residual once; x with the halo of a block, mostly from L2; w once per warp, from the caches.
// Non-finite inputs: the zeros beside the diagonal make NaN of Inf and NaN in all other channels of the group, in the
//        same pixels: a sum that is no NaN is right. Every second sum is looked at, of the seven that are reached at
//        least three; rows of a chunk of the walk with any are computed again, tap by tap. An infinite weight stays in
//        its channel, but is multiplied with the zeros of the padding.
// Limits: x, y, residual dense and aligned to 16 bytes, channels a multiple of 8, multiplier 1, an image below 2^31.
#include "epilogue.cuh"
#include "tensor_core.cuh"

struct DepthwiseNhwcMmaParams {
    int64 w_group;  // stride of w in elements
    double alpha;
    double beta;
    int32 w_row;
    int32 w_column;
    int32 channels;
    int32 in[2];
    int32 out[2];
    int32 padding[2];  // low side; negative crops
    int32 images;
    int32 bands;    // streams of an image
    int32 rows;     // output rows of a stream
    int32 streams;  // of a block: 1 or 2
    int32 strips;   // of a block
    int32 channel_blocks;
    int32 column_tiles;
    int32 stages;
    int32 stage_rows;  // input rows of a stage: a multiple of kInputs
    int32 pitch;       // bytes of a row in shared memory
    int32 plane;       // bytes of a group of channels
};
static_assert(sizeof(DepthwiseNhwcMmaParams) == 104, "gpu_conv/families/depthwise_nhwc_mma.py packs this struct");

constexpr int kChannels = 8;  // of a group: a line of ldmatrix, and the columns of a product
constexpr int kStrip = 8;     // columns
constexpr int kLine = 16;     // bytes: a group of channels of a pixel
constexpr int kMostStages = 4;
constexpr int kNever = 1 << 30;

// Where a block begins: its first stream, and its first column of y.
struct MmaBlock {
    int image;
    int band;
    int column;
};

// Stream 0 or 1 of a block: one band of an image.
struct MmaStream {
    int image;
    int first_row;  // of y
    bool exists;

    DEVICE MmaStream(const DepthwiseNhwcMmaParams& p, const MmaBlock& block, int stream) {
        const int band = block.band + stream;
        const bool next = band >= p.bands;
        image = block.image + (next ? 1 : 0), first_row = (next ? band - p.bands : band) * p.rows;
        exists = image < p.images;
    }
};

// Eight output columns of one stream, of which a lane has column g.
struct MmaUnit {
    int image;
    int first_row;
    int column;
    int count;  // rows to store: 0 where the lane's column does not exist

    DEVICE MmaUnit(const DepthwiseNhwcMmaParams& p, const MmaBlock& block, int unit, int g) {
        const int stream = unit >= p.strips;
        const MmaStream of(p, block, stream);
        image = of.image, first_row = of.first_row;
        column = block.column + (unit - stream * p.strips) * kStrip + g;
        const bool there = unit < p.streams * p.strips && of.exists && column < p.out[1];
        count = there ? min_of(p.rows, p.out[0] - first_row) : 0;
    }

    // Element of y and the residual in the first row.
    DEVICE int64 offset(const DepthwiseNhwcMmaParams& p, int channel) const {
        return ((int64(image) * p.out[0] + first_row) * p.out[1] + column) * p.channels + channel;
    }
};

// Two channels of output rows `from` to `until` of a unit, tap by tap: padding and other channels play no part.
template <int ROWS, int COLUMNS, int STRIDE, bool RESIDUAL, class T, class Y, int ACT>
DEVICE void exact_rows(const DepthwiseNhwcMmaParams& p, const T* x, const T* w, const Y* residual, Y* y,
                       const MmaUnit& unit, int channel, int from, int until, const float (&start)[2],
                       const Epilogue<ACT, float>& epilogue) {
    const int left = unit.column * STRIDE - p.padding[1];
    x += int64(unit.image) * p.in[0] * p.in[1] * p.channels + channel;
    w += channel * p.w_group;
#pragma unroll 1
    for (int i = 2 * from; i < 2 * min_of(until, unit.count); i++) {
        const int row = i / 2, c = i % 2, top = (unit.first_row + row) * STRIDE - p.padding[0];
        float sum = c ? start[1] : start[0];
#pragma unroll 1
        for (int tap = 0; tap < ROWS * COLUMNS; tap++) {
            const int r = tap / COLUMNS, s = tap % COLUMNS;
            if (uint32(top + r) >= uint32(p.in[0]) || uint32(left + s) >= uint32(p.in[1])) continue;
            const int at = ((top + r) * p.in[1] + left + s) * p.channels + c;
            sum = fmaf(fetch<float>(x + at), fetch<float>(w + c * p.w_group + r * p.w_row + s * p.w_column), sum);
        }
        const int64 at = unit.offset(p, channel) + int64(row) * p.out[1] * p.channels + c;
        if constexpr (RESIDUAL) sum += to_accumulator<float>(residual[at]);
        y[at] = from_accumulator<Y>(epilogue.activate(sum));
    }
}

template <class T, class B, class Y, int ROWS, int COLUMNS, int STRIDE, int GROUPS, int TILES, bool RESIDUAL, int ACT,
          int MIN_BLOCKS>
__global__ void __launch_bounds__(32 * GROUPS * TILES, MIN_BLOCKS)
    depthwise_nhwc_mma(const T* x, const T* w, const B* bias, const Y* residual, const int32*, const int32*, Y* y,
                       void*, const DepthwiseNhwcMmaParams p) {
    static_assert(sizeof(T) == 2, "the products take 16-bit elements");
    static_assert(STRIDE == 1 || STRIDE == 2, "even and odd columns are kept apart, not more");
    constexpr int kThreads = 32 * GROUPS * TILES;
    constexpr int kLive = ceil_div(ROWS, STRIDE), kInputs = kLive * STRIDE;
    constexpr int kPairs = COLUMNS / 2;
    constexpr bool kOdd = COLUMNS % 2 == 1;
    extern __shared__ __align__(128) unsigned char shared[];
    const uint32 base = shared_address(shared);

    const int channel_block = blockIdx.x % uint32(p.channel_blocks), rest = blockIdx.x / uint32(p.channel_blocks);
    const int stream_block = rest / p.column_tiles, column_tile = rest - stream_block * p.column_tiles;
    const int first_image = stream_block * p.streams / p.bands;
    const MmaBlock block = {first_image, stream_block * p.streams - first_image * p.bands,
                            column_tile * p.strips * kStrip};
    const int first_channel = channel_block * (GROUPS * kChannels);
    const int in_rows = (p.rows - 1) * STRIDE + ROWS, in_columns = (p.strips * kStrip - 1) * STRIDE + COLUMNS;
    const int odd_columns = p.pitch / 2;  // where they begin in a row: STRIDE = 2 only

    // Load. A thread copies the same columns of all rows.
    constexpr int kItems = STRIDE;  // a row has at most so many pixels and groups for each thread
    uint32 to_shared[kItems];
    const T* source[kItems];
    int top[kItems], height[kItems];  // height: 0 where there are zeros only, -1 where the thread copies nothing
    const int x_row = p.in[1] * p.channels;
#pragma unroll
    for (int i = 0; i < kItems; i++) {
        const int item = threadIdx.x + i * kThreads, pixel = item / GROUPS, group = item % GROUPS;
        const int stream = pixel >= in_columns, column = pixel - stream * in_columns;
        const int from = block.column * STRIDE - p.padding[1] + column, channel = first_channel + group * kChannels;
        const int place = STRIDE == 1 ? column * kLine : column % 2 * odd_columns + column / 2 * kLine;
        const MmaStream of(p, block, stream);
        const bool valid = of.exists && uint32(from) < uint32(p.in[1]) && channel < p.channels;
        top[i] = of.first_row * STRIDE - p.padding[0];
        height[i] = pixel >= p.streams * in_columns ? -1 : valid ? p.in[0] : 0;
        to_shared[i] = base + group * p.plane + stream * in_rows * p.pitch + place;
        source[i] = x + (int64(of.image) * p.in[0] + top[i]) * x_row + from * p.channels + channel;
    }
#pragma unroll 1
    for (int stage = 0; stage < p.stages; stage++) {
        const int rows = min_of(in_rows - stage * p.stage_rows, p.stage_rows);
#pragma unroll
        for (int i = 0; i < kItems; i++) {
            if (height[i] < 0) continue;
#pragma unroll 4
            for (int row = 0; row < rows; row++) {
                copy_async<kLine>(to_shared[i], source[i], uint32(top[i]) < uint32(height[i]));
                to_shared[i] += p.pitch, source[i] += x_row, top[i]++;
            }
        }
        copy_commit();
    }

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int group = warp % GROUPS, tile = warp / GROUPS, units = p.streams * p.strips;
    const int group_channel = first_channel + group * kChannels, channel = group_channel + 2 * t;
    const bool active = group_channel < p.channels && 2 * tile < units;
    const uint32 diagonal = t == g / 2 ? 1u << 16 * (g % 2) : 0;
    const T* tap_of_lane = w + min_of(group_channel + g, p.channels - 1) * p.w_group;
    uint32 filter[ROWS][COLUMNS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int s = 0; s < COLUMNS; s++) {
            filter[r][s] = load<T, 1>(tap_of_lane).word[0] * diagonal;
            tap_of_lane += p.w_column;
        }
        tap_of_lane += p.w_row - COLUMNS * p.w_column;
    }
    float start[2] = {0.0f, 0.0f};
    if (bias != nullptr && active) start[0] = fetch<float>(bias + channel), start[1] = fetch<float>(bias + channel + 1);

    // Where the line lies that this lane names: matrices 0 and 1 are the units at one tap, 2 and 3 at the next one.
    const auto line_of = [&](int unit) {
        const int stream = unit >= p.strips, strip = unit - stream * p.strips;
        return stream * in_rows * p.pitch + strip * (kStrip * kLine);
    };
    const int line_unit = 2 * tile + lane / 8 % 2;
    uint32 line = base + group * p.plane + line_of(line_unit < units ? line_unit : 0) + lane % 8 * kLine +
                  lane / 16 * (STRIDE == 1 ? kLine : odd_columns);

    const int y_row = p.out[1] * p.channels;
    int count[2];
    Y* to[2];
    const Y* added[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const MmaUnit unit(p, block, 2 * tile + half, g);
        const int64 at = unit.offset(p, channel) - (kLive - 1) * y_row;
        count[half] = unit.count, to[half] = y + at, added[half] = residual;
        if constexpr (RESIDUAL) added[half] += at;
    }
    const Epilogue<ACT, float> epilogue(p.alpha, p.beta);
    float sum[kLive][2][2];  // output row; unit; channel
#pragma unroll 1
    for (int stage = 0; stage < p.stages; stage++) {
        copy_wait_for<kMostStages - 1>(p.stages - 1 - stage);
        __syncthreads();
        if (!active) continue;
        const int end = min_of(in_rows, (stage + 1) * p.stage_rows);
#pragma unroll 1
        for (int input = stage * p.stage_rows; input < end; input += kInputs) {
            const int first = input / STRIDE - (kLive - 1);  // output row that is complete after the first step
            float probe = 0.0f;
            int again = kNever;  // the first output row to compute again; a residual may be y itself: stored once
#pragma unroll
            for (int i = 0; i < kInputs; i++) {
                if (input + i >= end) break;
                const int step = i / STRIDE, phase = i % STRIDE;

                // Compute.
                uint32 a[ceil_div(COLUMNS, 2)][4];
#pragma unroll
                for (int k = 0; k < kPairs; k++) ldmatrix_x4(a[k], line + k * (2 / STRIDE * kLine));
                if constexpr (kOdd) ldmatrix_x2(a[kPairs][0], a[kPairs][1], line + kPairs * (2 / STRIDE * kLine));
                line += p.pitch;
                if (phase == 0) {
#pragma unroll
                    for (int e = 0; e < 4; e++) sum[step % kLive][e / 2][e % 2] = start[e % 2];
                }
#pragma unroll
                for (int r = phase; r < ROWS; r += STRIDE) {
                    float (&s)[2][2] = sum[(step + kLive - r / STRIDE) % kLive];
#pragma unroll
                    for (int k = 0; k < kPairs; k++) {
                        mma<T, T>(s[0], s[1], a[k], filter[r][2 * k], filter[r][2 * k + 1]);
                    }
                    if constexpr (kOdd) mma_half<T>(s[0], s[1], a[kPairs][0], a[kPairs][1], filter[r][COLUMNS - 1]);
                }
                const int done = first + step;  // the output row that is complete now
                if (phase != (ROWS - 1) % STRIDE) continue;
                float (&complete)[2][2] = sum[(step + 1) % kLive];
                probe = fmaf(0.0f, complete[1][0], fmaf(0.0f, complete[0][0], probe));
                if (RESIDUAL && again == kNever && __any_sync(0xffffffffu, probe != probe)) again = done;

                // Store.
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    if (uint32(done) < uint32(count[half]) && (!RESIDUAL || done < again)) {
                        if constexpr (RESIDUAL) {
                            const Vector<Y, 2> extra = load<Y, 2, false>(added[half]);
                            complete[half][0] += element<float>(extra, 0);
                            complete[half][1] += element<float>(extra, 1);
                        }
#pragma unroll
                        for (float& v : complete[half]) v = epilogue.activate(v);
                        store(to[half], pack<Y>(complete[half]));
                    }
                    to[half] += opaque(y_row);
                    if constexpr (RESIDUAL) added[half] += opaque(y_row);
                }
            }
            if (!RESIDUAL && __any_sync(0xffffffffu, probe != probe)) again = first;
            if (again == kNever) continue;
            const int until = (min_of(input + kInputs, end) - ROWS) / STRIDE + 1;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const MmaUnit unit(p, block, opaque(2 * tile + half), g);
                exact_rows<ROWS, COLUMNS, STRIDE, RESIDUAL>(p, x, w, residual, y, unit, channel, max_of(again, 0),
                                                            until, start, epilogue);
            }
        }
    }
}
