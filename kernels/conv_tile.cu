// Dense and grouped convolution, channels last, 16-bit floats or 8-bit integers: products of tensor cores straight from
// a haloed tile of the input.
//
// Block: one tile of output pixels (images x rows x columns) and one set of outputs, for tile after tile. The input
// under the tile, a halo included, arrives once by asynchronous copies, in slabs of channels, in a ring of STAGES; the
// filter stays in shared memory (RESIDENT) or comes with the slabs. Warp: BARS bars of 16 pixels x kTiles tiles of 8
// outputs, float32 or int32 sums. Operand A comes by ldmatrix from the input tile at a shifted pixel: row y of the
// input is read once per filter column and multiplied with every filter row that it touches, R times fewer reads than
// one per tap. k runs over the columns and channels of a filter row, 32 bytes at a time; where a unit has one chunk of
// 16 bytes that is two taps, and an odd last one is a half product. Thread: in the epilogue Y_BYTES at a time, staged
// through the warp's own shared memory. Groups of less than 8 channels (GROUPS of them in a chunk) are products with a
// block-diagonal filter: its zeros meet the inputs of other groups, which is NaN where those are not finite. A warp
// that finds NaN in its sums computes them again, group by group, with the other groups' inputs cleared. Integers:
// padding is filled with the zero point of x, so that it contributes nothing, and sum (x - zx) w = sum x w - zx sum w,
// whose last term a block adds to the bias once. The zero point of w must be 0. PHASED: several convolutions of the
// same x in one launch, see phases.cuh. Traffic: input once plus the halo (from L2), per block of outputs; output and
// residual once; filter once per block. Limits: channels of x side by side, all other strides of x whole chunks and
// 16-byte aligned, or they are gathered; one image of x and of y below 2^31 elements.
#include "epilogue.cuh"
#include "conv_tile.cuh"

// GROUPS: groups in one chunk of 8 channels, 1 where a group has its own. X_COPY: see stage_pixels and gather_pixels.
// W_COPY: see stage_filter. Y_CHANNELS: whether stores run along the channels, else along the pixels of a row. PHASED:
// see phases.cuh; 2: phases have different taps, and F the most.
template <int GROUPS, int X_COPY, int W_COPY, int RESIDUAL, int Y_CHANNELS, int Y_BYTES, int PHASED = 0>
struct Access {
    static constexpr int kGroups = GROUPS, kYBytes = Y_BYTES;
    static constexpr bool kPhased = PHASED, kUneven = PHASED == 2;
    static constexpr bool kXCopy = X_COPY, kWCopy = W_COPY, kResidual = RESIDUAL, kYChannels = Y_CHANNELS;
    static_assert(8 % GROUPS == 0 && !(W_COPY && GROUPS > 1), "whole groups in a chunk; only whole chunks are copied");
};

