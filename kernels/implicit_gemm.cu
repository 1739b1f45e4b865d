// K x K convolution of IEEE float32 as a matrix product on the ordinary cores, without the matrix of patches:
//
//     sum[pixel][channel] = sum over k of x[element of pixel and k] * w[channel][k], per group; k = (tap, input
//     channel)
//
// Rows and columns are chosen by the output as in pointwise.cu, whose warps, sums and stores these are: channels-last
// has pixels in the rows, channels-first has channels in the rows. 16-bit floats are widened on the way to shared
// memory, for convolutions that the tensor-core kernels do not take.
//
// Block:   one tile of ROWS x COLUMNS of one group. Slabs of k arrive in a ring of STAGES by asynchronous copies:
//          16 bytes where channels lie side by side, else 4, neighbouring lanes on neighbouring pixels or k. Where an
//          element of x lies, and whether it is padding, is the sum of an entry of two tables in shared memory: one of
//          the pixels, made once, and one of k, made one slab ahead by a few threads. SPLIT blocks take a part of k:
//          the last block of a tile adds the sums in the order of the parts.
// Warp:    WARP_ROWS x WARP_COLUMNS of sums, K_WARPS of them share a slab's k, added in order.
// Thread:  WARP_ROWS / 4 x WARP_COLUMNS / 8 sums in registers: 8 x 8 is 16 loads of 16 bytes for 256 multiply-adds.
// Traffic: x once per tap and channel tile from L2, w once per pixel tile from L2, y and residual once: 8 bytes per
//          clock and multiprocessor for a tile of 128 x 128, a quarter of what L2 gives.
// Padding: zeros in shared memory, which meet existing weights; beyond k both sides are zero. Inf in a weight makes NaN
//          of padding, as it does where padding is zeros in memory.
// Phases:  PHASED, several such products of the same x in one launch, see phases.cuh.
// Limits:  fewer than 2^31 pixels; one image of x and one group of w below 2^31 elements.
#include "epilogue.cuh"
#include "implicit_gemm.cuh"
#include "pointwise_output.cuh"

