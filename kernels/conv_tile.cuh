// Geometry of the haloed tile of conv_tile.cu, and the copies of pixels and filters into shared memory.
#pragma once
#include "tensor_core.cuh"

// Strides in elements. A unit is what shares input channels: a group, or the groups of one chunk of 8 channels.
struct ConvTileParams {
    int64 x_image, y_image, residual_image;
    int64 w_group, w_out, w_channel, w_row, w_column;
    double alpha, beta;
    int32 x_row, x_column, y_row, y_column, residual_row, residual_column;
    int32 images, in_rows, in_columns, out_rows, out_columns, padding_rows, padding_columns;
    int32 groups, in_per_group, out_per_group;
    int32 units, unit_chunks, unit_outputs;     // chunks of 8 input channels and outputs of one unit
    int32 parts;                                // blocks that share the outputs of a unit
    int32 slabs;                                // of the input channels
    int32 row_tiles, column_tiles, tiles;       // tiles: over images, rows and columns
    int32 workers;                              // blocks that share the tiles of one block of channels
};

template <int ROWS, int COLUMNS, int STRIDE_ROWS, int STRIDE_COLUMNS, int DILATION_ROWS, int DILATION_COLUMNS>
struct Filter {
    static constexpr int kRows = ROWS, kColumns = COLUMNS, kTaps = ROWS * COLUMNS;
    static constexpr int kStrideRows = STRIDE_ROWS, kStrideColumns = STRIDE_COLUMNS;
    static constexpr int kDilationRows = DILATION_ROWS, kDilationColumns = DILATION_COLUMNS;
};

// What one block computes. A bar is the 16 pixels of one product: one row of two strips of 8 columns. A warp owns the BARS
// bars of two strips, below each other: an input row then serves every filter row without being read again.
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
    static constexpr int kRows = ALONG_ROW ? 1 : ROW_STRIPS * BARS;                        // output pixels of the tile
    static constexpr int kColumns = COLUMN_STRIPS * 8 * (ALONG_ROW ? BARS : 1);
    static constexpr int kWarpUnits = UNITS == 1 ? 1 : UNITS / WARPS_N;
    static constexpr int kWarpTiles = UNITS == 1 ? UNIT_TILES / WARPS_N : UNIT_TILES;       // of each unit
    static constexpr int kTiles = kWarpUnits * kWarpTiles;                                  // 8 outputs each, of a warp
    static_assert(IMAGES * ROW_STRIPS * COLUMN_STRIPS % 2 == 0, "a warp owns two strips");
    static_assert(kTiles * WARPS_N == UNITS * UNIT_TILES, "the warps share the outputs evenly");
    static_assert(!ALONG_ROW || (IMAGES == 1 && ROW_STRIPS == 1), "a tile along a row is one row");
    static_assert(STAGES >= 2, "one slab is computed while another one arrives");
};

