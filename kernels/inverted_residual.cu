// MobileNetV2's inverted residual in one kernel, channels last, float16 or bfloat16, float32 sums:
//
//     y = act(project(act(depthwise3x3(act(expand(x))))) [+ x])
//
// with 1x1 convolutions for expand (which may be absent) and project. The expanded tensor never leaves the chip; its
// elements and those of the depthwise result are rounded to the 16-bit type, as three separate convolutions round them.
//
// Block: ROWS x COLUMNS outputs, all output channels. The input with its halo stays in shared memory; the expanded
// channels pass in slabs of SLAB: (1) expand, (2) depthwise, (3) project into sums that stay in registers over all
// slabs, each by mma. The weights of the next slab arrive while the current one is used. SPLIT blocks take a part of
// the slabs only (batch 1): sums go to the workspace, and the last block of a tile adds them in the order of the parts.
// Warp: (1) 16 pixels x 32 channels at a time, (2) 16 pixels x 8 channels, (3) the pixels of one of
// PIXEL_WARPS x a share of the output channels.
// Traffic: x kInPixels / (ROWS * COLUMNS * STRIDE^2) times through L2 and about once from DRAM, y once, the weights
// once per block from L2. Recomputed: the halo of (1). Limits: x and y dense and aligned to 16 bytes, channels
// multiples of 8, one image below 2^31, an input line and the sums of a warp within the registers (the host half counts
// them).
#include "inverted_residual.cuh"

template <class T, int IN, int OUT, int STRIDE, bool EXPAND, bool RESIDUAL, int ACT_EXPAND, int ACT_DEPTHWISE, int ACT,
          int ROWS, int COLUMNS, int SLAB, int PIXEL_WARPS, bool SPLIT, int SHARED, int MIN_BLOCKS>
__global__ void __launch_bounds__(256, MIN_BLOCKS)
    inverted_residual(const T* x, const uint8* w, const float* bias, const T*, const int32*, const int32*, T* y,
                      void* workspace, const InvertedResidualParams p) {
    typedef ResidualTile<IN, OUT, STRIDE, EXPAND, ROWS, COLUMNS, SLAB, PIXEL_WARPS> Tile;
    static_assert(same<T, float16> || same<T, bfloat16>, "the products are of 16-bit types");
    static_assert(!RESIDUAL || (STRIDE == 1 && IN == OUT), "the residual is the input");
    static_assert(Tile::kShared == SHARED, "the host allocates the shared memory and packs the weights");
    extern __shared__ __align__(128) unsigned char shared[];
    const uint32 base = shared_address(shared);
    uint16* const table = reinterpret_cast<uint16*>(shared + Tile::kTable);

    // Block: x column of tiles and part of the slabs, y row of tiles, z image.
    const int thread = threadIdx.x, splits = SPLIT ? p.splits : 1;
    const int tile_column = blockIdx.x / splits, part = blockIdx.x - tile_column * splits;
    const int q0 = tile_column * COLUMNS, p0 = blockIdx.y * ROWS, n = blockIdx.z;
    const int slabs_per_part = ceil_div(p.slabs, splits), first_slab = part * slabs_per_part;
    const int end_slab = min_of(p.slabs, first_slab + slabs_per_part);
    const int top = p0 * STRIDE - p.padding[0], left = q0 * STRIDE - p.padding[1];

    // Load.
    load_input<Tile>(base, x + int64(n) * p.in[0] * p.in[1] * IN, p, top, left);
    load_weights<Tile>(base + Tile::kSlabs + first_slab % 2 * Tile::kWeights, w + int64(first_slab) * Tile::kWeights);
    copy_commit();
    int count = 0;
    if constexpr (EXPAND) count = list_pixels<Tile>(table, p, top, left);
    // Lines that no stage writes: pixels outside of the image, rows of the last product beyond the tile.
    const int first_line = EXPAND && count < Tile::kInPixels ? 0 : Tile::kUnwritten;
    for (int i = first_line + thread * 16; i < Tile::kTable - Tile::kExpanded; i += Tile::kThreads * 16) {
        store(shared + Tile::kExpanded + i, zero_vector<unsigned char, 16>());
    }
    Projection<Tile, T> projection;
    projection.start(part == 0 ? bias : nullptr);

    // Compute.
    for (int slab = first_slab; slab < end_slab; slab++) {
        const int weights = Tile::kSlabs + slab % 2 * Tile::kWeights,
                  next = Tile::kSlabs + (slab + 1) % 2 * Tile::kWeights;
        copy_wait<0>();
        __syncthreads();  // the weights are here, and nobody uses those of the slab before any more
        if (slab + 1 < end_slab) load_weights<Tile>(base + next, w + int64(slab + 1) * Tile::kWeights);
        copy_commit();
        if constexpr (EXPAND) {
            expand<Tile, T>(shared, base, weights, table, count, Epilogue<ACT_EXPAND, float>(p.alpha[0], p.beta[0]));
            __syncthreads();
        }
        const Epilogue<ACT_DEPTHWISE, float> act(p.alpha[1], p.beta[1]);
        const int from = Tile::kSource + (EXPAND ? 0 : slab * SLAB * 2);
        convolve<Tile, T>(shared, base, from, weights, p.expanded - slab * SLAB, act);
        __syncthreads();
        projection.add(base + Tile::kDepthwise, base + weights + Tile::kProject);
    }
    if constexpr (SPLIT) {
        const int columns = gridDim.x / splits, tile = (n * gridDim.y + blockIdx.y) * columns + tile_column;
        if (!add_across_blocks<Tile::kThreads>(projection, static_cast<float*>(nullptr), workspace, tile,
                                               int(gridDim.z * gridDim.y) * columns, part, splits, true, thread)) {
            return;
        }
    } else {
        __syncthreads();  // the results take the place of what the last products read
    }

    // Store.
    const Epilogue<ACT, float> act(p.alpha[2], p.beta[2]);
    projection.stage(shared + Tile::kExpanded, [&](float (&v)[2], int pixel, int channel) {
        float extra[2] = {0.0f, 0.0f};
        if constexpr (RESIDUAL) {
            const int row = pixel / COLUMNS + p.padding[0], column = pixel % COLUMNS + p.padding[1];
            const unsigned char* const at = shared + Tile::place(row, column) * Tile::kInLine + channel * 2;
            unpack(load<T, 2, false>(reinterpret_cast<const T*>(at)), extra);
        }
        v[0] = act.finish(v[0], 0.0f, extra[0]), v[1] = act.finish(v[1], 0.0f, extra[1]);
    });
    __syncthreads();
    T* const image = y + int64(n) * p.out[0] * p.out[1] * OUT;
    for_each_pixel<COLUMNS, Tile::kPixels, OUT / 8, Tile::kThreads>([&](int pixel, int row, int column, int chunk) {
        row += p0, column += q0;
        if (row >= p.out[0] || column >= p.out[1]) return;
        const unsigned char* const from = shared + Tile::kExpanded + pixel * Tile::kOutLine + chunk * 16;
        const auto line = load<T, 8, false>(reinterpret_cast<const T*>(from));
        store(image + (row * p.out[1] + column) * OUT + chunk * 8, line);
    });
}
