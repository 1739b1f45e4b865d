// Depthwise convolution, channels last, 1 to 3 spatial axes, unrolled filters, stride 1 or 2, float32 sums.
//
// Thread: VEC channels x TW columns x ROWS rows of outputs of one depth slice. It walks down the input rows; each row
// is loaded once, AHEAD rows before it is used, and feeds every output row that it touches: ceil(R / STRIDE) rows of
// accumulators roll. Weights stay in registers as float32. Block: 128 threads over (strip of columns, channel vector),
// channels fastest, so that a warp reads whole consecutive pixels whatever the channel count. No shared memory.
// Dilation: the outputs of one phase (p mod dilation, q mod dilation) are an undilated convolution of every dilation-th
// row and column, so only the pitches change. Multiplier m > 1: VEC = 1 and channel k reads input channel k / m.
// Traffic: output once; input once plus (R - STRIDE) / (ROWS * STRIDE) through L2, columns overlap in L1. Limits: x and
// y dense; channels % VEC == 0 and both aligned to VEC elements; dilation 1 where the stride is 2; one row of x and y
// below 2^31 elements.
#include "epilogue.cuh"

struct DepthwiseNhwcParams {
    int64 w_group;  // strides of w in elements: channel of x, multiplier, taps
    int64 w_multiplier;
    int64 w_taps[3];
    int32 channels;    // of y
    int32 multiplier;  // channels of y per channel of x
    int32 in[3];
    int32 out[3];
    int32 padding[3];  // low side; negative crops
    int32 dilations[3];
    int32 depth_stride;
    int32 bands;            // in the longest phase
    int32 blocks_per_band;  // blocks over the columns and channels
    double alpha;
    double beta;
};
static_assert(sizeof(DepthwiseNhwcParams) == 128, "gpu_conv/families/depthwise.py packs this struct");

constexpr int kNhwcThreads = 128;

template <class T, class B, class Y, int VEC, int TW, int ROWS, int AHEAD, int KD, int R, int S, int STRIDE,
          bool W_VECTOR, bool RESIDUAL, int ACT, int MIN_BLOCKS>