// All products of one slab of one unit. pixels and filter: of this warp and lane, see the kernel. MASKED: only the
// halves of the operand words selected by mask take part. first, end: of the steps along a filter row, constants. taps:
// those that exist; what a missing one would meet must not be multiplied, not even with zero.
template <class T, class W, class F, bool MASKED, class Acc, class TILE, class TAPS>
DEVICE void multiply(Sums<Acc, TILE>& sums, uint32 pixels, uint32 filter, uint32 mask, int lane, int first, int end,
                     const TAPS& taps) {
    typedef Layout<F, TILE> L;
    constexpr int kItems = F::kColumns * TILE::kChunks;
    constexpr int kStride = TILE::kAlongRow ? 1 : F::kStrideRows;
    constexpr int kStepBytes = TILE::kAlongRow ? 16 * L::kPixelBytes : L::kRowBytes;
    constexpr int kInputs = (TILE::kBars - 1) * kStride + (F::kRows - 1) * F::kDilationRows + 1;
    static_assert(!TILE::kAlongRow || F::kRows == 1, "bars along a row share no input rows");
    const auto offset = [](int item) {
        return L::slot(item / TILE::kChunks * F::kDilationColumns) * L::kPixelBytes + item % TILE::kChunks * 16;
    };
    const uint32 line_pair = filter + (lane % 8 + lane / 16 * 8) * L::kLineBytes + lane / 8 % 2 * 16;
    const uint32 line = filter + lane % 16 * L::kLineBytes;
#pragma unroll
    for (int step = first; step < end; step++) {
        const int item = step * 2;
        const bool whole = item + 1 < kItems;  // else one chunk is left
        if (!taps.has_column(item / TILE::kChunks)) break;
        uint32 b[F::kRows][TILE::kWarpTiles][2];
#pragma unroll
        for (int r = 0; r < F::kRows; r++) {
#pragma unroll
            for (int j = 0; j < TILE::kWarpTiles; j += 2) {
                const uint32 at = (r * kItems + item) * 16 + j * 8 * L::kLineBytes;
                if (j + 1 == TILE::kWarpTiles) {
                    if (whole) {
                        ldmatrix_x2(b[r][j][0], b[r][j][1], line_pair + at);
                    } else {
                        ldmatrix_x1(b[r][j][0], line + at);
                    }
                } else if (whole) {
                    uint32 four[4];
                    ldmatrix_x4(four, line_pair + at);
                    b[r][j][0] = four[0], b[r][j][1] = four[1];
                    b[r][(j + 1) % TILE::kWarpTiles][0] = four[2], b[r][(j + 1) % TILE::kWarpTiles][1] = four[3];
                } else {
                    ldmatrix_x2(b[r][j][0], b[r][(j + 1) % TILE::kWarpTiles][0], line + at);
                }
            }
        }
        const uint32 from = pixels + offset(item) + (whole ? lane / 16 * (offset(item + 1) - offset(item)) : 0);
#pragma unroll
        for (int y = 0; y < kInputs; y++) {
            bool read = false;
            uint32 a[4];
#pragma unroll
            for (int r = 0; r < F::kRows; r++) {
                const int above = y - r * F::kDilationRows;
                if (above < 0 || above % kStride != 0 || above / kStride >= TILE::kBars || !taps.has_row(r)) continue;
                if (!read) {
                    if (whole) {
                        ldmatrix_x4(a, from + y * kStepBytes);
                    } else {
                        ldmatrix_x2(a[0], a[1], from + y * kStepBytes);
                    }
                    if constexpr (MASKED) {
#pragma unroll
                        for (int i = 0; i < (whole ? 4 : 2); i++) a[i] &= mask;
                    }
                    if (whole && !taps.has_column((item + 1) / TILE::kChunks)) a[2] = a[3] = 0;
                    read = true;
                }
#pragma unroll
                for (int j = 0; j < TILE::kWarpTiles; j++) {
                    Acc(&sum)[2][2] = sums.bar[above / kStride][j];
                    if (whole) {
                        mma<T, W>(sum[0], sum[1], a, b[r][j][0], b[r][j][1]);
                    } else {
                        mma_half<T, W>(sum[0], sum[1], a[0], a[1], b[r][j][0]);
                    }
                }
            }
        }
    }
}

// Where an output goes, and how many bars below each other are inside the output.
struct Place {
    int64 offset;
    int bars;
};

