// Geometry of the haloed tile of conv_tile.cu, and the copies of pixels and filters into shared memory.
#pragma once
#include "phases.cuh"
#include "tensor_core.cuh"

// Strides in elements. A unit is what shares input channels: a group, or the groups of one chunk of 8 channels.
struct ConvTileParams {
    int64 x_image;
    int64 x_channel;
    int64 y_image;
    int64 residual_image;
    int64 w_group;
    int64 w_out;
    int64 w_channel;
    int64 w_row;
    int64 w_column;
    double alpha;
    double beta;
    int32 x_row;
    int32 x_column;
    int32 y_row;
    int32 y_column;
    int32 y_channel;
    int32 residual_row;
    int32 residual_column;
    int32 residual_channel;
    int32 images;
    int32 in_rows;
    int32 in_columns;
    int32 out_rows;
    int32 out_columns;
    int32 padding_rows;
    int32 padding_columns;
    int32 out_per_group;
    int32 units;
    int32 unit_channels;  // of the input
    int32 unit_chunks;    // of 16 bytes
    int32 unit_outputs;
    int32 parts;  // blocks that share the outputs of a unit
    int32 slabs;  // of the input channels
    int32 row_tiles;
    int32 column_tiles;
    int32 workers;      // blocks that share the tiles of one set of outputs
    int32 step_images;  // workers tiles further on, in tiles along each axis
    int32 step_rows;
    int32 step_columns;
};
static_assert(sizeof(ConvTileParams) == 200, "gpu_conv/families/tile.py packs this struct");

// The filter is a template argument, and what of it a phase has is in Taps.
DEVICE void set_geometry(ConvTileParams& p, const int32 (&padding)[3], const int32 (&)[3]) {
    p.padding_rows = padding[1], p.padding_columns = padding[2];
}

// Channels of 16 bytes, the unit of every copy and half of a product's k.
template <class T>
inline constexpr int kChunkChannels = 16 / int(sizeof(T));

template <int ROWS, int COLUMNS, int STRIDE_ROWS, int STRIDE_COLUMNS, int DILATION_ROWS, int DILATION_COLUMNS>
struct Filter {
    static constexpr int kRows = ROWS, kColumns = COLUMNS, kTaps = ROWS * COLUMNS;
    static constexpr int kStrideRows = STRIDE_ROWS, kStrideColumns = STRIDE_COLUMNS;
    static constexpr int kDilationRows = DILATION_ROWS, kDilationColumns = DILATION_COLUMNS;
};

// What one block computes. A bar is the 16 pixels of one product: one row of two strips of 8 columns. A warp owns the
// BARS bars of two strips, below each other: an input row then serves every filter row without being read again.
// ALONG_ROW: the bars of a warp follow each other along the row instead (filters of one row).
template <int IMAGES, int ROW_STRIPS, int COLUMN_STRIPS, int BARS, int UNITS, int CHUNKS, int UNIT_TILES, int WARPS_N,
          int STAGES, int RESIDENT, int ALONG_ROW, int BLOCKS>
struct Tile {
    static constexpr int kImages = IMAGES, kRowStrips = ROW_STRIPS, kColumnStrips = COLUMN_STRIPS, kBars = BARS;
    static constexpr int kUnits = UNITS, kChunks = CHUNKS, kUnitTiles = UNIT_TILES;  // chunks of a slab; 8-output tiles
    static constexpr int kStages = STAGES, kBlocks = BLOCKS;
    static constexpr bool kResident = RESIDENT, kAlongRow = ALONG_ROW;
    static constexpr int kWarpsM = IMAGES * ROW_STRIPS * COLUMN_STRIPS / 2, kWarpsN = WARPS_N;
    static constexpr int kWarps = kWarpsM * kWarpsN, kThreads = kWarps * 32;
    static constexpr int kRows = ALONG_ROW ? 1 : ROW_STRIPS * BARS;  // output pixels of the tile
    static constexpr int kColumns = COLUMN_STRIPS * 8 * (ALONG_ROW ? BARS : 1);
    static constexpr int kWarpUnits = UNITS == 1 ? 1 : UNITS / WARPS_N;
    static constexpr int kWarpTiles = UNITS == 1 ? UNIT_TILES / WARPS_N : UNIT_TILES;  // of each unit
    static constexpr int kTiles = kWarpUnits * kWarpTiles;                             // 8 outputs each, of a warp
    static_assert(IMAGES * ROW_STRIPS * COLUMN_STRIPS % 2 == 0, "a warp owns two strips");
    static_assert(kTiles * WARPS_N == UNITS * UNIT_TILES, "the warps share the outputs evenly");
    static_assert(!ALONG_ROW || (IMAGES == 1 && ROW_STRIPS == 1), "a tile along a row is one row");
    static_assert(STAGES >= 2, "one slab is computed while another one arrives");
};

