// The three stages of an inverted residual on one block's tile in shared memory: see inverted_residual.cu.
#pragma once
#include "across_blocks.cuh"
#include "epilogue.cuh"
#include "tensor_core.cuh"

struct InvertedResidualParams {
    int32 in[2];  // rows, columns
    int32 out[2];
    int32 padding[2];    // of the depthwise convolution, low side
    int32 expanded;      // channels of the depthwise convolution
    int32 column_tiles;  // blocks along the columns and rows of an image
    int32 row_tiles;
    int32 slabs;      // of SLAB expanded channels
    int32 splits;     // blocks that share the slabs of a tile
    double alpha[3];  // of the activations after the expansion, the depthwise convolution and the projection
    double beta[3];
};
static_assert(sizeof(InvertedResidualParams) == 96, "gpu_conv/families/inverted_residual.py packs this struct");

// Bytes of a line of 16-byte chunks: an odd number of them, so that 8 successive lines lie in different banks.
__host__ __device__ constexpr int line_bytes(int channels) { return (ceil_div(channels, 8) | 1) * 16; }

// The tile of a block, what of it lies where in shared memory, and where the parts of a slab of weights lie.
template <int IN, int OUT, int STRIDE, bool EXPAND, int ROWS, int COLUMNS, int SLAB, int PIXEL_WARPS, int RUN>
struct ResidualTile {
    static_assert(IN % 8 == 0 && OUT % 8 == 0, "channels are moved 16 bytes at a time");
    static_assert(SLAB % 32 == 0 && 8 % (SLAB / 32) == 0, "8 warps share the 32-channel parts of a slab");
    static_assert(8 % PIXEL_WARPS == 0 && COLUMNS % RUN == 0, "warps and runs divide the tile");
    static constexpr int kThreads = 256, kStride = STRIDE, kRows = ROWS, kColumns = COLUMNS, kSlab = SLAB, kRun = RUN;
    static constexpr int kIn = IN, kOut = OUT, kPixels = ROWS * COLUMNS;
    static constexpr int kInRows = (ROWS - 1) * STRIDE + 3, kInColumns = (COLUMNS - 1) * STRIDE + 3;
    static constexpr int kInPixels = kInRows * kInColumns;
    static constexpr int kInSteps = ceil_div(IN, 16);  // of the k axis of the expansion

    // Warps of the projection: PIXEL_WARPS along pixels, the others along output channels.
    static constexpr int kChannelWarps = 8 / PIXEL_WARPS;
    static constexpr int kPixelTiles = ceil_div(kPixels, 16 * PIXEL_WARPS);          // of 16, per warp
    static constexpr int kChannelTiles = ceil_div(ceil_div(OUT, 8), kChannelWarps);  // of 8, per warp
    static constexpr int kProductRows = kPixelTiles * 16 * PIXEL_WARPS;

    // A slab of weights: filters of the expansion as lines of input channels, of the projection as lines of the slab's
    // channels, then float32: 9 taps x SLAB, bias of the expansion, bias of the depthwise convolution.
    static constexpr int kInLine = line_bytes(kInSteps * 16), kSlabLine = line_bytes(SLAB);
    static constexpr int kProject = EXPAND ? SLAB * kInLine : 0;
    static constexpr int kTaps = kProject + OUT * kSlabLine;
    static constexpr int kExpandBias = kTaps + 9 * SLAB * 4;
    static constexpr int kDepthwiseBias = kExpandBias + (EXPAND ? SLAB * 4 : 0);
    static constexpr int kWeights = kDepthwiseBias + SLAB * 4;

    // Shared memory: input, expanded input, result of the depthwise convolution, table of pixels, two slabs of weights.
    // The results take the place of all but the input in the end.
    static constexpr int kExpanded = kInPixels * kInLine;
    static constexpr int kDepthwise = kExpanded + (EXPAND ? kInPixels * kSlabLine : 0);
    static constexpr int kTable = kDepthwise + kProductRows * kSlabLine;
    static constexpr int kSlabs = kTable + ceil_div(EXPAND ? ceil_div(kInPixels, 16) * 32 : 0, 16) * 16;
    static constexpr int kOutLine = line_bytes(OUT);
    static constexpr int kShared = max_of(kSlabs + 2 * kWeights, kExpanded + kPixels * kOutLine);
};

// Zeros outside of the image: the padding of the depthwise convolution where nothing is expanded.
template <class Tile, class T>
DEVICE void load_input(uint32 to, const T* image, const InvertedResidualParams& p, int top, int left) {
    constexpr int kChunks = Tile::kInSteps * 2;
    for (int i = threadIdx.x; i < Tile::kInPixels * kChunks; i += Tile::kThreads) {
        const int pixel = i / kChunks, chunk = i % kChunks;
        const int row = top + pixel / Tile::kInColumns, column = left + pixel % Tile::kInColumns;
        const bool valid = uint32(row) < uint32(p.in[0]) && uint32(column) < uint32(p.in[1]) && chunk < Tile::kIn / 8;
        const int offset = valid ? (row * p.in[1] + column) * Tile::kIn + chunk * 8 : 0;
        copy_async<16>(to + pixel * Tile::kInLine + chunk * 16, image + offset, valid);
    }
}