__global__ void __launch_bounds__(kNhwcThreads, MIN_BLOCKS)
    depthwise_nhwc(const T* x, const T* w, const B* bias, const Y* residual, const int32*, const int32*, Y* y, void*,
                   const DepthwiseNhwcParams p) {
    constexpr int kColumns = (TW - 1) * STRIDE + S;  // input columns of a strip
    constexpr int kLive = ceil_div(R, STRIDE);       // output rows that one input row can touch
    constexpr int kSteps = (ROWS - 1) * STRIDE + R;  // input rows of a band
    static_assert(kColumns <= 32, "the columns inside the image are one bit mask");
    static_assert(STRIDE == 1 || STRIDE == 2, "the rolling rows are unrolled for strides 1 and 2");

    int block = blockIdx.x;
    const auto digit = [&block](int size) {
        const int rest = block / size, last = block - rest * size;
        block = rest;
        return last;
    };
    const int index = digit(p.blocks_per_band) * kNhwcThreads + threadIdx.x;
    const int band = digit(p.bands), phase = digit(p.dilations[1]), depth = digit(p.out[0]), n = block;

    const int vectors = p.channels / VEC;
    const int strip = index / vectors, channel = (index - strip * vectors) * VEC;
    const int q0 = strip / p.dilations[2] * (TW * p.dilations[2]) + strip % p.dilations[2];
    const int rows = ceil_div(p.out[1] - phase, p.dilations[1]);
    const int first = band * ROWS;  // output row, counted within the phase
    if (q0 >= p.out[2] || first >= rows) return;
    const int group = VEC == 1 ? channel / p.multiplier : channel, in_channels = p.channels / p.multiplier;

    float weight[KD][R][S][VEC], start[VEC], sum[kLive][TW][VEC];
    const T* const filter = w + (group * p.w_group + (VEC == 1 ? channel % p.multiplier * p.w_multiplier : 0));
#pragma unroll
    for (int d = 0; d < KD; d++) {
#pragma unroll
        for (int r = 0; r < R; r++) {
#pragma unroll
            for (int s = 0; s < S; s++) {
                const T* const tap = filter + d * p.w_taps[0] + r * p.w_taps[1] + s * p.w_taps[2];
                if constexpr (W_VECTOR) {
                    unpack(load<T, VEC>(tap), weight[d][r][s]);
                } else {
#pragma unroll
                    for (int i = 0; i < VEC; i++) weight[d][r][s][i] = fetch<float>(tap + i * p.w_group);
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < VEC; i++) start[i] = bias ? fetch<float>(bias + channel + i) : 0.0f;

    // Where the strip reads. The pointer may lie outside x; it is followed under the masks only.
    const int w0 = q0 * STRIDE - p.padding[2], h0 = phase - p.padding[1] + first * STRIDE * p.dilations[1];
    const int d0 = depth * p.depth_stride - p.padding[0];
    uint32 inside = 0;
#pragma unroll
    for (int j = 0; j < kColumns; j++) inside |= uint32(uint32(w0 + j * p.dilations[2]) < uint32(p.in[2])) << j;
    const int column_pitch = p.dilations[2] * in_channels, row_pitch = p.in[2] * in_channels;
    const int64 slice_pitch = int64(p.dilations[0]) * p.in[1] * row_pitch;
    const int64 corner = ((int64(n) * p.in[0] + d0) * p.in[1] + h0) * row_pitch + int64(w0) * in_channels + group;
    const T* x_row = x + corner;

    // Input rows in flight, the next one first.
    struct Row {
        Vector<T, VEC> column[kColumns];
    };
    Row ahead[AHEAD];
    const auto fetch_row = [&](Row& row, int step, int d) {
        const bool row_inside = uint32(h0 + step * p.dilations[1]) < uint32(p.in[1]) &&
                                (KD == 1 || uint32(d0 + d * p.dilations[0]) < uint32(p.in[0]));
        const uint32 mask = row_inside ? inside : 0;
        const T* const at = KD == 1 ? x_row : x_row + d * slice_pitch;
        const int pitch = opaque(column_pitch);
#pragma unroll
        for (int j = 0; j < kColumns; j++) {
            Vector<T, VEC>& to = row.column[j];
            to = zero_vector<T, VEC>();
            if (mask >> j & 1) to = load<T, VEC>(at + int64(pitch) * j);
        }
        if (d == KD - 1) x_row += int64(p.dilations[1]) * row_pitch;
    };

    const Epilogue<ACT, float> epilogue(p.alpha, p.beta);
    const int y_column = p.dilations[2] * p.channels;
    const int64 y_row = int64(p.dilations[1]) * p.out[2] * p.channels;
    const int64 y_rows = (int64(n) * p.out[0] + depth) * p.out[1] + phase + first * p.dilations[1];
    int64 y_at = (y_rows * p.out[2] + q0) * p.channels + channel;

#pragma unroll
    for (int i = 0; i < AHEAD; i++) fetch_row(ahead[i], i / KD, i % KD);
#pragma unroll
    for (int i = 0; i < kSteps * KD; i++) {
        const int step = i / KD, d = i % KD;
        float in[kColumns][VEC];
#pragma unroll
        for (int j = 0; j < kColumns; j++) unpack(ahead[0].column[j], in[j]);
#pragma unroll
        for (int k = 0; k + 1 < AHEAD; k++) ahead[k] = ahead[k + 1];
        if (i + AHEAD < kSteps * KD) fetch_row(ahead[AHEAD - 1], (i + AHEAD) / KD, (i + AHEAD) % KD);
#pragma unroll
        for (int r = 0; r < R; r++) {
            if (step < r || (step - r) % STRIDE != 0 || (step - r) / STRIDE >= ROWS) continue;
            float (&total)[TW][VEC] = sum[(step - r) / STRIDE % kLive];
#pragma unroll
            for (int s = 0; s < S; s++) {
#pragma unroll
                for (int t = 0; t < TW; t++) {
#pragma unroll
                    for (int v = 0; v < VEC; v++) {
                        const float before = d == 0 && r == 0 && s == 0 ? start[v] : total[t][v];
                        total[t][v] = multiply_add(in[t * STRIDE + s][v], weight[d][r][s][v], before);
                    }
                }
            }
        }
        if (d < KD - 1 || step < R - 1 || (step - (R - 1)) % STRIDE != 0) continue;
        const int done = (step - (R - 1)) / STRIDE;  // the output row that is now complete
        if (first + done >= rows) return;
        const int pitch = opaque(y_column);
#pragma unroll
        for (int t = 0; t < TW; t++) {
            if (q0 + t * p.dilations[2] >= p.out[2]) continue;
            float v[VEC], extra[VEC];
            if constexpr (RESIDUAL) unpack(load<Y, VEC, false>(residual + y_at + int64(pitch) * t), extra);
#pragma unroll
            for (int c = 0; c < VEC; c++) {
                const float total = sum[done % kLive][t][c];
                v[c] = epilogue.activate(RESIDUAL ? total + extra[c] : total);
            }
            store(y + y_at + int64(pitch) * t, pack<Y>(v));
        }
        y_at += y_row;
    }
}
