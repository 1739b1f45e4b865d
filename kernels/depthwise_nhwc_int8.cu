// Depthwise convolution of 8-bit integers, channels last, 1 or 2 spatial axes, unrolled filters, stride 1 or 2, int32
// sums: four taps of a filter row are one dp4a.
//
// Thread: 4 channels x TW columns x ROWS rows of outputs. It walks down the input rows; each row is loaded once (a word
// is a pixel of 4 channels), AHEAD rows before it is used, and transposed by fours, so that a word is 4 columns of one
// channel; ceil(R / STRIDE) rows of sums roll. Weights stay in registers, ceil(S / 4) words per row and channel, the
// last one filled up with zeros. Block: 128 threads over (strip of columns, 4 channels), channels fastest: a warp reads
// 128 consecutive bytes. No shared memory. Instructions per output of 3x3: 3 dp4a, 1 to 2 of transposing and shifting,
// 8 of the epilogue; the float kernel would have 9 products and 2 conversions.
// Zero points: padding is filled with x's, so it contributes nothing, and sum (x - zx) w = sum x w - zx sum w: the last
// term joins the bias. That of w must be 0. Traffic: output once; input once plus (R - STRIDE) / (ROWS * STRIDE)
// through L2. Limits: x and y dense, channels a multiple of 4, aligned to 4 of them; one row below 2^31 elements.
#include "epilogue.cuh"

struct DepthwiseNhwcInt8Params {
    int32 w_group;  // strides of w in elements: channel, taps
    int32 w_taps[2];
    int32 channels;
    int32 in[2];
    int32 out[2];
    int32 padding[2];  // low side; negative crops
    int32 bands;
    int32 blocks_per_band;  // blocks over the columns and channels
    double alpha;
    double beta;
};
static_assert(sizeof(DepthwiseNhwcInt8Params) == 64, "gpu_conv/families/depthwise_nhwc_int8.py packs this struct");

constexpr int kInt8Threads = 128;

// Four neighbouring bytes of a row of words, from byte `first` on. first must be a constant after unrolling.
template <int N>
DEVICE uint32 bytes_from(const uint32 (&word)[N], int first) {
    const int i = first / 4;
    return first % 4 == 0 ? word[i]
                          : __funnelshift_r(word[i], i + 1 < N ? word[i + 1 < N ? i + 1 : i] : 0, first % 4 * 8);
}

template <class X, class W, class B, class Y, int TW, int ROWS, int AHEAD, int R, int S, int STRIDE, bool W_VECTOR,
          int ACT, int MIN_BLOCKS>
__global__ void __launch_bounds__(kInt8Threads, MIN_BLOCKS)
    depthwise_nhwc_int8(const X* x, const W* w, const B* bias, const Y*, const int32* x_zero_point, const int32*, Y* y,
                        void*, const DepthwiseNhwcInt8Params p) {
    constexpr int kColumns = (TW - 1) * STRIDE + S, kQuads = ceil_div(kColumns, 4);  // of the input, of a strip
    constexpr int kTapWords = ceil_div(S, 4), kLive = ceil_div(R, STRIDE), kSteps = (ROWS - 1) * STRIDE + R;
    static_assert(sizeof(X) == 1 && sizeof(W) == 1, "four bytes in a word");
    static_assert(kColumns <= 32, "the columns inside the image are one bit mask");

    int block = blockIdx.x;
    const auto digit = [&block](int size) {
        const int rest = block / size, last = block - rest * size;
        block = rest;
        return last;
    };
    const int index = digit(p.blocks_per_band) * kInt8Threads + threadIdx.x, band = digit(p.bands), n = block;
    const int vectors = p.channels / 4;
    const int strip = index / vectors, channel = (index - strip * vectors) * 4;
    const int q0 = strip * TW, first = band * ROWS;
    if (q0 >= p.out[1] || first >= p.out[0]) return;

    // The filter: words of four taps of a channel. What padding contributes besides the products joins the bias.
    const int32 x_zero = x_zero_point ? *x_zero_point : 0;
    const uint32 outside = four_bytes(x_zero);
    uint32 weight[R][kTapWords][4];
    int32 weight_sum[4] = {};
    const W* const filter = w + int64(p.w_group) * channel;
#pragma unroll
    for (int r = 0; r < R; r++) {
#pragma unroll
        for (int k = 0; k < kTapWords; k++) {
            uint32(&word)[4] = weight[r][k];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                word[i] = 0;
                if (k * 4 + i >= S) continue;
                const W* const tap =
                    filter + (int64(opaque(p.w_taps[0])) * r + int64(opaque(p.w_taps[1])) * (k * 4 + i));
                if constexpr (W_VECTOR) {
                    word[i] = load<W, 4>(tap).word[0];
                } else {
#pragma unroll
                    for (int c = 0; c < 4; c++)
                        word[i] |= load<W, 1>(tap + int64(opaque(p.w_group)) * c).word[0] << 8 * c;
                }
            }
            transpose_bytes(word);
#pragma unroll
            for (int c = 0; c < 4; c++) weight_sum[c] = dot_4<uint8, W>(kFourOnes, word[c], weight_sum[c]);
        }
    }
    ChannelTerm<B, int32> term[4];