template <class Acc, class TILE>
struct Sums {
    Acc bar[TILE::kBars][TILE::kWarpTiles][2][2];  // of one unit: bar, 8 outputs, strip, neighbouring outputs
};

// visit(sum, column) for every sum of a unit; column: of the unit's outputs that the warp computes.
template <class Acc, class TILE, class Visit>
DEVICE void for_each_sum(Sums<Acc, TILE>& sums, int lane, Visit visit) {
#pragma unroll
    for (auto& bar : sums.bar) {
#pragma unroll
        for (int j = 0; j < TILE::kWarpTiles; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) visit(bar[j][i / 2][i % 2], j * 8 + lane % 4 * 2 + i % 2);
        }
    }
}

// Bytes in shared memory. Pixels and filter lines are an odd number of 16-byte chunks apart: ldmatrix reads 8
// neighbours without bank conflicts and every tap is a constant offset. With a stride, columns of one phase lie side by
// side.
template <class F, class TILE>
struct Layout {
    static constexpr int kRows = (TILE::kRows - 1) * F::kStrideRows + (F::kRows - 1) * F::kDilationRows + 1;
    static constexpr int kColumns =
        (TILE::kColumns - 1) * F::kStrideColumns + (F::kColumns - 1) * F::kDilationColumns + 1;
    static constexpr int kPhase = ceil_div(kColumns, F::kStrideColumns);
    static constexpr int kPixelChunks = TILE::kUnits * TILE::kChunks;
    static constexpr int kPixelBytes = (kPixelChunks | 1) * 16;
    static constexpr int kRowBytes = kPhase * F::kStrideColumns * kPixelBytes;
    static constexpr int kInputBytes = TILE::kImages * kRows * kRowBytes;
    static constexpr int kLineChunks = F::kTaps * TILE::kChunks;
    static constexpr int kLineBytes = (kLineChunks | 1) * 16;
    static constexpr int kLines = TILE::kUnits * TILE::kUnitTiles * 8;
    static constexpr int kFilterBytes = kLines * kLineBytes;
    static constexpr int kStageBytes = kInputBytes + (TILE::kResident ? 0 : kFilterBytes);
    static_assert(kPixelChunks <= 32, "a warp copies at least one pixel at a time");

    static DEVICE constexpr int slot(int column) {
        return column % F::kStrideColumns * kPhase + column / F::kStrideColumns;
    }
};

// A tile of the output, counted in tiles; advance() goes to the next one of this worker without a division.
struct Cursor {
    int image, row, column;

    DEVICE Cursor(int tile, const ConvTileParams& p) {
        const int across = tile / p.column_tiles;
        image = across / p.row_tiles, row = across - image * p.row_tiles, column = tile - across * p.column_tiles;
    }

    DEVICE void advance(const ConvTileParams& p) {
        column += p.step_columns;
        const int next_row = column >= p.column_tiles;
        column -= next_row * p.column_tiles;
        row += p.step_rows + next_row;
        const int next_image = row >= p.row_tiles;
        row -= next_image * p.row_tiles;
        image += p.step_images + next_image;
    }
};

