// Pointwise, dense and grouped convolution, channels last, 16-bit floats, sm_90a alone: an implicit matrix product by
// whole warpgroups, its operands brought by the copy engine.
//
// Block: tile after tile of kRows output pixels (a box of columns x rows x images, powers of two) x kColumns output
// channels of one group. Its last warp, of which one lane works, asks the copy engine for the operands of step after
// step: 64 input channels under one filter tap, that is one box of pixels, shifted by the tap, and four of the filter,
// into a ring of STAGES. The copy engine fills what lies outside of the arrays with zeros: that is the padding, the end
// of the input channels and the end of the tiles. The other warps are WARPGROUPS warpgroups, each with 64 of the
// pixels: they wait for a stage, start its four products, and hand the stage before back when its products have ended.
// While those of the first step run, each warp notes the bias of the tile; while it stores the sums, the ring fills
// again.
// Thread: 4 sums of every 8 columns, see hopper.cuh. Box q of the filter has channels 2 q and 2 q + 1 of every 8, so
// column q * kColumns / 4 + 2 i + e is channel 8 i + 2 q + e: a thread has 8 neighbouring channels of a pixel, 16 bytes
// of 16-bit outputs, and exchanges nothing.
// Traffic: per tile and tap all its input pixels and filters, from the second-level cache, which device memory fills
// once; output and residual once. Limits: channels of x, w, y and residual are contiguous, all other strides and the
// channels of a group are multiples of 8 elements, all arrays aligned to 16 bytes; the filters of all groups are evenly
// spaced.
#include "epilogue.cuh"
#include "hopper.cuh"

struct WgmmaParams {
    int64 y_group;
    int64 y_image;
    int64 y_row;
    int64 y_column;
    int64 residual_group;
    int64 residual_image;
    int64 residual_row;
    int64 residual_column;
    double alpha;
    double beta;
    int32 images;  // of the output
    int32 rows;
    int32 columns;
    int32 channels;  // outputs of a group
    int32 log_rows;  // of the box of pixels of a tile
    int32 log_columns;
    int32 image_tiles;
    int32 row_tiles;
    int32 column_tiles;
    int32 channel_tiles;
    int32 tiles;
    int32 slabs;  // of kSlabChannels input channels of a group
    int32 filter_rows;
    int32 filter_columns;
    int32 steps;  // slabs * filter_rows * filter_columns
    int32 stride_rows;
    int32 stride_columns;
    int32 dilation_rows;
    int32 dilation_columns;
    int32 padding_rows;
    int32 padding_columns;
};
static_assert(sizeof(WgmmaParams) == 168, "gpu_conv/families/wgmma.py packs this struct");

constexpr int kSlabChannels = kLineBytes / 2;

// WARPGROUPS: of 64 pixels each. COLUMNS: output channels. BLOCKS: per multiprocessor, for the registers.
template <int WARPGROUPS, int COLUMNS, int STAGES, int BLOCKS>
struct Tile {
    static constexpr int kRows = WARPGROUPS * 64, kColumns = COLUMNS, kStages = STAGES, kBlocks = BLOCKS;
    static constexpr int kConsumerWarps = WARPGROUPS * 4, kThreads = kConsumerWarps * 32 + 32;
    static constexpr int kPixelBytes = kRows * kLineBytes, kStageBytes = kPixelBytes + COLUMNS * kLineBytes;
    static constexpr int kQuarterBytes = COLUMNS / 4 * kLineBytes;  // of the filter
    static constexpr int kNotesAt = STAGES * (kStageBytes + 2 * kBarrierBytes);
    static_assert(kPixelBytes % 1024 == 0 && kQuarterBytes % 1024 == 0, "the swizzle counts lines from 1024 bytes on");
    static_assert(kRows <= 256 && COLUMNS <= 256, "a side of a box has at most 256 elements");
};

// Shared memory: the ring, then one barrier per stage that it is full and one that it is free, then a Note per warp.
template <class TILE>
struct Ring {
    uint32 address;
    int stage = 0;
    uint32 phase = 0;

    DEVICE explicit Ring(uint32 at) : address(at) {}
    DEVICE uint32 pixels() const { return address + stage * TILE::kStageBytes; }
    DEVICE uint32 filter() const { return pixels() + TILE::kPixelBytes; }
    DEVICE uint32 full() const { return address + TILE::kStages * TILE::kStageBytes + stage * kBarrierBytes; }
    DEVICE uint32 free() const { return full() + TILE::kStages * kBarrierBytes; }
    DEVICE void advance() {
        stage = stage + 1 == TILE::kStages ? 0 : stage + 1;
        phase ^= stage == 0;
    }
};

// Which part of the output a tile is: its first channel, column, row and image. Tiles of the same pixels follow each
// other, so that blocks that run together read them together.
struct Part {
    int channel, column, row, image, group;