template <class X, class W, class B, class Y, int ACT, class TILE, class ACCESS>
__global__ void __launch_bounds__(TILE::kThreads, TILE::kBlocks)
    implicit_gemm(const X* __restrict__ x, const W* __restrict__ w, const B* __restrict__ bias,
                  const Y* __restrict__ residual, const int32*, const int32*, Y* __restrict__ y,
                  void* __restrict__ workspace, const Given<ImplicitGemmParams, ACCESS::kPhased> given) {
    typedef Plan<float, float, B, Y, IEEE, TILE, ACCESS> P;
    typedef typename P::Warp Warp;
    constexpr int kThreads = TILE::kThreads, kStages = TILE::kStages, kTileThreads = TILE::kWarps * 32;
    constexpr int kWarpSteps = TILE::kSlabBytes / Warp::kStepBytes / TILE::kKWarps, kAxes = ACCESS::kXAxes;
    static_assert(!TILE::kResident, "one tile per block");
    static_assert(sizeof(X) >= 2 && sizeof(X) <= 4, "float32 and 16-bit floats");

    const int thread = threadIdx.x;
    const Phase phase(given, blockIdx.x);
    const auto& p = params_of(given, phase);
    const Part part(phase.block, p);
    const WarpPlace<TILE> place(thread);
    const int first_channel = part.channel_tile * P::kChannels;
    w = opaque(w + (phase.w + part.group * p.w_group + int64(first_channel) * p.w_out));

    // Shared memory: bias | table of k | table of pixels | ring, used again for the sums and the staging.
    extern __shared__ __align__(128) unsigned char shared[];
    float* const shared_bias = reinterpret_cast<float*>(shared);
    typedef Term<kAxes> Entry;
    Entry* const terms = reinterpret_cast<Entry*>(shared + P::kBiasBytes);
    Pixel<X, kAxes>* const pixels = reinterpret_cast<Pixel<X, kAxes>*>(terms + kStages * P::kSlab);
    constexpr int kTables = kStages * P::kSlab * int(sizeof(Entry)) + P::kPixels * int(sizeof(Pixel<X, kAxes>));
    constexpr int kRingAt = P::kBiasBytes + ceil_div(kTables, 128) * 128;
    const uint32 ring = shared_address(shared) + kRingAt;

    const int slabs = ceil_div(p.depth, P::kSlab);
    const int slabs_per_part = TILE::kSplit ? ceil_div(slabs, p.splits) : slabs;
    const int first_slab = part.split * slabs_per_part, end_slab = min_of(slabs, first_slab + slabs_per_part);

    // Load: a slab of both operands.
    const auto stage_pixels = [&](uint32 to, const Entry* slab_terms, int thread) {
        constexpr int kUnit = ACCESS::kXCopy == 16 ? 4 : 1;
        const auto of_k = [&](int k) { return entry_of(slab_terms + k); };
        const auto of_pixel = [&](int line) { return entry_of(pixels + line); };
        const auto unit = [&](uint32 place, const Pixel<X, kAxes>& pixel, const Entry& term) {
            stage<kUnit>(place, pixel.x + term.x, inside(pixel, term, p.in));
        };
        const auto line_unit = [&](uint32 place, int line, int, const Entry& term) {
            unit(place, of_pixel(line), term);
        };
        if constexpr (ACCESS::kTransposed) {
            along_pixels<P::kPixels, P::kSlab, kThreads>(
                to, thread, of_pixel,
                [&](uint32 place, int k, const Pixel<X, kAxes>& pixel) { unit(place, pixel, of_k(k)); });
        } else if constexpr (ACCESS::kXCopy == GATHER_LINES) {
            along_lines<typename P::XLines, P::kPixels, kThreads>(to, thread, of_k, line_unit);
        } else {
            along_k<typename P::XLines, P::kPixels, kThreads, kUnit>(to, thread, of_k, line_unit);
        }
    };
    const auto stage_filter = [&](uint32 to, int first_k, const Entry* slab_terms, int thread) {
        constexpr int kUnit = ACCESS::kWCopy == 16 ? 4 : 1;
        const auto of_k = [&](int k) { return slab_terms[k].w; };
        const auto unit = [&](uint32 place, int line, int k, int32 offset) {
            const bool valid = first_channel + line < p.out_channels && first_k + k < p.depth;
            stage<kUnit>(place, w + (line * p.w_out + offset), valid);
        };
        if constexpr (ACCESS::kWCopy == GATHER_LINES) {
            along_lines<typename P::KLines, P::kChannels, kThreads>(to, thread, of_k, unit);
        } else {
            along_k<typename P::KLines, P::kChannels, kThreads, kUnit>(to, thread, of_k, unit);
        }
    };
    const auto make_terms = [&](int slab, int stage) {
        if (thread < P::kSlab) terms[stage * P::kSlab + thread] = make_term<kAxes>(slab * P::kSlab + thread, p);
    };
    const auto fetch = [&](int slab, int stage) {
        if (slab < end_slab) {
            const uint32 to = ring + stage * P::kStageBytes;
            const int own = opaque(thread);  // else what follows from it would stay in registers
            stage_pixels(to, terms + stage * P::kSlab, own);
            stage_filter(to + P::kXBytes, slab * P::kSlab, terms + stage * P::kSlab, own);
        }
        copy_commit();
    };

    for (int c = thread; c < P::kChannels; c += kThreads) {
        const bool present = bias != nullptr && first_channel + c < p.out_channels;
        shared_bias[c] = channel_term<float>(bias, part.group * p.out_channels + first_channel + c, present);
    }
    for (int i = thread; i < P::kPixels; i += kThreads) {
        pixels[i] = make_pixel<X, kAxes>(x + part.group * p.x_group, part.pixel_tile * P::kPixels + i, p);
    }
#pragma unroll 1
    for (int s = 0; s < kStages; s++) make_terms(first_slab + s, s);
    __syncthreads();
#pragma unroll 1
    for (int s = 0; s < kStages - 1; s++) fetch(first_slab + s, s);

    // Compute.
    Warp warp;
    warp.clear();
    int stage = 0;
#pragma unroll 1
    for (int slab = first_slab; slab < end_slab; slab++) {
        copy_wait<kStages - 2>();
        __syncthreads();  // the slab before it has been read, too, and so have its terms
        make_terms(slab + kStages, stage);
        fetch(slab + kStages - 1, stage == 0 ? kStages - 1 : stage - 1);
        const uint32 tile_x = ring + stage * P::kStageBytes, tile_w = tile_x + P::kXBytes;
#pragma unroll Warp::kUnrolledSteps
        for (int s = 0; s < kWarpSteps; s++) {
            warp.load_and_multiply(P::kInRows ? tile_x : tile_w, P::kInRows ? tile_w : tile_x, place.row, place.column,
                                   TILE::kKWarps == 1 ? s : place.k_warp * kWarpSteps + s, place.lane);
        }
        stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    copy_wait<0>();
    __syncthreads();  // the ring is free

    // Store. Where, is computed again: the loop needs the registers.
    const Phase whose(given, opaque(blockIdx.x));
    const Part out(whose.block, p);
    const WarpPlace<TILE> to(opaque(threadIdx.x));
    const int tile_thread = to.warp * 32 + to.lane;
    if constexpr (TILE::kKWarps > 1) {
        float* const sums = reinterpret_cast<float*>(shared + kRingAt + P::kStagingBytes);
        add_across_warps<TILE::kKWarps, kTileThreads>(warp, sums, to.k_warp, tile_thread);
    }
    if constexpr (TILE::kSplit) {
        const int tiles = p.channel_tiles * p.pixel_tiles * p.groups;
        const int number = (out.pixel_tile * p.groups + out.group) * p.channel_tiles + out.channel_tile;
        if (!add_across_blocks<kTileThreads>(warp, static_cast<float*>(nullptr), workspace,
                                             number * whose.count + whose.index, tiles * whose.count, out.split,
                                             p.splits, to.k_warp == 0, tile_thread)) {
            return;
        }
    }
    if (to.k_warp > 0) return;
    const Output<Y, P, TILE, ACCESS, ImplicitGemmParams> output = {
        p, shared + kRingAt + to.warp * TILE::kWarpRows * P::kPitch,
        out.pixel_tile * P::kPixels + (P::kInRows ? to.row : to.column),
        out.channel_tile * P::kChannels + (P::kInRows ? to.column : to.row), to.lane};
    if (residual) {
        output.fetch(residual + (whose.residual + out.group * p.residual_group));
        copy_commit();
        copy_wait<0>();
    }
    const Epilogue<ACT, float> epilogue(p.alpha, p.beta);
    output.finish(warp, epilogue, shared_bias, to.row, to.column, residual != nullptr);
    output.flush(y + (whose.y + out.group * p.y_group));
}