// Chunks [0, end) of every input pixel of a tile; zeros outside the image, of 8-bit elements the word `outside`. A warp
// copies whole rows of the tile (of a tile of one row, parts), neighbouring lanes neighbouring chunks.
template <class T, class F, class TILE>
DEVICE void stage_pixels(uint32 to, const T* x, int end, Cursor at, const ConvTileParams& p, int warp, int lane,
                         uint32 outside) {
    typedef Layout<F, TILE> L;
    lane = opaque(lane), warp = opaque(warp);      // or all of this would stay in registers while products are computed
    constexpr int kPixels = 32 / L::kPixelChunks;  // copied by a warp at once
    constexpr int kTileRows = TILE::kImages * L::kRows, kSplit = kTileRows == 1 ? TILE::kWarps : 1;
    constexpr int kSteps = ceil_div(ceil_div(L::kColumns, kPixels), kSplit);
    const int pixel = (kSplit == 1 ? 0 : warp * kSteps * kPixels) + lane / L::kPixelChunks;
    const int chunk = lane % L::kPixelChunks;
    const bool lane_active = (32 % L::kPixelChunks == 0) | (lane / L::kPixelChunks < kPixels);
    const int first_row = at.row * TILE::kRows * F::kStrideRows - p.padding_rows;
    const int first_column = at.column * TILE::kColumns * F::kStrideColumns - p.padding_columns + pixel;
    bool column_valid[kSteps];
#pragma unroll
    for (int i = 0; i < kSteps; i++) {
        column_valid[i] = (uint32(first_column + i * kPixels) < uint32(p.in_columns)) & (chunk < end);
    }
    // Where a copy is not valid its address may lie anywhere: nothing is read.
    const int64 row_bytes = int64(p.x_row) * sizeof(T), step_bytes = int64(p.x_column) * (kPixels * int(sizeof(T)));
    const char* const tile = reinterpret_cast<const char*>(
        x + int64(at.image) * TILE::kImages * p.x_image + int64(first_column) * p.x_column + chunk * kChunkChannels<T>);
    to += L::slot(pixel) * L::kPixelBytes + chunk * 16;
#pragma unroll 1
    for (int row = kSplit == 1 ? warp : 0; row < kTileRows; row += TILE::kWarps) {
        const int image = TILE::kImages == 1 ? 0 : row / L::kRows, in_row = first_row + row - image * L::kRows;
        const bool row_valid = (uint32(in_row) < uint32(p.in_rows)) & (at.image * TILE::kImages + image < p.images);
        const char* from = tile + in_row * row_bytes;
        if constexpr (TILE::kImages > 1) from += image * p.x_image * int64(sizeof(T));
#pragma unroll
        for (int i = 0; i < kSteps; i++) {
            const int column = i * kPixels + pixel;
            const int slots =
                kPixels % F::kStrideColumns == 0 ? i * kPixels / F::kStrideColumns : L::slot(column) - L::slot(pixel);
            const uint32 place = to + row * L::kRowBytes + slots * L::kPixelBytes;
            const bool valid = row_valid & column_valid[i], active = lane_active & (column < L::kColumns);
            if constexpr (sizeof(T) == 1) {
                copy_async_if(place, from, true, active & valid);
                if (active & !valid) shared_store_16(place, {outside, outside, outside, outside});
            } else {
                copy_async_if(place, from, valid, active);
            }
            from += step_bytes;
        }
    }
}

// The same element by element, for channels of any number, stride and alignment: neighbouring lanes take neighbouring
// pixels, each 16 bytes at a time. first_channel: of the slab, within a unit.
template <class T, class F, class TILE>
DEVICE void gather_pixels(uint32 to, const T* x, int units, int first_channel, Cursor at, const ConvTileParams& p,
                          int warp, int lane, uint32 outside) {
    typedef Layout<F, TILE> L;
    constexpr int kPixels = TILE::kImages * L::kRows * L::kColumns;
    lane = opaque(lane), warp = opaque(warp);
    const int first_row = at.row * TILE::kRows * F::kStrideRows - p.padding_rows;
    const int first_column = at.column * TILE::kColumns * F::kStrideColumns - p.padding_columns;
#pragma unroll 1
    for (int i = warp * 32 + lane; i < kPixels; i += TILE::kThreads) {
        const int row = i / L::kColumns, column = i % L::kColumns;
        const int image = at.image * TILE::kImages + row / L::kRows, in_row = first_row + row % L::kRows;
        const bool inside = (image < p.images) & (uint32(in_row) < uint32(p.in_rows)) &
                            (uint32(first_column + column) < uint32(p.in_columns));
        const T* const pixel =
            x + (image * p.x_image + int64(in_row) * p.x_row + int64(first_column + column) * p.x_column);
        const uint32 pixel_to = to + row * L::kRowBytes + L::slot(column) * L::kPixelBytes;
        // The offsets of 16 elements would stay in registers.
        const int64 pitch = sizeof(T) == 1 ? opaque(int32(p.x_channel)) : p.x_channel;
#pragma unroll(sizeof(T) == 1 ? 1 : 2)
        for (int chunk = 0; chunk < L::kPixelChunks; chunk++) {
            const int unit = chunk / TILE::kChunks, channel = first_channel + chunk % TILE::kChunks * kChunkChannels<T>;
            const T* const from = pixel + (unit * p.unit_channels + channel) * p.x_channel;
            uint32 word[4] = {};
#pragma unroll
            for (int e = 0; e < kChunkChannels<T>; e++) {
                uint32 raw = sizeof(T) == 1 ? outside & 0xff : 0;
                if (inside & (unit < units) & (channel + e < p.unit_channels)) {
                    raw = load<T, 1>(from + e * pitch).word[0];
                }
                word[e * sizeof(T) / 4] |= raw << 8 * (e * sizeof(T) % 4);
            }
            shared_store_16(pixel_to + chunk * 16, word);
        }
    }
}

