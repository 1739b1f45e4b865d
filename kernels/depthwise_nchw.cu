// Depthwise convolution, channels first, 1 to 3 spatial axes, unrolled filters, stride 1 or 2, float32 sums.
//
// Thread: TW columns x ROWS rows of outputs of one plane. It walks down the input rows: TW * STRIDE elements by vector
// loads of VX at constant offsets, PAD to the left and the missing ones to the right one by one (they are in L1). Each
// row is loaded once, AHEAD rows before it is used, and feeds every output row that it touches: ceil(R /
// STRIDE) rows of accumulators roll. Block: 128 threads over (strip of columns, band, depth, plane), strips fastest. No
// shared memory. Dilated rows: the output rows of one phase (p mod dilation) are an undilated convolution of every
// dilation-th row. Traffic: output once; input once plus (R - STRIDE) / (ROWS * STRIDE) through L2. Limits: x and y
// dense; rows of x a multiple of VX elements and aligned to them, rows of y of VY; columns undilated.
#include "epilogue.cuh"

struct DepthwiseNchwParams {
    int64 threads;
    int64 w_group;  // strides of w in elements: channel of x, multiplier, taps
    int64 w_multiplier;
    int64 w_taps[3];
    int32 channels;    // of y
    int32 multiplier;  // channels of y per channel of x
    int32 in[3];
    int32 out[3];
    int32 padding[2];    // low side of depth and rows; negative crops
    int32 dilations[2];  // of depth and rows
    int32 depth_stride;
    int32 bands;  // in the longest phase
    double alpha;
    double beta;
};
static_assert(sizeof(DepthwiseNchwParams) == 120, "gpu_conv/families/depthwise.py packs this struct");

constexpr int kNchwThreads = 128;

template <class T, class B, class Y, int VX, int VY, int TW, int ROWS, int AHEAD, int KD, int R, int S, int STRIDE,
          int PAD, bool RESIDUAL, int ACT, int MIN_BLOCKS>
