// The arguments of the pointwise kernel, and the types and sizes that follow from its template arguments.
#pragma once
#include "epilogue.cuh"
#include "phases.cuh"
#include "pointwise_warp.cuh"

// All strides in elements. Pixel axes are right-aligned, the fastest last; unused leading axes have size 1.
struct PointwiseParams {
    int64 x_group;
    int64 x_channel;
    int64 w_group;
    int64 w_out;
    int64 w_channel;
    int64 y_group;
    int64 y_channel;
    int64 residual_group;
    int64 residual_channel;
    int64 x_stride[4];
    int64 y_stride[4];
    int64 residual_stride[4];
    double alpha;
    double beta;
    int32 x_size[4];
    int32 y_size[4];
    int32 pixels;
    int32 in_channels;
    int32 out_channels;  // in_channels, out_channels: per group
    int32 pixel_tiles;
    int32 channel_tiles;
    int32 workers;  // blocks that share the pixel tiles of one channel tile
    int32 splits;   // blocks that share the k of one tile
};
static_assert(sizeof(PointwiseParams) == 248, "PARAMS of families/pointwise.py has the same layout");

// Filters of ones without padding have none.
DEVICE void set_geometry(PointwiseParams&, const int32 (&)[3], const int32 (&)[3]) {}

enum Engine { IEEE, TENSOR_CORES, TENSOR_CORES_ZERO_POINTS };  // the last: of the filter

template <int ROWS, int COLUMNS, int SLAB_BYTES, int WARP_ROWS, int WARP_COLUMNS, int STAGES, int K_WARPS, int RESIDENT,
          int SPLIT, int BLOCKS>
struct Tile {
    static constexpr int kRows = ROWS, kColumns = COLUMNS, kSlabBytes = SLAB_BYTES;
    static constexpr int kWarpRows = WARP_ROWS, kWarpColumns = WARP_COLUMNS, kStages = STAGES, kKWarps = K_WARPS;
    static constexpr bool kResident = RESIDENT, kSplit = SPLIT;
    static constexpr int kBlocks = BLOCKS;
    static constexpr int kWarps = (ROWS / WARP_ROWS) * (COLUMNS / WARP_COLUMNS);
    static constexpr int kThreads = kWarps * K_WARPS * 32;
    static_assert(ROWS % WARP_ROWS == 0 && COLUMNS % WARP_COLUMNS == 0, "warp tiles fill the block tile");
    static_assert(STAGES >= 2, "one slab is computed while another one arrives");
    static_assert(!RESIDENT || (K_WARPS == 1 && !SPLIT), "a resident filter is for many tiles, a divided k for few");
};

// PIXELS_IN_ROWS: the output's contiguous axis is its channels. TRANSPOSED: x has contiguous pixels and arrives so.
// X_COPY, W_COPY: see Copy. X_AXES, Y_AXES: 1, 2 or 4 pixel axes. Y_BYTES: width of the stores. PHASED: see phases.cuh.
template <int PIXELS_IN_ROWS, int TRANSPOSED, int X_COPY, int X_AXES, int W_COPY, int Y_BYTES, int Y_AXES,
          int PHASED = 0>
struct Access {
    static constexpr bool kPixelsInRows = PIXELS_IN_ROWS, kTransposed = TRANSPOSED, kPhased = PHASED;
    static constexpr int kXCopy = X_COPY, kXAxes = X_AXES, kWCopy = W_COPY, kYBytes = Y_BYTES, kYAxes = Y_AXES;
    static_assert(!TRANSPOSED || (!PIXELS_IN_ROWS && X_COPY >= 4), "only columns may be contiguous in x");
};

// Types and sizes that follow from the template arguments.
template <class X, class W, class B, class Y, int ENGINE, class TILE, class ACCESS>
struct Plan {
    static constexpr bool kInRows = ACCESS::kPixelsInRows;
    static constexpr int kPixels = kInRows ? TILE::kRows : TILE::kColumns;
    static constexpr int kChannels = kInRows ? TILE::kColumns : TILE::kRows;
    static constexpr int kSlab = TILE::kSlabBytes / sizeof(X);
    static constexpr bool kFloatTensor = ENGINE == TENSOR_CORES && same<X, float>;
    static constexpr int kSpread = ENGINE == IEEE ? 0 : kFloatTensor ? 2 : 1;
    typedef Lines<TILE::kSlabBytes> KLines;
    typedef typename Select<ACCESS::kTransposed, Lines<kPixels* int(sizeof(X)), kSpread>, KLines>::type XLines;
    static_assert(ENGINE != IEEE || same<X, float>, "the ordinary cores compute float32");
    static_assert(sizeof(X) == sizeof(W), "one slab holds as many elements of x as of w");

    typedef typename Select<kFloatTensor, tf32, X>::type OperandX;
    typedef typename Select<kFloatTensor, tf32, W>::type OperandW;
    typedef typename Select<kInRows, OperandX, OperandW>::type Left;
    typedef typename Select<kInRows, OperandW, OperandX>::type Right;
    typedef typename Select<kInRows, XLines, KLines>::type LinesA;
    typedef typename Select<kInRows, KLines, XLines>::type LinesB;
    typedef typename Select<sizeof(X) == 1, int32, float>::type Acc;
    typedef TensorCoreWarp<Left, Right, Acc, ACCESS::kTransposed, TILE::kWarpRows, TILE::kWarpColumns, LinesA, LinesB>
        Cores;
    typedef ZeroPointWarp<Left, Right, ACCESS::kTransposed, TILE::kWarpRows, TILE::kWarpColumns, LinesA, LinesB>
        Shifted;
    typedef FloatWarp<ACCESS::kTransposed, TILE::kWarpRows, TILE::kWarpColumns, LinesA, LinesB> Plain;
    typedef typename Select<ENGINE == IEEE, Plain, typename Select<ENGINE == TENSOR_CORES, Cores, Shifted>::type>::type
        Warp;
    static_assert(TILE::kSlabBytes % (Warp::kStepBytes * TILE::kKWarps) == 0, "the warps share a slab evenly");

    static constexpr int kXBytes = kPixels * TILE::kSlabBytes, kWBytes = kChannels * TILE::kSlabBytes;
    static constexpr int kStageBytes = kXBytes + (TILE::kResident ? 0 : kWBytes);

    // Chunks of 16 bytes that a thread gathers together. Of 16-bit elements two are 16 loads under way: up to 128 bytes
    // spilled, but for sm_90, where it was timed so, only where the filter is gathered as well.
#if __CUDA_ARCH__ == 900
    static constexpr int kGatheredAtOnce = sizeof(X) == 1 || (sizeof(X) == 2 && ACCESS::kWCopy < 4) ? 1 : 2;
#else
    static constexpr int kGatheredAtOnce = sizeof(X) <= 2 ? 1 : 2;
#endif

    // Rows of the staged output: an odd number of 16-byte chunks for narrow elements, an odd number of pairs of chunks
    // for 32-bit ones: the 8 or 4 rows that a warp writes at once then lie in different banks.
    static constexpr int kChunks = ceil_div(TILE::kWarpColumns * int(sizeof(Y)), 16);
    static constexpr int kPitch = 16 * (sizeof(Y) < 4 ? kChunks | 1 : (kChunks + 1) / 4 * 4 + 2);
    static constexpr int kStagingBytes = TILE::kWarps * TILE::kWarpRows * kPitch;

    static constexpr int kBiasBytes = ceil_div(kChannels * int(sizeof(ChannelTerm<B, Acc>)), 128) * 128;
};