    template <class TILE>
    static DEVICE Part of(uint32 tile, const WgmmaParams& p) {
        Part part;
        const int log_pixels = p.log_rows + p.log_columns;
        part.channel = tile % uint32(p.channel_tiles) * TILE::kColumns, tile /= uint32(p.channel_tiles);
        part.column = tile % uint32(p.column_tiles) << p.log_columns, tile /= uint32(p.column_tiles);
        part.row = tile % uint32(p.row_tiles) << p.log_rows, tile /= uint32(p.row_tiles);
        part.image = tile % uint32(p.image_tiles) * (TILE::kRows >> log_pixels);
        part.group = tile / uint32(p.image_tiles);
        return part;
    }
    // Where it begins in an array of these strides.
    DEVICE int64 offset(int64 group_stride, int64 image_stride, int64 row_stride, int64 column_stride) const {
        return group * group_stride + image * image_stride + row * row_stride + column * column_stride + channel;
    }
    DEVICE int64 of_y(const WgmmaParams& p) const { return offset(p.y_group, p.y_image, p.y_row, p.y_column); }
    DEVICE int64 of_residual(const WgmmaParams& p) const {
        return offset(p.residual_group, p.residual_image, p.residual_row, p.residual_column);
    }
};

// One lane: the operands of all steps of all tiles of the block.
template <class TILE>
DEVICE void fetch(Ring<TILE> at, const WgmmaParams& p, const TensorMap& x_map, const TensorMap& w_map) {
#pragma unroll 1
    for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
        const Part part = Part::of<TILE>(tile, p);
        const int row = part.row * p.stride_rows - p.padding_rows;
        const int column = part.column * p.stride_columns - p.padding_columns;
        const int eighth = part.group * (p.channels / 8) + part.channel / 8;
#pragma unroll 1
        for (int channel = 0; channel < p.slabs * kSlabChannels; channel += kSlabChannels) {
#pragma unroll 1
            for (int r = 0; r < p.filter_rows; r++) {
#pragma unroll 1
                for (int s = 0; s < p.filter_columns; s++) {
                    barrier_wait(at.free(), at.phase ^ 1);
                    barrier_arrive_expecting(at.full(), TILE::kStageBytes);
                    const int pixels[5] = {channel, part.group, column + s * p.dilation_columns,
                                           row + r * p.dilation_rows, part.image};
                    copy_box(at.pixels(), x_map, pixels, at.full());
#pragma unroll
                    for (int quarter = 0; quarter < 4; quarter++) {
                        const int filters[5] = {channel, quarter * 2, eighth, s, r};
                        copy_box(at.filter() + quarter * TILE::kQuarterBytes, w_map, filters, at.full());
                    }
                    at.advance();
                }
            }
        }
    }
}

// All products of one tile; meanwhile() is called once, beside those of the first step. warpgroup_bytes: where the
// warpgroup's pixels begin in a stage.
template <class T, class TILE, class MEANWHILE>
DEVICE void multiply(float (&sums)[TILE::kColumns / 2], Ring<TILE>& at, int steps, int warpgroup_bytes, int lane,
                     MEANWHILE meanwhile) {
    uint32 before = 0;
#pragma unroll 1
    for (int step = 0; step < steps; step++) {
        barrier_wait(at.full(), at.phase);
        const uint64 pixels = operand(at.pixels() + warpgroup_bytes), filter = operand(at.filter());
        products_begin();
#pragma unroll
        for (int k = 0; k < kLineBytes / kProductBytes; k++) {
            constexpr int kNext = kProductBytes >> 4;
            product<T, TILE::kColumns>(sums, pixels + k * kNext, filter + k * kNext, step > 0 || k > 0);
        }
        products_commit();
        if (step == 0) meanwhile();
        products_wait<1>();
        if (step > 0 && lane == 0) barrier_arrive(before);
        before = at.free();
        at.advance();
    }
    products_wait<0>();
    sums_ready(sums);
    if (lane == 0) barrier_arrive(before);
}

// Where a pixel of a tile lies from its first one, and whether it is one of the output.
struct Place {
    int y, residual;
    bool inside;

    DEVICE Place(const Part& part, int pixel, const WgmmaParams& p) {
        const int column = pixel & ((1 << p.log_columns) - 1);
        const int row = pixel >> p.log_columns & ((1 << p.log_rows) - 1);
        const int image = pixel >> (p.log_columns + p.log_rows);
        inside = (part.column + column < p.columns) & (part.row + row < p.rows) & (part.image + image < p.images);
        y = image * int(p.y_image) + row * int(p.y_row) + column * int(p.y_column);
        residual = image * int(p.residual_image) + row * int(p.residual_row) + column * int(p.residual_column);
    }
};

// What a warp notes of a tile for its epilogue: which part it is, and the bias of its channels, zero where there is
// none.
template <class TILE>
struct Note {
    alignas(16) float terms[TILE::kColumns];
    alignas(16) Part part;

