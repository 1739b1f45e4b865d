// Direct convolution over strided tensors: any layout, dtype, groups, dilations, up to three spatial axes.
//
// Thread: TILE outputs. Channels-fast outputs (nhwc): neighbouring threads take neighbouring channels and the tile runs
// along the last spatial axis, so one weight serves TILE products. Otherwise (nchw) neighbouring threads take
// neighbouring columns and the tile runs along the output channels, so one input serves TILE products. Either way a
// warp stores consecutive addresses. Block: 128 threads on consecutive tiles; no shared memory. Traffic per product: 1
// + 1 / TILE loads through L1, a quarter of it where 8-bit integers go four at a time. Order of the sum: filter
// position, then channel; a tap that falls into the padding or between dilated inputs is skipped, not multiplied by
// zero. Limits: Index = int32 needs every element offset, coordinate and thread index below 2^31; the host checks.
#include "epilogue.cuh"

// All sizes and strides (in elements) are int64 here and become Index in the kernel. Spatial axes: always three,
// slowest output stride first.
struct DirectParams {
    int64 threads;
    int64 x_strides[6];         // n, g, c, 3 spatial
    int64 w_strides[6];         // g, o, c, 3 filter
    int64 y_strides[6];         // n, g, o, 3 spatial
    int64 residual_strides[6];  // as y
    int64 groups;
    int64 in_per_group;
    int64 out_per_group;
    int64 in[3];
    int64 filter[3];
    int64 out[3];
    int64 strides[3];
    int64 padding[3];  // low side; negative crops
    int64 dilations[3];
    int64 input_dilations[3];
    int64 tap_steps[3];   // taps of one output that meet an input element lie this far apart,
    int64 in_steps[3];    // and the elements that they meet this far
    int64 column_step;    // columns of one tile lie this far apart: they meet the same taps,
    int64 column_stride;  // at inputs this far apart
    double alpha;
    double beta;
};
static_assert(sizeof(DirectParams) == 472, "gpu_conv/families/direct.py packs this struct");

constexpr int kDirectThreads = 128;

// How products are formed: one by one, or of 8-bit integers four input channels at a time, which must lie side by side
// and aligned. FOURS_SHIFTED sums the operands as well, for sum (x - zx)(w - zw) = sum xw - zx sum w - zw sum x + n zx
// zw.
enum Products { ONE_BY_ONE, FOURS, FOURS_SHIFTED };

// The last index of a mixed-radix number; the rest stays in t.
template <class Index>
DEVICE Index take(Index& t, int64 size) {
    const Index rest = t / Index(size), digit = t - rest * Index(size);
    t = rest;
    return digit;
}

// The taps of one output coordinate along one axis: tap, tap + tap_step, ... meet input at, at + in_step, ...
template <class Index>
struct Taps {
    Index tap, at;

    DEVICE Taps(const DirectParams& p, int axis, Index out) : tap(0), at(out * Index(p.strides[axis])) {
        at -= Index(p.padding[axis]);
        const Index input_dilation = Index(p.input_dilations[axis]);
        if (input_dilation == 1) return;
        while (tap < Index(p.tap_steps[axis]) && at % input_dilation != 0) tap++, at += Index(p.dilations[axis]);
        if (at % input_dilation != 0) tap = Index(p.filter[axis]);  // every tap falls between two elements
        at /= input_dilation;
    }
};

template <class X, class W, class B, class Y, class Acc, class Index, int PRODUCTS, bool CHANNELS_FAST, int TILE,
          int ACT>
