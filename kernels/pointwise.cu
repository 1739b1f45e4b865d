// 1x1 convolution as a matrix product: sum[pixel][channel] = sum over k of x[pixel][k] * w[channel][k], per group.
//
// Pixels are all output positions of the batch, counted over the axes that do not collapse into one stride. Rows and
// columns of the product are chosen by the output: columns are its contiguous axis, so channels-last has pixels in the
// rows and channels-first has channels in the rows; one body serves both.
//
// Block:   one tile of ROWS x COLUMNS. A ring of STAGES slabs of k is filled by asynchronous copies. RESIDENT blocks
//          hold the filter of their channels in shared memory, walk over pixel tiles and fetch ahead across them: for
//          layers bound by memory. Others fetch both operands, one tile per block. SPLIT blocks take a part of k only:
//          sums go to the workspace, and the last block of a tile adds them in the order of the parts.
// Warp:    WARP_ROWS x WARP_COLUMNS, float or int32 sums in registers. K_WARPS > 1: that many warps share the steps of
//          a slab, and their sums are added in order: short chains where there are few tiles (batch 1).
// Thread:  in the epilogue, Y_BYTES at a time (16 where alignment allows), staged in the warp's own shared memory.
// Traffic: x once per channel tile, from L2 after the first (blocks of the same pixels are neighbours in the grid);
//          y and residual once; w once per block, from L2.
// Phases:  PHASED, several such products of the same x in one launch, see phases.cuh.
// Limits:  fewer than 2^31 pixels; element offsets are 64-bit.
#include "epilogue.cuh"
#include "pointwise_output.cuh"
#include "pointwise_plan.cuh"
#include "pointwise_stage.cuh"