template <class Tile>
DEVICE void load_weights(uint32 to, const uint8* slab) {
    for (int i = threadIdx.x; i < Tile::kWeights / 16; i += Tile::kThreads) {
        copy_async<16>(to + i * 16, slab + i * 16, true);
    }
}

// Which pixels of the tile lie inside the image, one after the other: only they are expanded.
template <class Tile>
DEVICE int list_pixels(uint16* table, const InvertedResidualParams& p, int top, int left) {
    const int first_row = max_of(0, -top), rows = min_of(Tile::kInRows, p.in[0] - top) - first_row;
    const int first_column = max_of(0, -left), columns = min_of(Tile::kInColumns, p.in[1] - left) - first_column;
    const int count = max_of(0, rows) * max_of(0, columns);
    for (int i = threadIdx.x; i < ceil_div(Tile::kInPixels, 16) * 16; i += Tile::kThreads) {
        const int row = i / max_of(1, columns);
        const int pixel = (first_row + row) * Tile::kInColumns + first_column + i - row * columns;
        table[i] = uint16(i < count ? pixel : 0);
    }
    return count;
}

// Stage 1: expanded[pixel][SLAB] = act(x * filters + bias) for the listed pixels. A warp holds the filters of 32
// channels in registers and walks over 16 pixels at a time.
template <class Tile, class T, class Act>
DEVICE void expand(unsigned char* shared, uint32 base, int weights, const uint16* table, int count, const Act& act) {
    constexpr int kParts = Tile::kSlab / 32, kWarps = 8 / kParts, kSteps = Tile::kInSteps;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = warp / kWarps * 32;
    uint32 filter[kSteps][2][4];
#pragma unroll
    for (int k = 0; k < kSteps; k++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int line = first + j * 16 + lane % 8 + lane / 16 * 8;
            ldmatrix_x4(filter[k][j], base + weights + line * Tile::kInLine + (k * 2 + lane / 8 % 2) * 16);
        }
    }
    const float* const bias =
        reinterpret_cast<const float*>(shared + weights + Tile::kExpandBias) + first + lane % 4 * 2;
    for (int i = warp % kWarps * 16; i < count; i += kWarps * 16) {
        float top[4][2], bottom[4][2];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            top[j][0] = bottom[j][0] = bias[j * 8];
            top[j][1] = bottom[j][1] = bias[j * 8 + 1];
        }
        const uint32 line = base + table[i + lane % 16] * Tile::kInLine + lane / 16 * 16;
#pragma unroll
        for (int k = 0; k < kSteps; k++) {
            uint32 a[4];
            ldmatrix_x4(a, line + k * 32);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                mma<T, T>(top[j], bottom[j], a, filter[k][j / 2][j % 2 * 2], filter[k][j / 2][j % 2 * 2 + 1]);
            }
        }
        const int channel = (first + lane % 4 * 2) * 2;  // in bytes
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int at = i + lane / 4 + half * 8;
            if (at >= count) continue;
            unsigned char* const to = shared + Tile::kExpanded + table[at] * Tile::kSlabLine + channel;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float (&v)[2] = half ? bottom[j] : top[j];
                *reinterpret_cast<uint32*>(to + j * 16) = from_accumulators<T>(act.activate(v[0]), act.activate(v[1]));
            }
        }
    }
}