    template <class B>
    DEVICE void write(const Part& of, const B* bias, const WgmmaParams& p, int lane) {
        __syncwarp();
        if (lane == 0) part = of;
#pragma unroll
        for (int i = 0; i < TILE::kColumns; i += 32) {
            const int channel = of.channel + i + lane;
            const bool present = (bias != nullptr) & (channel < p.channels);
            terms[i + lane] = channel_term<float>(bias, int64(of.group) * p.channels + channel, present);
        }
        __syncwarp();
    }
};

// The residual of a warp's 16 pixels, into the second-level cache: half a pixel per lane.
template <class TILE, class Y>
DEVICE void prefetch(const Part& part, const Y* residual, const WgmmaParams& p, int warp, int lane) {
    constexpr int kLine = kCacheLineBytes / sizeof(Y);
    const Place place(part, warp * 16 + lane / 2, p);
    residual += part.of_residual(p) + place.residual;
    for (int i = lane % 2 * kLine; i < TILE::kColumns; i += 2 * kLine) {
        if (place.inside & (part.channel + i < p.channels)) prefetch_line(residual + i);
    }
}

// Bias, residual and activation of the sums of one tile, and the stores.
template <int ACT, class TILE, bool RESIDUAL, class Y>
DEVICE void finish(const float (&sums)[TILE::kColumns / 2], const Note<TILE>& note, const Y* residual, Y* y,
                   const WgmmaParams& p, int warp, int lane) {
    constexpr int kGroups = TILE::kColumns / 32;
    const Epilogue<ACT, float> epilogue(p.alpha, p.beta);
    const Part part = note.part;
    const Place places[2] = {Place(part, warp * 16 + lane / 4, p), Place(part, warp * 16 + lane / 4 + 8, p)};
    y += part.of_y(p);
    if constexpr (RESIDUAL) residual += part.of_residual(p);
    const int channels = p.channels - part.channel;  // of the tile and behind it
    __syncwarp();  // as below: or ptxas mixes what follows, and has no registers left for it
#pragma unroll
    for (int group = 0; group < kGroups; group++) {
        const int channel = group * 32 + lane % 4 * 8;  // the first of the lane's eight
#pragma unroll
        for (int half = 0; half < 2; half++) {
            __syncwarp();
            const bool inside = places[half].inside & (channel < channels);
            Vector<Y, 8> added = zero_vector<Y, 8>();
            if (RESIDUAL && inside) added = load<Y, 8, false>(residual + (places[half].residual + channel));
            float finished[8];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float biased = sums[(i / 2 * kGroups + group) * 4 + half * 2 + i % 2] + note.terms[channel + i];
                finished[i] = epilogue.activate(RESIDUAL ? biased + element<float>(added, i) : biased);
            }
            if (inside) store(y + (places[half].y + channel), pack<Y>(finished));
        }
    }
}

template <class T, class B, class Y, int ACT, class TILE, int RESIDUAL>
__global__ void __launch_bounds__(TILE::kThreads, TILE::kBlocks)
    wgmma(const T*, const T*, const B* __restrict__ bias, const Y* residual, const int32*, const int32*, Y* y, void*,
          const WgmmaParams p, const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap w_map) {
    static_assert(sizeof(T) == 2, "16-bit floats");
    static_assert(sizeof(Note<TILE>) == TILE::kColumns * 4 + 32, "gpu_conv/families/wgmma_model.py reserves it");
    extern __shared__ __align__(1024) unsigned char shared[];
    Ring<TILE> at(uint32(__cvta_generic_to_shared(shared)));
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    if (threadIdx.x == 0) {
        Ring<TILE> barriers = at;
        for (int i = 0; i < TILE::kStages; i++, barriers.advance()) {
            barrier_init(barriers.full(), 1);
            barrier_init(barriers.free(), TILE::kConsumerWarps);
        }
        fence_async_proxy();
    }
    __syncthreads();

    if (warp == TILE::kConsumerWarps) {
        if (lane == 0) fetch(at, p, x_map, w_map);
        return;
    }
    Note<TILE>& note = reinterpret_cast<Note<TILE>*>(shared + TILE::kNotesAt)[warp];
#pragma unroll 1
    for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
        float sums[TILE::kColumns / 2];
        multiply<T>(sums, at, p.steps, warp / 4 * (64 * kLineBytes), lane, [&] {
            const Part part = Part::of<TILE>(tile, p);
            note.write(part, bias, p, lane);
            if constexpr (RESIDUAL) prefetch<TILE>(part, residual, p, warp, lane);
        });
        // opaque: what the epilogue computes must not stay in registers while products are computed.
        finish<ACT, TILE, RESIDUAL>(sums, note, residual, y, p, opaque(warp), opaque(lane));
    }
}