// Bytes in shared memory. Pixels and filter lines are an odd number of 16-byte chunks apart: ldmatrix reads 8 neighbours
// without bank conflicts and every tap is a constant offset. With a stride, columns of one phase lie side by side.
template <class F, class TILE>
struct Layout {
    static constexpr int kRows = (TILE::kRows - 1) * F::kStrideRows + (F::kRows - 1) * F::kDilationRows + 1;
    static constexpr int kColumns = (TILE::kColumns - 1) * F::kStrideColumns + (F::kColumns - 1) * F::kDilationColumns + 1;
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

// First image, row and column of an output tile.
struct Position {
    int image, row, column;
};

template <class TILE>
DEVICE Position position(int tile, const ConvTileParams& p) {
    const int across = tile / p.column_tiles, down = across / p.row_tiles;
    return {down * TILE::kImages, (across - down * p.row_tiles) * TILE::kRows,
            (tile - across * p.column_tiles) * TILE::kColumns};
}

// Chunks [0, end) of 8 channels of every input pixel of a tile; zeros outside the image. A warp copies whole rows of the
// tile (of a tile of one row, parts), neighbouring lanes neighbouring chunks.
template <class T, class F, class TILE>
DEVICE void stage_pixels(uint32 to, const T* x, int end, Position at, const ConvTileParams& p, int warp, int lane) {
    typedef Layout<F, TILE> L;
    constexpr int kPixels = 32 / L::kPixelChunks;  // copied by a warp at once
    constexpr int kSteps = ceil_div(L::kColumns, kPixels), kTileRows = TILE::kImages * L::kRows;
    constexpr int kSplit = kTileRows == 1 ? TILE::kWarps : 1;
    const int pixel = lane / L::kPixelChunks, chunk = lane % L::kPixelChunks;
    const bool lane_active = (32 % L::kPixelChunks == 0) | (pixel < kPixels), lane_valid = chunk < end;
    const int first_row = at.row * F::kStrideRows - p.padding_rows;
    const int first_column = at.column * F::kStrideColumns - p.padding_columns;
#pragma unroll 1
    for (int row = warp / kSplit; row < kTileRows; row += TILE::kWarps / kSplit) {
        const int image = at.image + row / L::kRows, in_row = first_row + row % L::kRows;
        const bool row_valid = lane_valid & (image < p.images) & (uint32(in_row) < uint32(p.in_rows));
        const T* const from = x + (image * p.x_image + int64(in_row) * p.x_row + int64(first_column) * p.x_column + chunk * 8);
        const uint32 row_to = to + row * L::kRowBytes + chunk * 16;
#pragma unroll
        for (int step = 0; step < ceil_div(kSteps, kSplit); step++) {
            const int column = (step * kSplit + warp % kSplit) * kPixels + pixel;
            const bool valid = row_valid & (uint32(first_column + column) < uint32(p.in_columns));
            copy_async_if(row_to + L::slot(column) * L::kPixelBytes, valid ? from + column * p.x_column : x, valid,
                          lane_active & (column < L::kColumns));
        }
    }
}

// One line per output: the taps, and of each tap the chunks of the slab. GROUPS groups share a chunk: the other groups'
// channels get zeros. COPY: eight channels lie side by side and aligned; otherwise they are gathered one by one.
template <class T, class F, class TILE, int GROUPS, bool COPY>
DEVICE void stage_filter(uint32 to, const T* w, int first_unit, int first_output, int slab, const ConvTileParams& p,
                         int thread) {
    typedef Layout<F, TILE> L;
    const int unit_channels = 8 / GROUPS;  // of one group in a chunk
#pragma unroll 1
    for (int u = thread; u < L::kLines * L::kLineChunks; u += TILE::kThreads) {
        const int line = u / L::kLineChunks, item = u % L::kLineChunks;
        const int tap = item / TILE::kChunks, chunk = slab * TILE::kChunks + item % TILE::kChunks;
        const int unit = first_unit + line / (TILE::kUnitTiles * 8);
        const int output = first_output + line % (TILE::kUnitTiles * 8);
        const bool valid = (unit < p.units) & (output < p.unit_outputs) & (chunk < p.unit_chunks);
        const int group_in_chunk = GROUPS == 1 ? 0 : output / p.out_per_group;
        const int64 from = int64(unit * GROUPS + group_in_chunk) * p.w_group +
                           int64(output - group_in_chunk * p.out_per_group) * p.w_out +
                           int64(chunk * (GROUPS == 1 ? 8 : 0)) * p.w_channel + tap / F::kColumns * p.w_row +
                           tap % F::kColumns * p.w_column;
        const uint32 place = to + line * L::kLineBytes + item * 16;
        if constexpr (COPY) {
            copy_async<16>(place, valid ? w + from : w, valid);
        } else {
            uint32 word[4] = {};
#pragma unroll
            for (int e = 0; e < 8; e++) {
                if (valid & (e / unit_channels == group_in_chunk)) {
                    word[e / 2] |= load<T, 1>(w + from + e % unit_channels * p.w_channel).word[0] << 16 * (e % 2);
                }
            }
            shared_store_16(place, word);
        }
    }
}