#pragma unroll
    for (int c = 0; c < 4; c++) {
        term[c] = channel_term<int32>(bias, channel + c, bias != nullptr);
        add_to_bias(term[c], -x_zero * weight_sum[c]);
    }

    // Where the strip reads. The pointer may lie outside x; it is followed under the masks only.
    const int w0 = q0 * STRIDE - p.padding[1], h0 = first * STRIDE - p.padding[0];
    uint32 inside = 0;
#pragma unroll
    for (int j = 0; j < kColumns; j++) inside |= uint32(uint32(w0 + j) < uint32(p.in[1])) << j;
    const int row_pitch = p.in[1] * p.channels;
    const X* x_row = x + ((int64(n) * p.in[0] + h0) * row_pitch + int64(w0) * p.channels + channel);

    // Input rows in flight, the next one first.
    uint32 ahead[AHEAD][kColumns];
    const auto fetch_row = [&](uint32(&row)[kColumns], int step) {
        const uint32 mask = uint32(h0 + step) < uint32(p.in[0]) ? inside : 0;
        const int pitch = opaque(p.channels);
#pragma unroll
        for (int j = 0; j < kColumns; j++) {
            row[j] = outside;
            if (mask >> j & 1) row[j] = load<X, 4>(x_row + int64(pitch) * j).word[0];
        }
        x_row += row_pitch;
    };

    const Epilogue<ACT, int32> epilogue(p.alpha, p.beta);
    int64 y_at = ((int64(n) * p.out[0] + first) * p.out[1] + q0) * p.channels + channel;
    int32 sum[kLive][TW][4];
#pragma unroll
    for (int i = 0; i < AHEAD; i++) fetch_row(ahead[i], i);
#pragma unroll
    for (int step = 0; step < kSteps; step++) {
        uint32 columns[4][kQuads];  // of each channel
#pragma unroll
        for (int k = 0; k < kQuads; k++) {
            uint32 word[4];
#pragma unroll
            for (int i = 0; i < 4; i++) word[i] = k * 4 + i < kColumns ? ahead[0][min_of(k * 4 + i, kColumns - 1)] : 0;
            transpose_bytes(word);
#pragma unroll
            for (int c = 0; c < 4; c++) columns[c][k] = word[c];
        }
#pragma unroll
        for (int k = 0; k + 1 < AHEAD; k++) {
#pragma unroll
            for (int j = 0; j < kColumns; j++) ahead[k][j] = ahead[k + 1][j];
        }
        if (step + AHEAD < kSteps) fetch_row(ahead[AHEAD - 1], step + AHEAD);
#pragma unroll
        for (int t = 0; t < TW; t++) {
#pragma unroll
            for (int c = 0; c < 4; c++) {
#pragma unroll
                for (int k = 0; k < kTapWords; k++) {
                    const uint32 taps = bytes_from(columns[c], t * STRIDE + k * 4);
#pragma unroll
                    for (int r = 0; r < R; r++) {
                        if (step < r || (step - r) % STRIDE != 0 || (step - r) / STRIDE >= ROWS) continue;
                        int32& total = sum[(step - r) / STRIDE % kLive][t][c];
                        total = dot_4<X, W>(taps, weight[r][k][c], r == 0 && k == 0 ? 0 : total);
                    }
                }
            }
        }
        if (step < R - 1 || (step - (R - 1)) % STRIDE != 0) continue;
        const int done = (step - (R - 1)) / STRIDE;  // the output row that is now complete
        if (first + done >= p.out[0]) return;
        const int pitch = opaque(p.channels);
#pragma unroll
        for (int t = 0; t < TW; t++) {
            if (q0 + t >= p.out[1]) continue;
            int32 v[4];
#pragma unroll
            for (int c = 0; c < 4; c++) v[c] = epilogue.finish(sum[done % kLive][t][c], term[c], 0);
            store(y + y_at + int64(pitch) * t, pack<Y>(v));
        }
        y_at += int64(p.out[1]) * p.channels;
    }
}
