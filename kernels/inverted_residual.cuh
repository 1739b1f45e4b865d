// The three stages of an inverted residual on one block's tile in shared memory: see inverted_residual.cu.
#pragma once
#include "across_blocks.cuh"
#include "pairs.cuh"
#include "tensor_core.cuh"

struct InvertedResidualParams {
    int32 in[2];  // rows, columns
    int32 out[2];
    int32 padding[2];  // of the depthwise convolution, low side
    int32 expanded;    // channels of the depthwise convolution
    int32 slabs;       // of SLAB expanded channels
    int32 splits;      // blocks that share the slabs of a tile
    double alpha[3];   // of the activations after the expansion, the depthwise convolution and the projection
    double beta[3];
};
static_assert(sizeof(InvertedResidualParams) == 88, "gpu_conv/families/inverted_residual.py packs this struct");

// Bytes of a line of 16-byte chunks: an odd number of them, so that 8 successive lines lie in different banks.
__host__ __device__ constexpr int line_bytes(int channels) { return (ceil_div(channels, 8) | 1) * 16; }

// The tile of a block, what of it lies where in shared memory, and where the parts of a slab of weights lie.
template <int IN, int OUT, int STRIDE, bool EXPAND, int ROWS, int COLUMNS, int SLAB, int PIXEL_WARPS>
struct ResidualTile {
    static_assert(IN % 8 == 0 && OUT % 8 == 0, "channels are moved 16 bytes at a time");
    static_assert(SLAB % 32 == 0 && 8 % (SLAB / 32) == 0, "8 warps share the 32-channel parts of a slab");
    static_assert(8 % PIXEL_WARPS == 0, "warps divide the pixels");
    static constexpr int kThreads = 256, kStride = STRIDE, kRows = ROWS, kColumns = COLUMNS, kSlab = SLAB;
    static constexpr int kIn = IN, kOut = OUT, kPixels = ROWS * COLUMNS;
    static constexpr int kInRows = (ROWS - 1) * STRIDE + 3, kInColumns = (COLUMNS - 1) * STRIDE + 3;
    static constexpr int kInPixels = kInRows * kInColumns;
    static constexpr int kInSteps = ceil_div(IN, 16);  // of the k axis of the expansion

    // Streams of the depthwise convolution: 8 columns of a band of rows. Two of them and 8 channels are a warp's unit.
    static constexpr int kGroups = SLAB / 8, kStrips = ceil_div(COLUMNS, 8);
    static constexpr int kBands = max_of(1, 16 / (kGroups * kStrips)), kBandRows = ceil_div(ROWS, kBands);
    static constexpr int kUnits = kGroups * kStrips * kBands / 2;
    static_assert(kStrips * kBands % 2 == 0, "streams come in pairs");

    // Warps of the projection: PIXEL_WARPS along pixels, the others along output channels.
    static constexpr int kChannelWarps = 8 / PIXEL_WARPS;
    static constexpr int kPixelTiles = ceil_div(kPixels, 16 * PIXEL_WARPS);          // of 16, per warp
    static constexpr int kChannelTiles = ceil_div(ceil_div(OUT, 8), kChannelWarps);  // of 8, per warp
    static constexpr int kProductRows = kPixelTiles * 16 * PIXEL_WARPS;

    // A slab of weights: filters of the expansion as lines of input channels, of the projection as lines of the slab's
    // channels, 9 taps x SLAB, then float32: bias of the expansion, bias of the depthwise convolution.
    static constexpr int kInLine = line_bytes(kInSteps * 16), kSlabLine = line_bytes(SLAB);
    static constexpr int kProject = EXPAND ? SLAB * kInLine : 0;
    static constexpr int kTaps = kProject + OUT * kSlabLine;
    static constexpr int kExpandBias = kTaps + 9 * SLAB * 2;
    static constexpr int kDepthwiseBias = kExpandBias + (EXPAND ? SLAB * 4 : 0);
    static constexpr int kWeights = kDepthwiseBias + SLAB * 4;

    // Shared memory: input, expanded input, result of the depthwise convolution, table of pixels, two slabs of weights.
    // The results take the place of all but the input in the end.
    static constexpr int kExpanded = kInPixels * kInLine;
    static constexpr int kDepthwise = kExpanded + (EXPAND ? kInPixels * kSlabLine : 0);
    static constexpr int kTable = kDepthwise + kProductRows * kSlabLine;
    static constexpr int kUnwritten = kDepthwise - kExpanded + kPixels * kSlabLine;  // behind the expanded input
    static constexpr int kSlabs = kTable + ceil_div(EXPAND ? ceil_div(kInPixels, 16) * 32 : 0, 16) * 16;
    static constexpr int kOutLine = line_bytes(OUT);
    static constexpr int kShared = max_of(kSlabs + 2 * kWeights, kExpanded + kPixels * kOutLine);