// Stage 2: the 3x3 convolution of 4 channels x RUN neighbouring outputs per thread; channels from `live` on are zero,
// also where x is infinite.
template <class Tile, class T, class Act>
DEVICE void convolve(unsigned char* shared, int from, int from_line, int weights, int live, const Act& act) {
    constexpr int kLanes = Tile::kSlab / 4, kRun = Tile::kRun, kReach = (kRun - 1) * Tile::kStride + 3;
    const float* const taps = reinterpret_cast<const float*>(shared + weights + Tile::kTaps);
    const float* const bias = reinterpret_cast<const float*>(shared + weights + Tile::kDepthwiseBias);
    for (int i = threadIdx.x; i < Tile::kPixels / kRun * kLanes; i += Tile::kThreads) {
        const int channel = i % kLanes * 4, pixel = i / kLanes * kRun;
        const int row = pixel / Tile::kColumns * Tile::kStride, column = pixel % Tile::kColumns * Tile::kStride;
        unsigned char* const to = shared + Tile::kDepthwise + pixel * Tile::kSlabLine + channel * 2;
        float sum[kRun][4];
#pragma unroll
        for (int q = 0; q < kRun; q++) unpack(load<float, 4, false>(bias + channel), sum[q]);
        if (channel < live) {
#pragma unroll
            for (int r = 0; r < 3; r++) {
                float tap[3][4];
#pragma unroll
                for (int s = 0; s < 3; s++) {
                    unpack(load<float, 4, false>(taps + (r * 3 + s) * Tile::kSlab + channel), tap[s]);
                }
                const unsigned char* const line =
                    shared + from + ((row + r) * Tile::kInColumns + column) * from_line + channel * 2;
#pragma unroll
                for (int j = 0; j < kReach; j++) {
                    float in[4];
                    unpack(load<T, 4, false>(reinterpret_cast<const T*>(line + j * from_line)), in);
#pragma unroll
                    for (int q = 0; q < kRun; q++) {
                        const int s = j - q * Tile::kStride;
                        if (s < 0 || s >= 3) continue;
#pragma unroll
                        for (int c = 0; c < 4; c++) sum[q][c] = multiply_add(in[c], tap[s][c], sum[q][c]);
                    }
                }
            }
        }
#pragma unroll
        for (int q = 0; q < kRun; q++) {
#pragma unroll
            for (float& v : sum[q]) v = channel < live ? act.activate(v) : 0.0f;
            store(reinterpret_cast<T*>(to + q * Tile::kSlabLine), pack<T>(sum[q]));
        }
    }
}

// Stage 3: the sums of this warp's pixels and output channels, kept in registers over all slabs.
template <class Tile, class T>
struct Projection {
    static constexpr int kRows = 2 * Tile::kPixelTiles, kColumns = Tile::kChannelTiles, kRun = 2;
    float sum[kRows][kColumns][kRun];  // rows i * 8 + lane / 4, columns j * 8 + lane % 4 * 2 and the next
    int first_pixel, first_tile;

    DEVICE Projection() {
        const int warp = threadIdx.x / 32;
        first_pixel = warp / Tile::kChannelWarps * Tile::kPixelTiles * 16;
        first_tile = warp % Tile::kChannelWarps * Tile::kChannelTiles;
    }

    DEVICE int pixel(int i) const { return first_pixel + i * 8 + threadIdx.x % 32 / 4; }
    DEVICE int channel(int j) const { return (first_tile + j) * 8 + threadIdx.x % 4 * 2; }

    DEVICE void start(const float* bias) {
#pragma unroll
        for (int j = 0; j < Tile::kChannelTiles; j++) {
            const bool present = bias != nullptr && channel(j) < Tile::kOut;
            const float lo = present ? bias[channel(j)] : 0.0f, hi = present ? bias[channel(j) + 1] : 0.0f;
#pragma unroll
            for (auto& row : sum) row[j][0] = lo, row[j][1] = hi;
        }
    }

    DEVICE void add(uint32 depthwise, uint32 filters) {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int k = 0; k < Tile::kSlab / 16; k++) {
            uint32 a[Tile::kPixelTiles][4];
#pragma unroll
            for (int i = 0; i < Tile::kPixelTiles; i++) {
                const int line = first_pixel + i * 16 + lane % 16;
                ldmatrix_x4(a[i], depthwise + line * Tile::kSlabLine + (k * 2 + lane / 16) * 16);
            }
#pragma unroll
            for (int j = 0; j < Tile::kChannelTiles; j += 2) {
                uint32 b[4];
                // Lines beyond the last filter repeat the first: their products are not stored.
                const int line = (first_tile + j) * 8 + lane % 8 + lane / 16 * 8;
                const uint32 at = filters + (line < Tile::kOut ? line : 0) * Tile::kSlabLine;
                ldmatrix_x4(b, at + (k * 2 + lane / 8 % 2) * 16);
#pragma unroll
                for (int i = 0; i < Tile::kPixelTiles; i++) {
                    mma<T, T>(sum[2 * i][j], sum[2 * i + 1][j], a[i], b[0], b[1]);
                    if (j + 1 < Tile::kChannelTiles) {
                        mma<T, T>(sum[2 * i][j + 1], sum[2 * i + 1][j + 1], a[i], b[2], b[3]);
                    }
                }
            }
        }
    }

    // Each sum through `finish(value, pixel, channel)`, rounded once, as lines of output channels.
    template <class Finish>
    DEVICE void stage(unsigned char* lines, const Finish& finish) const {
#pragma unroll
        for (int i = 0; i < 2 * Tile::kPixelTiles; i++) {
#pragma unroll
            for (int j = 0; j < Tile::kChannelTiles; j++) {
                if (pixel(i) >= Tile::kPixels || channel(j) >= Tile::kOut) continue;
                float v[2] = {sum[i][j][0], sum[i][j][1]};
                finish(v, pixel(i), channel(j));
                *reinterpret_cast<uint32*>(lines + pixel(i) * Tile::kOutLine + channel(j) * 2) =
                    from_accumulators<T>(v[0], v[1]);
            }
        }
    }
};