// Which taps of the filter a block has: all of them, but for phases with different ones.
template <bool UNEVEN>
struct Taps {
    template <class GIVEN>
    DEVICE Taps(const GIVEN&, const Phase&) {}
    DEVICE constexpr bool has_row(int) const { return true; }
    DEVICE constexpr bool has_column(int) const { return true; }
};
template <>
struct Taps<true> {
    int rows, columns;

    template <class PARAMS>
    DEVICE Taps(const Phased<PARAMS>& given, const Phase& phase) {
        rows = given.phases.filter[3 * phase.index + 1], columns = given.phases.filter[3 * phase.index + 2];
    }
    DEVICE bool has_row(int row) const { return row < rows; }
    DEVICE bool has_column(int column) const { return column < columns; }
};

// Sum of the filter of one output over taps and channels, of a unit that is a group, in every lane of the warp.
template <class W, class F, bool COPY, class TAPS>
DEVICE int32 filter_sum(const W* w, int unit, int output, const ConvTileParams& p, int lane, const TAPS& taps) {
    int32 sum = 0;
#pragma unroll 1
    for (int tap = 0; tap < F::kTaps; tap++) {
        if (!taps.has_row(tap / F::kColumns) || !taps.has_column(tap % F::kColumns)) continue;
        const W* const from =
            w + (unit * p.w_group + output * p.w_out + tap / F::kColumns * p.w_row + tap % F::kColumns * p.w_column);
        sum += lane_sum<W, COPY ? 16 : 1>(from, p.w_channel, p.unit_channels, lane);
    }
    return warp_sum(sum);
}

// One line per output: the taps, and of each tap the chunks of the slab. GROUPS groups share a chunk: the other groups'
// channels get zeros. COPY: the channels lie side by side and aligned; otherwise they are gathered one by one. A
// thread keeps its place in the line and goes from line to line.
template <class T, class F, class TILE, int GROUPS, bool COPY, class TAPS>
DEVICE void stage_filter(uint32 to, const T* w, int first_unit, int first_output, int slab, const ConvTileParams& p,
                         int thread, const TAPS& taps) {
    typedef Layout<F, TILE> L;
    constexpr int kChannels = kChunkChannels<T> / GROUPS;  // of one group in a chunk
    constexpr int kLinesAtOnce = max_of(1, TILE::kThreads / L::kLineChunks);
    constexpr int kItemThreads = TILE::kThreads / kLinesAtOnce;
    thread = opaque(thread);  // or all of this would stay in registers while products are computed
    if (thread >= kLinesAtOnce * kItemThreads) return;
#pragma unroll 1
    for (int item = thread % kItemThreads; item < L::kLineChunks; item += kItemThreads) {
        const int tap = item / TILE::kChunks, chunk = slab * TILE::kChunks + item % TILE::kChunks;
        const T* const from = w + (tap / F::kColumns * p.w_row + tap % F::kColumns * p.w_column +
                                   int64(chunk * (GROUPS == 1 ? kChunkChannels<T> : 0)) * p.w_channel);
#pragma unroll 1
        for (int line = thread / kItemThreads; line < L::kLines; line += kLinesAtOnce) {
            const int unit = first_unit + (TILE::kUnits == 1 ? 0 : line / (TILE::kUnitTiles * 8));
            const int output = first_output + (TILE::kUnits == 1 ? line : line % (TILE::kUnitTiles * 8));
            const bool valid = (unit < p.units) & (output < p.unit_outputs) & (chunk < p.unit_chunks) &
                               taps.has_row(tap / F::kColumns) & taps.has_column(tap % F::kColumns);
            const int group_in_chunk = GROUPS == 1 ? 0 : output / p.out_per_group;
            const T* const channels = from + (unit * GROUPS + group_in_chunk) * p.w_group +
                                      (output - group_in_chunk * p.out_per_group) * p.w_out;
            const uint32 place = to + line * L::kLineBytes + item * 16;
            if constexpr (COPY) {
                copy_async<16>(place, channels, valid);
            } else {
                const int64 pitch = sizeof(T) == 1 ? opaque(int32(p.w_channel)) : p.w_channel;
                uint32 word[4] = {};
#pragma unroll
                for (int e = 0; e < kChunkChannels<T>; e++) {
                    const bool whole = GROUPS > 1 || chunk * kChunkChannels<T> + e < p.unit_channels;
                    if (valid & (e / kChannels == group_in_chunk) & whole) {
                        const uint32 raw = load<T, 1>(channels + e % kChannels * pitch).word[0];
                        word[e * sizeof(T) / 4] |= raw << 8 * (e * sizeof(T) % 4);
                    }
                }
                shared_store_16(place, word);
            }
        }
    }
}