    // What the depthwise convolution reads: a line per pixel. With stride 2 the even columns of a row come first, then
    // the odd ones: the columns that one tap reads lie side by side, without bank conflicts.
    static constexpr int kSource = EXPAND ? kExpanded : 0, kLine = EXPAND ? kSlabLine : kInLine;
    static __host__ DEVICE constexpr int place(int row, int column) {
        return row * kInColumns + (STRIDE == 1 ? column : column % 2 * ceil_div(kInColumns, 2) + column / 2);
    }
};

// Pixels of a tile that a thread moves, one chunk of 16 bytes of every so many: where they lie changes by constants.
template <int COLUMNS, int PIXELS, int CHUNKS, int THREADS, class Move>
DEVICE void for_each_pixel(Move move) {
    static_assert(CHUNKS <= THREADS, "a thread takes one chunk of a pixel");
    constexpr int kStep = THREADS / CHUNKS;
    const int first = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS;
    int row = first / COLUMNS, column = first % COLUMNS;
#pragma unroll
    for (int i = 0; i < PIXELS; i += kStep) {
        if (first < min_of(kStep, PIXELS - i)) move(first + i, row, column, chunk);
        row += kStep / COLUMNS, column += kStep % COLUMNS;
        if (column >= COLUMNS) column -= COLUMNS, row++;
    }
}

// Zeros outside of the image: the padding of the depthwise convolution where nothing is expanded.
template <class Tile, class T>
DEVICE void load_input(uint32 to, const T* image, const InvertedResidualParams& p, int top, int left) {
    for_each_pixel<Tile::kInColumns, Tile::kInPixels, Tile::kInSteps * 2, Tile::kThreads>([&](int pixel, int row,
                                                                                              int column, int chunk) {
        const int place = Tile::kStride == 1 ? pixel : Tile::place(row, column);
        row += top, column += left;
        const bool valid = uint32(row) < uint32(p.in[0]) && uint32(column) < uint32(p.in[1]) && chunk < Tile::kIn / 8;
        const int offset = valid ? (row * p.in[1] + column) * Tile::kIn + chunk * 8 : 0;
        copy_async<16>(to + place * Tile::kInLine + chunk * 16, image + offset, valid);
    });
}

template <class Tile>
DEVICE void load_weights(uint32 to, const uint8* slab) {
    constexpr int kBytes = Tile::kThreads * 16;
#pragma unroll
    for (int i = 0; i < Tile::kWeights; i += kBytes) {
        const int at = i + threadIdx.x * 16;
        if (i + kBytes <= Tile::kWeights || at < Tile::kWeights) copy_async<16>(to + at, slab + at, true);
    }
}

// Where the pixels of the tile lie that are inside the image, one after the other: only they are expanded.
template <class Tile>
DEVICE int list_pixels(uint16* table, const InvertedResidualParams& p, int top, int left) {
    const int first_row = max_of(0, -top), rows = max_of(0, min_of(Tile::kInRows, p.in[0] - top) - first_row);
    const int first_column = max_of(0, -left);
    const int columns = max_of(0, min_of(Tile::kInColumns, p.in[1] - left) - first_column);
    for_each_pixel<Tile::kInColumns, Tile::kInPixels, 1, Tile::kThreads>([&](int, int row, int column, int) {
        const int r = row - first_row, c = column - first_column;
        if (uint32(r) < uint32(rows) && uint32(c) < uint32(columns)) table[r * columns + c] = Tile::place(row, column);
    });
    const int end = rows * columns + threadIdx.x;  // a warp takes 16 pixels: those behind the last one are any
    if (threadIdx.x < 16 && end < ceil_div(Tile::kInPixels, 16) * 16) table[end] = 0;
    return rows * columns;
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
                *reinterpret_cast<uint32*>(to + j * 16) = activate_pair<T>(act, v[0], v[1]);
            }
        }
    }
}

// Eight columns of a band of rows, of which a lane has column g. Bands differ by a row at most; kBandRows is the
// larger number, and a shorter band computes a row of the next one in vain.
template <class Tile>
struct ResidualStream {
    int column, first_row, rows;

    DEVICE ResidualStream(int stream, int g) {
        const int band = stream / Tile::kStrips;
        column = stream % Tile::kStrips * 8 + g, first_row = band * Tile::kRows / Tile::kBands;
        rows = (band + 1) * Tile::kRows / Tile::kBands - first_row;
    }

    // Two channels of a row. Rows below the first limit are there in every band.
    DEVICE void put(unsigned char* shared, int row, int channel, uint32 word) const {
        if (column >= Tile::kColumns || (row >= Tile::kRows / Tile::kBands && row >= rows)) return;
        const int pixel = (first_row + row) * Tile::kColumns + column;
        *reinterpret_cast<uint32*>(shared + Tile::kDepthwise + pixel * Tile::kSlabLine + channel * 2) = word;
    }
};

