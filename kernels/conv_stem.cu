// Dense 2-D convolution of pictures: 1 to 4 input channels, channels last, 16-bit floats; the first layer of networks.
//
// A filter row of COLUMNS taps and all input channels is one run of neighbouring elements of x: of the product
//     y[pixel][channel] = sum over filter rows r and k of x[run of the pixel in row r][k] * w[r][k][channel]
// every operand word is a word of x as it lies in memory. Runs begin at even elements (STRIDE * CHANNELS is even, SHIFT
// takes one element more on the left where the padding is odd); the elements before and behind them are masked out.
//
// Block: `tile_rows` output rows x `tile_units` units of 16 pixels of one image, 32 output channels. The input
//        rows lie in shared memory as they come. Warp: one unit at a time, 16 pixels x all channels of the block.
// Lane: of pixel g and g + 8 of the unit, 8 neighbouring channels, 16 bytes of 16-bit outputs: column n
// of
//        tile j of the product is channel n / 2 * 8 + 2 j + n % 2. The filter stays in registers.
// Traffic: input rows (tile_rows * STRIDE + ROWS - STRIDE) / (tile_rows * STRIDE) times from the caches, y once.
// Limits: pixels of x and channels of y contiguous, rows of x and all strides of y aligned to COPY and 16 bytes, an
// image shorter than 2^31 elements; no residual.
#include "epilogue.cuh"
#include "tensor_core.cuh"

struct ConvStemParams {
    int64 x_image;
    int64 y_image;
    double alpha;
    double beta;
    int32 x_row;
    int32 y_row;
    int32 y_column;
    int32 w_out;
    int32 w_channel;
    int32 w_row;
    int32 w_column;
    int32 in_rows;
    int32 in_run;  // elements of a row of x
    int32 out_rows;
    int32 out_columns;
    int32 out_channels;
    int32 padding_rows;
    int32 first;  // element of a row of x with which the shared rows of the first tile begin: a multiple of COPY
    int32 lead;   // elements from there to the run of the first pixel
    int32 tile_rows;
    int32 tile_units;
    int32 row_tiles;
    int32 column_tiles;
    int32 pitch;  // bytes of a shared row
};
static_assert(sizeof(ConvStemParams) == 112, "gpu_conv/families/stem.py packs this struct");

constexpr int kStemThreads = 256, kStemWarps = kStemThreads / 32;
constexpr int kUnit = 16;   // pixels
constexpr int kGroup = 32;  // output channels

// The bits of a word of elements 2i and 2i + 1 of a run that begins at element SHIFT and has RUN of them.
template <int SHIFT, int RUN>
DEVICE uint32 run_mask(int element) {
    const bool low = element >= SHIFT && element < SHIFT + RUN, high = element + 1 < SHIFT + RUN;
    return (low ? 0x0000ffffu : 0u) | (high ? 0xffff0000u : 0u);
}

template <class T, class B, class Y, int CHANNELS, int ROWS, int COLUMNS, int STRIDE, int SHIFT, int COPY, int ACT,
          int MIN_BLOCKS>