template <class T, class W, class B, class Y, int ACT, class F, class TILE, class ACCESS>
__global__ void __launch_bounds__(TILE::kThreads, TILE::kBlocks)
    conv_tile(const T* __restrict__ x, const W* __restrict__ w, const B* __restrict__ bias,
              const Y* __restrict__ residual, const int32* __restrict__ x_zero_point, const int32*, Y* __restrict__ y,
              void*, const Given<ConvTileParams, ACCESS::kPhased> given) {
    typedef Layout<F, TILE> L;
    constexpr int kGroups = ACCESS::kGroups, kWarpOutputs = TILE::kTiles * 8, kUnitOutputs = TILE::kUnitTiles * 8;
    constexpr int kStore = ACCESS::kYBytes / sizeof(Y);                                   // elements
    constexpr int kStagedBytes = (ceil_div(kWarpOutputs * int(sizeof(Y)), 16) | 1) * 16;  // of a pixel
    constexpr bool kInteger = sizeof(T) == 1;
    typedef typename Select<kInteger, int32, float>::type Acc;
    typedef ChannelTerm<B, Acc> Term;
    typedef Sums<Acc, TILE> UnitSums;
    static_assert(kInteger ? sizeof(W) == 1 : same<T, W> && (same<T, float16> || same<T, bfloat16>),
                  "the operands are 16-bit floats of one type, or 8-bit integers");
    static_assert(!kInteger || (kGroups == 1 && !ACCESS::kResidual), "8-bit: whole chunks, no residual");
    static_assert(kGroups == 1 || (TILE::kChunks == 1 && TILE::kResident), "small groups: one chunk, one slab");

    // Shared memory: bias | staged outputs of every warp | ring | filter (RESIDENT).
    extern __shared__ __align__(128) unsigned char shared[];
    constexpr int kStagingAt = ceil_div(L::kLines * int(sizeof(Term)), 128) * 128;
    constexpr int kRingAt = kStagingAt + TILE::kWarps * 16 * kStagedBytes;
    Term* const shared_bias = reinterpret_cast<Term*>(shared);
    const uint32 ring = shared_address(shared) + kRingAt, resident = ring + TILE::kStages * L::kStageBytes;

    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int warp_m = warp / TILE::kWarpsN, warp_n = warp % TILE::kWarpsN;
    const Phase phase(given, blockIdx.x);
    const auto& p = params_of(given, phase);
    const Taps<ACCESS::kUneven> taps(given, phase);
    const int blocks = phase.blocks / p.workers, channels = phase.block % blocks, worker = phase.block / blocks;
    const int first_unit = channels / p.parts * TILE::kUnits, first_output = channels % p.parts * kUnitOutputs;
    x += int64(first_unit) * p.unit_channels * p.x_channel;
    w += phase.w, y += phase.y;
    if constexpr (ACCESS::kResidual) residual += phase.residual;

    for (int line = thread; line < L::kLines; line += TILE::kThreads) {
        const int unit = first_unit + line / kUnitOutputs, output = first_output + line % kUnitOutputs;
        const bool present = bias != nullptr && unit < p.units && output < p.unit_outputs;
        shared_bias[line] = channel_term<Acc>(bias, unit * p.unit_outputs + output, present);
    }
    const int32 x_zero = kInteger && x_zero_point ? *x_zero_point : 0;
    if constexpr (kInteger) {
        __syncthreads();
        for (int line = x_zero ? warp : L::kLines; line < L::kLines; line += TILE::kWarps) {
            const int unit = first_unit + line / kUnitOutputs, output = first_output + line % kUnitOutputs;
            if (unit >= p.units || output >= p.unit_outputs) continue;
            const int32 sum = filter_sum<W, F, ACCESS::kWCopy>(w, unit, output, p, lane, taps);
            if (lane == 0) add_to_bias(shared_bias[line], -x_zero * sum);
        }
    }
    const uint32 outside = four_bytes(x_zero);
    if constexpr (TILE::kResident) {
#pragma unroll 1
        for (int slab = 0; slab < p.slabs; slab++) {
            stage_filter<W, F, TILE, kGroups, ACCESS::kWCopy>(resident + slab * L::kFilterBytes, w, first_unit,
                                                              first_output, slab, p, thread, taps);
        }
    }
    Cursor next(worker, p);
    int next_slab = 0;
    const auto fetch_next = [&](int stage) {
        if (next.image * TILE::kImages < p.images) {
            const uint32 to = ring + stage * L::kStageBytes;
            if constexpr (ACCESS::kXCopy) {
                const int left = TILE::kUnits == 1 ? p.unit_chunks - next_slab * TILE::kChunks
                                                   : (p.units - first_unit) * TILE::kChunks;
                stage_pixels<T, F, TILE>(to, x + next_slab * TILE::kChunks * kChunkChannels<T>, left, next, p, warp,
                                         lane, outside);
            } else {
                gather_pixels<T, F, TILE>(to, x, p.units - first_unit, next_slab * TILE::kChunks * kChunkChannels<T>,
                                          next, p, warp, lane, outside);
            }
            if constexpr (!TILE::kResident) {
                stage_filter<W, F, TILE, kGroups, ACCESS::kWCopy>(to + L::kInputBytes, w, first_unit, first_output,
                                                                  next_slab, p, thread, taps);
            }
            if (++next_slab == p.slabs) next_slab = 0, next.advance(p);
        }
        copy_commit();
    };
#pragma unroll
    for (int s = 0; s < TILE::kStages - 1; s++) fetch_next(s);
    __syncthreads();  // the bias is there

    // Where strip s (0 or 1) of warp m lies in the tile.
    const auto strip_image = [](int m, int s) { return (m * 2 + s) / (TILE::kRowStrips * TILE::kColumnStrips); };
    const auto strip_row = [](int m, int s) {
        return TILE::kAlongRow ? 0 : (m * 2 + s) / TILE::kColumnStrips % TILE::kRowStrips * TILE::kBars;
    };
    const auto strip_column = [](int m, int s) {
        return TILE::kAlongRow ? m * TILE::kBars * 16 + s * 8 : (m * 2 + s) % TILE::kColumnStrips * 8;
    };
    // The lane's pixel of the first bar: lanes 0-7 and 16-23 in strip 0, the others in strip 1. Outputs lie
    // kStrideColumns columns apart, in neighbouring slots.
    const int strip = lane / 8 % 2;
    const int first_chunk = TILE::kUnits == 1 ? 0 : warp_n * TILE::kWarpUnits * TILE::kChunks;
    const uint32 pixels =
        (strip_image(warp_m, strip) * L::kRows + strip_row(warp_m, strip) * F::kStrideRows) * L::kRowBytes +
        (strip_column(warp_m, strip) + lane % 8) * L::kPixelBytes + first_chunk * 16;
    unsigned char* const staging = shared + kStagingAt + warp * 16 * kStagedBytes;
    const auto staged = [&](int pixel, int column) {
        return reinterpret_cast<Y*>(staging + pixel * kStagedBytes) + column;
    };
    const Epilogue<ACT, Acc> epilogue(p.alpha, p.beta);
    // Where the products bind, of the two warps of a scheduler one fetches while the other one multiplies.
    constexpr int kSteps = ceil_div(F::kColumns * TILE::kChunks, 2);
    constexpr bool kTurns = TILE::kUnits == 1 && TILE::kWarps == 8 && kSteps > 1;
    constexpr int kHalf = kTurns ? kSteps / 2 : kSteps;
    const bool fetches_first = !kTurns || warp < 4;

    int stage = 0;
#pragma unroll 1
    for (Cursor at(worker, p); at.image * TILE::kImages < p.images; at.advance(p)) {
        UnitSums sums[TILE::kWarpUnits];
        // Sums of floats begin with the bias; what integers get is added in the epilogue.
        const auto clear = [&](UnitSums& unit_sums, int u) {
            const Term* const from = shared_bias + warp_n * kWarpOutputs + u * TILE::kWarpTiles * 8;
            for_each_sum(unit_sums, lane, [&](Acc& sum, int column) {
                if constexpr (kInteger) {
                    sum = 0;
                } else {
                    sum = from[column];
                }
            });
        };
#pragma unroll
        for (int u = 0; u < TILE::kWarpUnits; u++) clear(sums[u], u);

        const auto filter_of = [&](int slab, int u) {
            const uint32 all =
                TILE::kResident ? resident + slab * L::kFilterBytes : ring + stage * L::kStageBytes + L::kInputBytes;
            return all + (warp_n * TILE::kTiles + u * TILE::kWarpTiles) * 8 * L::kLineBytes;
        };
        const auto pixels_of = [&](int u) { return ring + stage * L::kStageBytes + pixels + u * TILE::kChunks * 16; };
        const auto multiply_units = [&](int slab, int first, int end) {
#pragma unroll
            for (int u = 0; u < TILE::kWarpUnits; u++) {
                multiply<T, W, F, false>(sums[u], pixels_of(u), filter_of(slab, u), 0, lane, first, end, taps);
            }
        };
        int slab = 0;
#pragma unroll 1
        do {  // there is at least one: the sums need not be kept for none
            if (slab > 0) stage = stage + 1 == TILE::kStages ? 0 : stage + 1;
            copy_wait<TILE::kStages - 2>();
            __syncthreads();
            const int free_stage = stage == 0 ? TILE::kStages - 1 : stage - 1;
            if (fetches_first) fetch_next(free_stage);
            multiply_units(slab, 0, kHalf);
            if (kTurns && !fetches_first) fetch_next(free_stage);
            if (kTurns) multiply_units(slab, kHalf, kSteps);
        } while (++slab < p.slabs);
        if constexpr (kGroups > 1) {
            bool spread = false;
#pragma unroll
            for (UnitSums& s : sums) for_each_sum(s, lane, [&](float v, int) { spread |= v != v; });
            if (__any_sync(0xffffffff, spread)) {
#pragma unroll
                for (int u = 0; u < TILE::kWarpUnits; u++) {
#pragma unroll 1
                    for (int g = 0; g < kGroups; g++) {
                        constexpr int kChannels = 8 / kGroups;
                        const int channel = lane % 4 * 2;
                        const uint32 mask = (channel / kChannels == g ? 0xffffu : 0) |
                                            ((channel + 1) / kChannels == g ? 0xffff0000u : 0);
                        UnitSums exact;
                        clear(exact, u);
                        multiply<T, W, F, true>(exact, pixels_of(u), filter_of(0, u), mask, lane, 0, kSteps, taps);
#pragma unroll
                        for (int i = 0; i < TILE::kBars; i++) {
#pragma unroll
                            for (int j = 0; j < TILE::kWarpTiles * 4; j++) {
                                const int column = j / 4 * 8 + lane % 4 * 2 + j % 2;
                                float& sum = sums[u].bar[i][j / 4][j / 2 % 2][j % 2];
                                if (column / p.out_per_group == g) sum = exact.bar[i][j / 4][j / 2 % 2][j % 2];
                            }
                        }
                    }
                }
            }
        }
        stage = stage + 1 == TILE::kStages ? 0 : stage + 1;

        // All places are computed here, or they would stay in registers while products are computed.
        const int epilogue_lane = opaque(lane), epilogue_m = opaque(warp_m), epilogue_n = opaque(warp_n);
        // Where pixel l of strip s of bar 0 lies, and how many bars are inside the output.
        const auto place = [&](int s, int l, int64 image_stride, int row_stride, int column_stride) {
            const int image = at.image * TILE::kImages + strip_image(epilogue_m, s);
            const int row = at.row * TILE::kRows + strip_row(epilogue_m, s);
            const int column = at.column * TILE::kColumns + strip_column(epilogue_m, s) + l;
            const bool inside = (image < p.images) & (column < p.out_columns);
            const int bars = TILE::kAlongRow ? (p.out_columns - column + 15) / 16 : p.out_rows - row;
            return Place{image * image_stride + (row * row_stride + column * column_stride), inside ? bars : 0};
        };
        // Which channel `column` of the warp's outputs is, -1 outside.
        const auto channel = [&](int column) {
            const int unit =
                first_unit + (TILE::kUnits == 1 ? 0 : epilogue_n * TILE::kWarpUnits + column / kUnitOutputs);
            const int output =
                first_output + (TILE::kUnits == 1 ? epilogue_n * kWarpOutputs + column : column % kUnitOutputs);
            return (unit < p.units) & (output < p.unit_outputs) ? unit * p.unit_outputs + output : -1;
        };
        const int y_bar = TILE::kAlongRow ? 16 * p.y_column : p.y_row;
        const int residual_bar = TILE::kAlongRow ? 16 * p.residual_column : p.residual_row;
#pragma unroll
        for (int bar = 0; bar < TILE::kBars; bar++) {
            __syncwarp();                                        // the previous bar has left the staging
            const int residual_at = opaque(bar * residual_bar);  // or the residual of all bars would be loaded at once
#pragma unroll
            for (int j = 0; j < TILE::kTiles; j++) {
#pragma unroll
                for (int s = 0; s < 2; s++) {
                    const int column = j * 8 + epilogue_lane % 4 * 2;
                    Acc(&sum)[2] = sums[j / TILE::kWarpTiles].bar[bar][j % TILE::kWarpTiles][s];
                    if constexpr (ACCESS::kResidual) {
                        constexpr int kPair = ACCESS::kYChannels && kStore > 1 ? 2 : 1;
#pragma unroll
                        for (int e = 0; e < 2; e += kPair) {
                            const Place from =
                                place(s, epilogue_lane / 4, p.residual_image, p.residual_row, p.residual_column);
                            const int at_channel = channel(column + e);
                            if ((bar < from.bars) & (at_channel >= 0)) {
                                const Y* const address =
                                    residual + (from.offset + residual_at + at_channel * p.residual_channel);
                                const Vector<Y, kPair> before = load<Y, kPair>(address);
#pragma unroll
                                for (int i = 0; i < kPair; i++) sum[e + i] += element<float>(before, i);
                            }
                        }
                    }
                    Acc finished[2];
                    if constexpr (kInteger) {
                        const Term* const term = shared_bias + epilogue_n * kWarpOutputs + column;
                        finished[0] = epilogue.finish(sum[0], term[0], 0);
                        finished[1] = epilogue.finish(sum[1], term[1], 0);
                    } else {
                        finished[0] = epilogue.activate(sum[0]), finished[1] = epilogue.activate(sum[1]);
                    }
                    store(staged(s * 8 + epilogue_lane / 4, column), pack<Y>(finished));
                }
            }
            __syncwarp();
            constexpr int kPixels = ACCESS::kYChannels ? 1 : kStore, kColumns = kStore / kPixels;  // of one store
            constexpr int kStores = 16 * kWarpOutputs / kStore;
#pragma unroll(kStores > 256 ? 1 : 8)
            for (int i = 0; i < ceil_div(kStores, 32); i++) {
                const int number = i * 32 + epilogue_lane;  // stores that follow each other in memory first
                const int pixel =
                    ACCESS::kYChannels ? number / (kWarpOutputs / kColumns) : number % (16 / kPixels) * kPixels;
                const int column =
                    ACCESS::kYChannels ? number % (kWarpOutputs / kColumns) * kColumns : number / (16 / kPixels);
                if (kStores % 32 && number >= kStores) break;
                const Place to = place(pixel / 8, pixel % 8, p.y_image, p.y_row, p.y_column);
                const int at_channel = channel(column);
                if ((bar < to.bars) & (at_channel >= 0)) {
                    Vector<Y, kStore> v = zero_vector<Y, kStore>();
                    if constexpr (ACCESS::kYChannels) {
                        v = load<Y, kStore, false>(staged(pixel, column));
                    } else {
#pragma unroll
                        for (int e = 0; e < kStore; e++) {
                            const uint32 raw = load<Y, 1, false>(staged(pixel + e, column)).word[0];
                            v.word[e * sizeof(Y) / 4] |= raw << 8 * (e * sizeof(Y) % 4);
                        }
                    }
                    store(y + (to.offset + bar * y_bar + at_channel * p.y_channel), v);
                }
            }
        }
    }
}