// Two channels of two streams, tap by tap: other channels play no part. Those from `live` on are zero.
template <class Tile, class T, class Act>
DEVICE void convolve_exactly(unsigned char* shared, int from, int weights, int live, const Act& act, int pair,
                             int channel, const float (&start)[2]) {
    const T* const taps = reinterpret_cast<const T*>(shared + weights + Tile::kTaps) + channel;
#pragma unroll 1
    for (int i = 0; i < 2 * Tile::kBandRows; i++) {
        const ResidualStream<Tile> stream(pair + i % 2, threadIdx.x % 32 / 4);
        const int row = (stream.first_row + i / 2) * Tile::kStride;
        const int column = min_of(stream.column, Tile::kColumns - 1) * Tile::kStride;
        float sum[2] = {start[0], start[1]};
#pragma unroll 1
        for (int tap = 0; tap < 9 && channel < live; tap++) {
            const int place = Tile::place(row + tap / 3, column + tap % 3) * Tile::kLine;
            const T* const in = reinterpret_cast<const T*>(shared + from + place) + channel;
#pragma unroll
            for (int c = 0; c < 2; c++) {
                sum[c] = fmaf(to_accumulator<float>(in[c]), to_accumulator<float>(taps[tap * Tile::kSlab + c]), sum[c]);
            }
        }
        stream.put(shared, i / 2, channel, channel < live ? activate_pair<T>(act, sum[0], sum[1]) : 0);
    }
}

// Stage 2: the 3x3 convolution on the tensor cores. 8 channels of 16 pixels times a diagonal matrix are a tap; two taps
// of a filter row are one product: y[pixel][channel] += [x[pixel] | x[pixel + 1]] * [diag(w[r][0]); diag(w[r][1])], the
// third takes one of half the depth. A warp walks down the rows of two streams, whose fragments are read once for three
// filter rows. The zeros beside the diagonal make NaN of Inf and NaN in the other channels of a group: where a sum is
// NaN, the streams are computed again tap by tap. Groups from channel `live` on are zero, also where x is infinite.
template <class Tile, class T, class Act>
DEVICE void convolve(unsigned char* shared, uint32 base, int from, int weights, int live, const Act& act) {
    constexpr int kStride = Tile::kStride, kInputs = (Tile::kBandRows - 1) * kStride + 3;
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint32 diagonal = t == g / 2 ? 1u << 16 * (g % 2) : 0;
#pragma unroll 1
    for (int first = 0; first < Tile::kUnits; first += 8) {
        const int unit = first + threadIdx.x / 32;
        if (Tile::kUnits % 8 && unit >= Tile::kUnits) break;
        const int group = unit % Tile::kGroups * 8, pair = unit / Tile::kGroups * 2, channel = group + 2 * t;
        const ResidualStream<Tile> streams[2] = {{pair, g}, {pair + 1, g}};
        uint32 filter[3][3];
        float start[2];
        const uint16* const taps = reinterpret_cast<const uint16*>(shared + weights + Tile::kTaps) + group + g;
        const float* const bias = reinterpret_cast<const float*>(shared + weights + Tile::kDepthwiseBias);
#pragma unroll
        for (int tap = 0; tap < 9; tap++) filter[tap / 3][tap % 3] = taps[tap * Tile::kSlab] * diagonal;
        unpack(load<float, 2, false>(bias + channel), start);

        // The line that this lane names: matrices 0 and 1 are the streams at one tap, 2 and 3 at the next one. Columns
        // beyond the tile repeat the last one.
        const ResidualStream<Tile> named(pair + lane / 8 % 2, lane % 8);
        const int column = min_of(named.column, Tile::kColumns - 1) * kStride;
        const uint32 line =
            base + from + group * 2 + Tile::place(named.first_row * kStride, column + lane / 16) * Tile::kLine;
        float sum[Tile::kBandRows][2][2], probe = 0.0f;  // output row; stream; channel
        bool again = group >= live;
        if (!again) {
#pragma unroll
            for (int i = 0; i < kInputs; i++) {
                uint32 a[4], last[2];
                ldmatrix_x4(a, line + Tile::place(i, 0) * Tile::kLine);
                ldmatrix_x2(last[0], last[1], line + Tile::place(i, 2) * Tile::kLine);
#pragma unroll
                for (int r = 0; r < 3; r++) {
                    const int row = (i - r) / kStride;
                    if (i < r || (i - r) % kStride || row >= Tile::kBandRows) continue;
                    float (&s)[2][2] = sum[row];
                    if (r == 0) s[0][0] = s[1][0] = start[0], s[0][1] = s[1][1] = start[1];
                    mma<T, T>(s[0], s[1], a, filter[r][0], filter[r][1]);
                    mma_half<T>(s[0], s[1], last[0], last[1], filter[r][2]);
                }
                const int done = (i - 2) / kStride;
                if (i < 2 || (i - 2) % kStride) continue;
                probe = fmaf(0.0f, sum[done][1][0], fmaf(0.0f, sum[done][0][0], probe));
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const uint32 word = activate_pair<T>(act, sum[done][half][0], sum[done][half][1]);
                    streams[half].put(shared, done, channel, word);
                }
            }
            again = __any_sync(0xffffffffu, probe != probe);
        }
        if (again) {
            convolve_exactly<Tile, T>(shared, from, weights, live, act, pair, channel, start);
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