__global__ void __launch_bounds__(kStemThreads, MIN_BLOCKS)
    conv_stem(const T* x, const T* w, const B* bias, const Y*, const int32*, const int32*, Y* y, void*,
              const ConvStemParams p) {
    static_assert(sizeof(T) == 2, "the products take 16-bit elements");
    static_assert(STRIDE * CHANNELS % 2 == 0 && SHIFT >= 0 && SHIFT <= 1, "runs begin at even elements");
    constexpr int kRun = COLUMNS * CHANNELS, kSteps = ceil_div(SHIFT + kRun, 16);
    constexpr int kPixelBytes = STRIDE * CHANNELS * int(sizeof(T));
    extern __shared__ __align__(16) unsigned char shared[];
    const uint32 base = shared_address(shared);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int row_tile = blockIdx.x / uint32(p.column_tiles), column_tile = blockIdx.x - row_tile * p.column_tiles;
    const int image = row_tile / p.row_tiles, first_row = (row_tile - image * p.row_tiles) * p.tile_rows;
    const int first_column = column_tile * p.tile_units * kUnit;

    // Load.
    x += image * p.x_image;
    const int from = p.first + first_column * STRIDE * CHANNELS, rows = (p.tile_rows - 1) * STRIDE + ROWS;
    for (int r = warp; r < rows; r += kStemWarps) {
        const int row = first_row * STRIDE - p.padding_rows + r;
        const bool inside = uint32(row) < uint32(p.in_rows);
        for (int i = lane; i < p.pitch / COPY; i += 32) {
            const int element = from + i * (COPY / int(sizeof(T)));
            const bool valid = inside && uint32(element) < uint32(p.in_run);
            copy_async<COPY>(base + r * p.pitch + i * COPY, x + (valid ? row * p.x_row + element : 0), valid);
        }
    }
    copy_commit();
    uint32 filter[ROWS][kSteps][4][2];
    float start[8];
    const int channels = blockIdx.y * kGroup;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int channel = channels + g / 2 * 8 + 2 * j + g % 2;
#pragma unroll
        for (int i = 0; i < ROWS * kSteps * 2; i++) {
            const int r = i / (kSteps * 2), word = i % (kSteps * 2);
            uint32 bits = 0;
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int k = word * 8 + 2 * t + e - SHIFT;
                const int tap = r * p.w_row + k / CHANNELS * p.w_column + k % CHANNELS * p.w_channel;
                const bool present = k >= 0 && k < kRun && channel < p.out_channels;
                if (present) bits |= uint32(w[channel * p.w_out + tap].bits) << 16 * e;
            }
            filter[r][word / 2][j][word % 2] = bits;
        }
    }
#pragma unroll
    for (int e = 0; e < 8; e++) {
        const int channel = channels + t * 8 + e;
        start[e] = bias != nullptr && channel < p.out_channels ? fetch<float>(bias + channel) : 0.0f;
    }
    uint32 mask[kSteps][2];
#pragma unroll
    for (int i = 0; i < kSteps * 2; i++) mask[i / 2][i % 2] = run_mask<SHIFT, kRun>(i * 8 + 2 * t);
    copy_wait<0>();
    __syncthreads();

    const Epilogue<ACT, float> epilogue(p.alpha, p.beta);
    y += image * p.y_image + int64(first_row) * p.y_row + int64(first_column) * p.y_column;
#pragma unroll 1
    for (int unit = warp; unit < p.tile_rows * p.tile_units; unit += kStemWarps) {
        const int row = unit / p.tile_units, column = (unit - row * p.tile_units) * kUnit + g;

        // Compute.
        float sum[4][2][2];  // tile; pixel g or g + 8; channel
#pragma unroll
        for (int i = 0; i < 16; i++) sum[i / 4][i / 2 % 2][i % 2] = start[i / 4 * 2 + i % 2];
        const uint32 at = base + row * STRIDE * p.pitch + column * kPixelBytes + p.lead * int(sizeof(T)) + 4 * t;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
#pragma unroll
            for (int s = 0; s < kSteps; s++) {
                uint32 a[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    a[i] = shared_load_4(at + r * p.pitch + s * 32 + i / 2 * 16 + i % 2 * 8 * kPixelBytes) &
                           mask[s][i / 2];
                }
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    mma<T, T>(sum[j][0], sum[j][1], a, filter[r][s][j][0], filter[r][s][j][1]);
                }
            }
        }

        // Store.
        const int channel = channels + t * 8;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int q = column + half * 8;
            if (first_row + row >= p.out_rows || first_column + q >= p.out_columns || channel >= p.out_channels)
                continue;
            float finished[8];
#pragma unroll
            for (int e = 0; e < 8; e++) finished[e] = epilogue.activate(sum[e / 2][half][e % 2]);
            store(y + (row * p.y_row + q * p.y_column + channel), pack<Y>(finished));
        }
    }
}