__global__ void __launch_bounds__(kNchwThreads, MIN_BLOCKS)
    depthwise_nchw(const T* x, const T* w, const B* bias, const Y* residual, const int32*, const int32*, Y* y, void*,
                   const DepthwiseNchwParams p) {
    constexpr int kBody = TW * STRIDE, kVectors = kBody / VX;  // elements loaded as vectors
    constexpr int kRight = max_of(S - STRIDE - PAD, 0);        // single elements after them; PAD before
    constexpr int kLive = ceil_div(R, STRIDE);                 // output rows that one input row can touch
    constexpr int kSteps = (ROWS - 1) * STRIDE + R;            // input rows of a band
    static_assert(kBody % VX == 0 && TW % VY == 0, "a strip is whole vectors");
    static_assert(PAD >= 0 && PAD + kVectors + kRight <= 32, "the loads inside the image are one bit mask");
    static_assert(STRIDE == 1 || STRIDE == 2, "the rolling rows are unrolled for strides 1 and 2");

    const int64 thread = int64(blockIdx.x) * kNchwThreads + threadIdx.x;
    if (thread >= p.threads) return;
    int rest = int(thread);
    const auto digit = [&rest](int size) {
        const int quotient = rest / size, last = rest - quotient * size;
        rest = quotient;
        return last;
    };
    const int q0 = digit(ceil_div(p.out[2], TW)) * TW, band = digit(p.bands), phase = digit(p.dilations[1]);
    const int depth = digit(p.out[0]), plane = rest, channel = plane % p.channels;
    const int x_plane = plane / p.multiplier, group = channel / p.multiplier;  // n * groups + group
    const int rows = ceil_div(p.out[1] - phase, p.dilations[1]);
    const int first = band * ROWS;  // output row, counted within the phase
    if (first >= rows) return;

    float weight[KD][R][S], sum[kLive][TW];
    const T* const filter = w + (group * p.w_group + (channel - group * p.multiplier) * p.w_multiplier);
#pragma unroll
    for (int d = 0; d < KD; d++) {
#pragma unroll
        for (int r = 0; r < R; r++) {
#pragma unroll
            for (int s = 0; s < S; s++) {
                weight[d][r][s] = fetch<float>(filter + d * p.w_taps[0] + r * p.w_taps[1] + s * p.w_taps[2]);
            }
        }
    }
    const float start = bias ? fetch<float>(bias + channel) : 0.0f;

    // Where the strip reads: PAD single elements, the vectors from column w0 on, kRight single elements. The pointer
    // may lie outside x; it is followed under the mask only.
    const int w0 = q0 * STRIDE, h0 = phase - p.padding[1] + first * STRIDE * p.dilations[1];
    const int d0 = depth * p.depth_stride - p.padding[0];
    uint32 inside = 0;
#pragma unroll
    for (int j = 0; j < PAD; j++) inside |= uint32(w0 - PAD + j >= 0 && w0 - PAD + j < p.in[2]) << j;
#pragma unroll
    for (int j = 0; j < kVectors; j++) inside |= uint32(w0 + j * VX < p.in[2]) << (PAD + j);
#pragma unroll
    for (int j = 0; j < kRight; j++) inside |= uint32(w0 + kBody + j < p.in[2]) << (PAD + kVectors + j);
    const int64 slice = int64(p.in[1]) * p.in[2];
    const T* x_row = x + (((int64(x_plane) * p.in[0] + d0) * p.in[1] + h0) * p.in[2] + w0);

    // Input rows in flight, the next one first.
    struct Row {
        Vector<T, VX> body[kVectors];
        Vector<T, 1> left[PAD + 1], right[kRight + 1];
    };
    Row ahead[AHEAD];
    const auto fetch_row = [&](Row& to, int step, int d) {
        const bool row_inside = uint32(h0 + step * p.dilations[1]) < uint32(p.in[1]) &&
                                (KD == 1 || uint32(d0 + d * p.dilations[0]) < uint32(p.in[0]));
        const uint32 mask = row_inside ? inside : 0;
        const T* const at = KD == 1 ? x_row : x_row + d * (p.dilations[0] * slice);
#pragma unroll
        for (int j = 0; j < kVectors; j++) {
            to.body[j] = zero_vector<T, VX>();
            if (mask >> (PAD + j) & 1) to.body[j] = load<T, VX>(at + j * VX);
        }
#pragma unroll
        for (int j = 0; j < PAD; j++) {
            to.left[j] = zero_vector<T, 1>();
            if (mask >> j & 1) to.left[j] = load<T, 1>(at - PAD + j);
        }
#pragma unroll
        for (int j = 0; j < kRight; j++) {
            to.right[j] = zero_vector<T, 1>();
            if (mask >> (PAD + kVectors + j) & 1) to.right[j] = load<T, 1>(at + kBody + j);
        }
        if (d == KD - 1) x_row += int64(p.dilations[1]) * p.in[2];
    };

    const Epilogue<ACT, float> epilogue(p.alpha, p.beta);
    const int64 y_row = int64(p.dilations[1]) * p.out[2];
    const int64 y_rows = (int64(plane) * p.out[0] + depth) * p.out[1] + phase + first * p.dilations[1];
    int64 y_at = y_rows * p.out[2] + q0;

#pragma unroll
    for (int i = 0; i < AHEAD; i++) fetch_row(ahead[i], i / KD, i % KD);
#pragma unroll
    for (int i = 0; i < kSteps * KD; i++) {
        const int step = i / KD, d = i % KD;
        float in[PAD + kBody + kRight];
#pragma unroll
        for (int j = 0; j < PAD; j++) in[j] = element<float>(ahead[0].left[j], 0);
#pragma unroll
        for (int j = 0; j < kBody; j++) in[PAD + j] = element<float>(ahead[0].body[j / VX], j % VX);
#pragma unroll
        for (int j = 0; j < kRight; j++) in[PAD + kBody + j] = element<float>(ahead[0].right[j], 0);
#pragma unroll
        for (int k = 0; k + 1 < AHEAD; k++) ahead[k] = ahead[k + 1];
        if (i + AHEAD < kSteps * KD) fetch_row(ahead[AHEAD - 1], (i + AHEAD) / KD, (i + AHEAD) % KD);
#pragma unroll
        for (int r = 0; r < R; r++) {
            if (step < r || (step - r) % STRIDE != 0 || (step - r) / STRIDE >= ROWS) continue;
            float (&total)[TW] = sum[(step - r) / STRIDE % kLive];
#pragma unroll
            for (int s = 0; s < S; s++) {
#pragma unroll
                for (int t = 0; t < TW; t++) {
                    const float before = d == 0 && r == 0 && s == 0 ? start : total[t];
                    total[t] = multiply_add(in[t * STRIDE + s], weight[d][r][s], before);
                }
            }
        }
        if (d < KD - 1 || step < R - 1 || (step - (R - 1)) % STRIDE != 0) continue;
        const int done = (step - (R - 1)) / STRIDE;  // the output row that is now complete
        if (first + done >= rows) return;
#pragma unroll
        for (int t = 0; t < TW; t += VY) {
            if (q0 + t >= p.out[2]) continue;
            float v[VY], extra[VY];
            if constexpr (RESIDUAL) unpack(load<Y, VY, false>(residual + y_at + t), extra);
#pragma unroll
            for (int c = 0; c < VY; c++) {
                const float total = sum[done % kLive][t + c];
                v[c] = epilogue.activate(RESIDUAL ? total + extra[c] : total);
            }
            store(y + y_at + t, pack<Y>(v));
        }
        y_at += y_row;
    }
}