template <class X, class W, class B, class Y, int ENGINE, int ACT, class TILE, class ACCESS>
__global__ void __launch_bounds__(TILE::kThreads, TILE::kBlocks)
    pointwise(const X* __restrict__ x, const W* __restrict__ w, const B* __restrict__ bias,
              const Y* __restrict__ residual, const int32* __restrict__ x_zero_point,
              const int32* __restrict__ w_zero_point, Y* __restrict__ y, void* __restrict__ workspace,
              const Given<PointwiseParams, ACCESS::kPhased> given) {
    typedef Plan<X, W, B, Y, ENGINE, TILE, ACCESS> P;
    typedef typename P::Warp Warp;
    typedef typename P::Acc Acc;
    constexpr int kThreads = TILE::kThreads, kStages = TILE::kStages, kTileThreads = TILE::kWarps * 32;
    constexpr int kWarpSteps = TILE::kSlabBytes / Warp::kStepBytes / TILE::kKWarps;

    // Which part of the problem: channel tiles are the fastest, so that neighbours read the same pixels.
    const Phase phase(given, blockIdx.x);
    const auto& p = params_of(given, phase);
    int rest = phase.block;
    const int channel_tile = rest % p.channel_tiles;
    rest /= p.channel_tiles;
    const int part = TILE::kSplit ? rest % p.splits : 0;
    if constexpr (TILE::kSplit) rest /= p.splits;
    const int worker = rest % p.workers, group = rest / p.workers;
    x += group * p.x_group;
    w += group * p.w_group;
    if constexpr (ACCESS::kPhased) w += phase.w;
    // Looked up again where they are needed: the loop has no registers for them.
    const auto y_of_group = [&] {
        if constexpr (ACCESS::kPhased) return y + (Phase(given, opaque(blockIdx.x)).y + group * p.y_group);
        return y + group * p.y_group;
    };
    const auto residual_of_group = [&] {
        if constexpr (ACCESS::kPhased) {
            return residual + (Phase(given, opaque(blockIdx.x)).residual + group * p.residual_group);
        }
        return residual + group * p.residual_group;
    };
    const int first_channel = channel_tile * P::kChannels;

    const int thread = threadIdx.x, lane = thread % 32, warp_id = thread / 32;
    const int tile_warp = warp_id % TILE::kWarps, k_warp = warp_id / TILE::kWarps;
    const int warp_row = tile_warp / (TILE::kColumns / TILE::kWarpColumns) * TILE::kWarpRows;
    const int warp_column = tile_warp % (TILE::kColumns / TILE::kWarpColumns) * TILE::kWarpColumns;

    // Shared memory: bias | RESIDENT: staging, ring, filter | otherwise: ring, used again for the sums and the staging.
    extern __shared__ __align__(128) unsigned char shared[];
    typedef ChannelTerm<B, Acc> Term;
    Term* const shared_bias = reinterpret_cast<Term*>(shared);
    constexpr int kStagingAt = P::kBiasBytes;
    constexpr int kRingAt = kStagingAt + (TILE::kResident ? P::kStagingBytes : 0);
    const uint32 ring = shared_address(shared) + kRingAt, filter = ring + kStages * P::kStageBytes;
    static_assert(kRingAt % 128 == 0 || !TILE::kResident, "the ring starts at a line");

    const int slabs = ceil_div(p.in_channels, P::kSlab);
    const int slabs_per_part = TILE::kSplit ? ceil_div(slabs, p.splits) : slabs;
    const int first_slab = part * slabs_per_part, end_slab = min_of(slabs, first_slab + slabs_per_part);

    auto stage_filter = [&](uint32 tile, int slab) {
        auto line = [&](int channel) {
            return first_channel + channel < p.out_channels ? w + (first_channel + channel) * p.w_out : nullptr;
        };
        if constexpr (ACCESS::kWCopy < 4) {
            gather_lines<W, typename P::KLines, P::kChannels, kThreads, ACCESS::kWCopy, P::kGatheredAtOnce>(
                tile, thread, slab * P::kSlab, p.in_channels, p.w_channel, line);
        } else {
            stage_lines<W, typename P::KLines, P::kChannels, kThreads, ACCESS::kWCopy>(
                tile, w, thread, slab * P::kSlab, p.in_channels, [&](int, int channel) { return line(channel); });
        }
    };

    // Prologue: bias, resident filter, and the first slabs of the ring.
    for (int c = thread; c < P::kChannels; c += kThreads) {
        const int channel = first_channel + c;
        const bool present = bias != nullptr && channel < p.out_channels;
        shared_bias[c] = channel_term<Acc>(bias, group * p.out_channels + channel, present);
    }
    if constexpr (TILE::kResident) {
#pragma unroll 1
        for (int slab = 0; slab < slabs; slab++) stage_filter(filter + slab * P::kWBytes, slab);
    }
    PixelSource<X, typename P::XLines, P::kPixels, P::kSlab, kThreads, ACCESS::kXCopy, P::kGatheredAtOnce,
                ACCESS::kXAxes, ACCESS::kTransposed, PointwiseParams>
        pixels(x, p, thread);
    int next_tile = worker, next_slab = first_slab;
    pixels.enter(next_tile);
    auto fetch_next = [&](int stage) {
        if (next_tile < p.pixel_tiles && next_slab < end_slab) {
            pixels.stage(ring + stage * P::kStageBytes, next_slab * P::kSlab, p.in_channels);
            if constexpr (!TILE::kResident) stage_filter(ring + stage * P::kStageBytes + P::kXBytes, next_slab);
            next_slab++;
            if (TILE::kResident && next_slab == slabs) {
                next_slab = 0;
                next_tile += p.workers;
                pixels.enter(next_tile);
            }
        }
        copy_commit();
    };
#pragma unroll
    for (int s = 0; s < kStages - 1; s++) fetch_next(s);

    // sum (x - zx) w = sum x w - zx sum w: the last term joins the bias while the first slabs arrive.
    if constexpr (ENGINE == TENSOR_CORES && same<Acc, int32>) {
        const int32 zx = x_zero_point ? *x_zero_point : 0;
        if (zx) __syncthreads();
        for (int c = zx ? warp_id : P::kChannels; c < P::kChannels; c += kThreads / 32) {
            const int channel = first_channel + c;
            if (channel >= p.out_channels) break;
            constexpr int kWidth = ACCESS::kWCopy < 4 ? 1 : ACCESS::kWCopy;
            const W* const from = w + channel * p.w_out;
            const int32 sum = warp_sum(lane_sum<W, kWidth>(from, p.w_channel, p.in_channels, lane));
            if (lane == 0) add_to_bias(shared_bias[c], -zx * sum);
        }
    }

    Warp warp;
    Epilogue<ACT, Acc> epilogue(p.alpha, p.beta);
    int stage = 0;
#pragma unroll 1
    for (int tile = worker; tile < p.pixel_tiles; tile += p.workers) {
        const Output<Y, P, TILE, ACCESS, PointwiseParams> output = {
            p, shared + kStagingAt + tile_warp * TILE::kWarpRows * P::kPitch,
            tile * P::kPixels + (P::kInRows ? warp_row : warp_column),
            first_channel + (P::kInRows ? warp_column : warp_row), lane};
        warp.clear();
        auto next_slab_arrived = [&](bool first) {
            copy_wait<kStages - 2>();
            __syncthreads();  // the slab before it has been read, too
            if (TILE::kResident && first && residual) output.fetch(residual_of_group());
            fetch_next(stage == 0 ? kStages - 1 : stage - 1);
        };
        auto tile_of = [&](bool of_x, int slab) {
            if (TILE::kResident && !of_x) return filter + slab * P::kWBytes;
            return ring + stage * P::kStageBytes + (of_x ? 0 : P::kXBytes);
        };
        auto step_of = [&](int s) { return TILE::kKWarps == 1 ? s : k_warp * kWarpSteps + s; };
        if constexpr (Warp::kFused) {
#pragma unroll 1
            for (int slab = first_slab; slab < end_slab; slab++) {
                next_slab_arrived(slab == first_slab);
                const uint32 tile_a = tile_of(P::kInRows, slab), tile_b = tile_of(!P::kInRows, slab);
#pragma unroll Warp::kUnrolledSteps
                for (int s = 0; s < kWarpSteps; s++) {
                    warp.load_and_multiply(tile_a, tile_b, warp_row, warp_column, step_of(s), lane);
                }
                stage = stage + 1 == kStages ? 0 : stage + 1;
            }
        } else if (first_slab < end_slab) {
            // The fragments of a step are loaded while the products of the step before it run, across slabs as well.
            constexpr int kBuffers =
                kWarpSteps % 2 == 0 ? Warp::kBuffers : 1;  // a slab ends with the one it began with
            typename Warp::Fragments fragments[kBuffers];
            auto load_step = [&](int buffer, int slab, int s) {
                Warp::load(fragments[buffer], tile_of(P::kInRows, slab), tile_of(!P::kInRows, slab), warp_row,
                           warp_column, step_of(s), lane);
            };
            next_slab_arrived(true);
            load_step(0, first_slab, 0);
#pragma unroll 1
            for (int slab = first_slab; slab < end_slab; slab++) {
#pragma unroll
                for (int s = 0; s < kWarpSteps; s++) {
                    if (kBuffers == 1) warp.multiply(fragments[0]);
                    if (s + 1 < kWarpSteps) {
                        load_step((s + 1) % kBuffers, slab, s + 1);
                    } else {
                        stage = stage + 1 == kStages ? 0 : stage + 1;
                        if (slab + 1 < end_slab) {
                            next_slab_arrived(false);
                            load_step(0, slab + 1, 0);
                        }
                    }
                    if (kBuffers == 2) warp.multiply(fragments[s % kBuffers]);
                }
            }
        }

        if constexpr (ENGINE == TENSOR_CORES_ZERO_POINTS) {
            // The term K za zb belongs to one of the warps and blocks that share the sum.
            const int32 zx = x_zero_point ? *x_zero_point : 0;
            const int32 both = k_warp == 0 && part == 0 ? p.in_channels * zx : 0;
#pragma unroll
            for (int i = 0; i < Warp::kRows; i++) {
#pragma unroll
                for (int j = 0; j < Warp::kColumns; j++) {
#pragma unroll
                    for (int e = 0; e < Warp::kRun; e++) {
                        const int row = Warp::row(lane, i), column = Warp::column(lane, j) + e;
                        const int channel = output.channel(row, column);
                        const bool present = w_zero_point != nullptr && channel < p.out_channels;
                        const int32 zw = present ? w_zero_point[group * p.out_channels + channel] : 0;
                        const int32 sum_x = P::kInRows ? warp.row_sum[i][0] : warp.column_sum[j][e];
                        const int32 sum_w = P::kInRows ? warp.column_sum[j][e] : warp.row_sum[i][0];
                        warp.sum[i][j][e] += both * zw - zx * sum_w - zw * sum_x;
                    }
                }
            }
        }
        if constexpr (!TILE::kResident) {
            copy_wait<0>();
            __syncthreads();  // the ring is free
        }
        if constexpr (TILE::kKWarps > 1) {
            Acc* const sums = reinterpret_cast<Acc*>(shared + kStagingAt + P::kStagingBytes);
            add_across_warps<TILE::kKWarps, kTileThreads>(warp, sums, k_warp, thread % kTileThreads);
        }
        if constexpr (TILE::kSplit) {
            const int tiles =
                p.channel_tiles * p.pixel_tiles * int(phase.blocks / (p.channel_tiles * p.splits * p.workers));
            const int tile_id = (group * p.pixel_tiles + tile) * p.channel_tiles + channel_tile;
            if (!add_across_blocks<kTileThreads>(warp, static_cast<Acc*>(nullptr), workspace,
                                                 tile_id * phase.count + phase.index, tiles * phase.count, part,
                                                 p.splits, k_warp == 0, thread % kTileThreads)) {
                return;
            }
        }
        if (k_warp > 0) return;

        if (residual) {
            if constexpr (TILE::kResident) {
                copy_wait_for<kStages - 1>(slabs - 1);  // the residual came with the first slab's group
            } else {
                output.fetch(residual_of_group());
                copy_commit();
                copy_wait<0>();
            }
        }
        output.finish(warp, epilogue, shared_bias, warp_row, warp_column, residual != nullptr);
        output.flush(y_of_group());
        if constexpr (!TILE::kResident) return;
    }
    copy_wait<0>();
}