__global__ void __launch_bounds__(kDirectThreads, 4)
    direct(const X* x, const W* w, const B* bias, const Y* residual, const int32* x_zero_point,
           const int32* w_zero_point, Y* y, void*, const DirectParams p) {
    static_assert(TILE >= 1 && TILE <= 8, "a tile lives in registers");
    static_assert(same<Index, int32> || same<Index, int64>, "offsets are 32 or 64 bits");
    static_assert(PRODUCTS == ONE_BY_ONE || (sizeof(X) == 1 && sizeof(W) == 1), "words hold four 8-bit integers");
    Index t = Index(blockIdx.x) * kDirectThreads + threadIdx.x;
    if (t >= Index(p.threads)) return;

    Index n, g, o, d, h, q;
    const Index column_step = Index(p.column_step);
    if constexpr (CHANNELS_FAST) {
        o = take(t, p.out_per_group);
        g = take(t, p.groups);
        q = take(t, ceil_div<Index>(Index(p.out[2]), column_step * TILE) * column_step);
        q = q / column_step * (column_step * TILE) + q % column_step;
        h = take(t, p.out[1]);
        d = take(t, p.out[0]);
        n = t;
    } else {
        q = take(t, p.out[2]);
        h = take(t, p.out[1]);
        d = take(t, p.out[0]);
        o = take(t, ceil_div<Index>(Index(p.out_per_group), TILE)) * TILE;
        g = take(t, p.groups);
        n = t;
    }
    // How many outputs of the tile exist, and what the next one adds to each coordinate and offset.
    const Index left = CHANNELS_FAST ? ceil_div<Index>(Index(p.out[2]) - q, column_step) : Index(p.out_per_group) - o;
    const Index step_at = CHANNELS_FAST ? Index(p.column_stride) : 0;
    const Index step_o = CHANNELS_FAST ? 0 : 1;
    const Index step_q = CHANNELS_FAST ? column_step : 0;
    const Index channel = g * Index(p.out_per_group) + o;

    Acc x_zero = 0, w_zero[TILE], sum[TILE];
#pragma unroll
    for (int j = 0; j < TILE; j++) sum[j] = 0, w_zero[j] = 0;
    if constexpr (same<Acc, int32>) {
        if (x_zero_point) x_zero = *x_zero_point;
#pragma unroll
        for (int j = 0; j < TILE; j++) {
            if (w_zero_point && (CHANNELS_FAST || j < left)) w_zero[j] = w_zero_point[channel + j * step_o];
        }
    }

    const Taps<Index> first_d(p, 0, d), first_h(p, 1, h), first_q(p, 2, q);
    const X* const x_image = x + (n * Index(p.x_strides[0]) + g * Index(p.x_strides[1]));
    const W* const w_channel = w + (g * Index(p.w_strides[0]) + o * Index(p.w_strides[1]));
    const Index x_step = step_at * Index(p.x_strides[5]), w_step = step_o * Index(p.w_strides[1]);
    const Index x_c = Index(p.x_strides[2]), w_c = Index(p.w_strides[2]);

    int32 sum_x[TILE] = {}, sum_w[TILE] = {}, count[TILE] = {};  // FOURS_SHIFTED: of what was multiplied

    Index at_d = first_d.at;
    for (Index kd = first_d.tap; kd < Index(p.filter[0]); kd += Index(p.tap_steps[0]), at_d += Index(p.in_steps[0])) {
        if (at_d < 0 || at_d >= Index(p.in[0])) continue;
        Index at_h = first_h.at;
        for (Index kh = first_h.tap; kh < Index(p.filter[1]);
             kh += Index(p.tap_steps[1]), at_h += Index(p.in_steps[1])) {
            if (at_h < 0 || at_h >= Index(p.in[1])) continue;
            Index at_q = first_q.at;
            for (Index kq = first_q.tap; kq < Index(p.filter[2]);
                 kq += Index(p.tap_steps[2]), at_q += Index(p.in_steps[2])) {
                bool meets[TILE];
#pragma unroll
                for (int j = 0; j < TILE; j++) {
                    const Index at = at_q + j * step_at;
                    meets[j] = j < left && at >= 0 && at < Index(p.in[2]);
                }
                const X* x_at = x_image + (at_d * Index(p.x_strides[3]) + at_h * Index(p.x_strides[4]) +
                                           at_q * Index(p.x_strides[5]));
                const W* w_at =
                    w_channel + (kd * Index(p.w_strides[3]) + kh * Index(p.w_strides[4]) + kq * Index(p.w_strides[5]));
                if constexpr (PRODUCTS != ONE_BY_ONE) {
#pragma unroll 4
                    for (Index c = 0; c < Index(p.in_per_group); c += 4, x_at += 4, w_at += 4) {
                        uint32 a = 0, b = 0;
                        if constexpr (CHANNELS_FAST) {
                            b = load<W, 4>(w_at).word[0];
                        } else {
                            if (meets[0]) a = load<X, 4>(x_at).word[0];
                        }
#pragma unroll
                        for (int j = 0; j < TILE; j++) {
                            if (!meets[j]) continue;
                            if constexpr (CHANNELS_FAST) {
                                a = load<X, 4>(x_at + j * x_step).word[0];
                            } else {
                                b = load<W, 4>(w_at + j * w_step).word[0];
                            }
                            sum[j] = dot_4<X, W>(a, b, sum[j]);
                            if constexpr (PRODUCTS == FOURS_SHIFTED) {
                                sum_x[j] = dot_4<X, uint8>(a, kFourOnes, sum_x[j]);
                                sum_w[j] = dot_4<uint8, W>(kFourOnes, b, sum_w[j]);
                            }
                        }
                    }
#pragma unroll
                    for (int j = 0; j < TILE; j++) count[j] += meets[j] ? int32(p.in_per_group) : 0;
                } else {
#pragma unroll 4
                    for (Index c = 0; c < Index(p.in_per_group); c++, x_at += x_c, w_at += w_c) {
                        Acc a = 0, b = 0;
                        if constexpr (CHANNELS_FAST) {
                            b = fetch<Acc>(w_at) - w_zero[0];
                        } else {
                            if (meets[0]) a = fetch<Acc>(x_at) - x_zero;
                        }
#pragma unroll
                        for (int j = 0; j < TILE; j++) {
                            if (!meets[j]) continue;
                            if constexpr (CHANNELS_FAST) {
                                a = fetch<Acc>(x_at + j * x_step) - x_zero;
                            } else {
                                b = fetch<Acc>(w_at + j * w_step) - w_zero[j];
                            }
                            sum[j] = multiply_add(a, b, sum[j]);
                        }
                    }
                }
            }
        }
    }

    const Epilogue<ACT, Acc> epilogue(p.alpha, p.beta);
    const auto offset = [&](const int64* s) {
        return n * Index(s[0]) + g * Index(s[1]) + o * Index(s[2]) + d * Index(s[3]) + h * Index(s[4]) +
               q * Index(s[5]);
    };
    const Index y_at = offset(p.y_strides), y_step = step_o * Index(p.y_strides[2]) + step_q * Index(p.y_strides[5]);
    const Index residual_at = offset(p.residual_strides);
    const Index residual_step = step_o * Index(p.residual_strides[2]) + step_q * Index(p.residual_strides[5]);
#pragma unroll
    for (int j = 0; j < TILE; j++) {
        if (j >= left) break;
        if constexpr (PRODUCTS == FOURS_SHIFTED) {
            sum[j] += count[j] * x_zero * w_zero[j] - x_zero * sum_w[j] - w_zero[j] * sum_x[j];
        }
        const ChannelTerm<B, Acc> b = channel_term<Acc>(bias, channel + j * step_o, bias != nullptr);
        const Acc r = residual ? to_accumulator<Acc>(residual[residual_at + j * residual_step]) : Acc(0);
        y[y_at + j * y_step] = from_accumulator<Y>(epilogue.finish(sum[j], b, r));
    }
}
