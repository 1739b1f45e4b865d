// Depthwise convolution along contiguous rows (ncw), stride 1, as many outputs as inputs: causal or "same" padding.
//
// Warp: one segment of 32 * UNITS units of 16 bytes (N elements) of one row; lane: N consecutive outputs of each of
// UNITS units, all loads in flight at once. The K - 1 elements around a unit come from the neighbouring lanes by
// shuffle; the units before and after the segment are read a second time by one lane each (L1 or L2). No shared memory,
// no barrier. Lanes own globally aligned units: with ALIGNED = 0 a row may start anywhere inside a unit (its phase),
// and only the first and last unit of a row are loaded and stored element by element. Any row length moves whole
// sectors. Traffic: input 1 + 2 / (32 * UNITS) times, output once. Limits: x, y and residual dense and aligned to 16
// bytes, multiplier 1, at most N taps on each side of an output.
#include "epilogue.cuh"

struct DepthwiseNcwParams {
    int64 w_group;  // strides of w in elements: channel, tap
    int64 w_tap;
    int32 rows;  // batch * channels
    int32 channels;
    int32 length;    // of a row
    int32 segments;  // of a row
    double alpha;
    double beta;
};
static_assert(sizeof(DepthwiseNcwParams) == 48, "gpu_conv/families/depthwise_ncw.py packs this struct");

constexpr int kNcwThreads = 256;

// The N elements at position `at` of a row; elements outside of [0, length) read as zero.
template <int N, bool ALIGNED, bool READ_ONLY, class T>
DEVICE Vector<T, N> load_unit(const T* row, int at, int length) {
    Vector<T, N> v = zero_vector<T, N>();
    if (ALIGNED ? at >= 0 && at < length : at >= 0 && at + N <= length) {
        v = load<T, N, READ_ONLY>(row + at);
    } else if (!ALIGNED && at > -N && at < length) {
        constexpr int kPerWord = 4 / int(sizeof(T));
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (at + i < 0 || at + i >= length) continue;
            v.word[i / kPerWord] |= load<T, 1, READ_ONLY>(row + at + i).word[0] << i % kPerWord * 8 * int(sizeof(T));
        }
    }
    return v;
}

template <class T, class B, class Y, int K, int PAD, int UNITS, bool ALIGNED, bool RESIDUAL, int ACT>
__global__ void __launch_bounds__(kNcwThreads, 4)
    depthwise_ncw(const T* x, const T* w, const B* bias, const Y* residual, const int32*, const int32*, Y* y, void*,
                  const DepthwiseNcwParams p) {
    constexpr int N = 16 / int(sizeof(T)), kPerWord = 4 / int(sizeof(T));
    constexpr int kLeft = ceil_div(PAD, kPerWord), kRight = ceil_div(K - 1 - PAD, kPerWord);  // words of the neighbours
    static_assert(PAD >= 0 && PAD <= K - 1 && kLeft <= 4 && kRight <= 4, "a halo comes from one neighbouring unit");

    const int warp = int(blockIdx.x * (kNcwThreads / 32) + threadIdx.x / 32), lane = threadIdx.x % 32;
    const int row = warp / p.segments;
    if (row >= p.rows) return;  // whole warps leave
    const int channel = row % p.channels;
    const int phase = ALIGNED ? 0 : row % N * (p.length % N) % N;
    const int base = (warp - row * p.segments) * (32 * N * UNITS) - phase;
    const int64 row_at = int64(row) * p.length;
    const T* const x_row = x + row_at;

    Vector<T, N> unit[UNITS], before, after;
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        unit[u] = load_unit<N, ALIGNED, true>(x_row, base + (u * 32 + lane) * N, p.length);
    }
    if (kLeft && lane == 31) before = load_unit<N, ALIGNED, true>(x_row, base - N, p.length);
    if (kRight && lane == 0) after = load_unit<N, ALIGNED, true>(x_row, base + 32 * UNITS * N, p.length);

    float weight[K];
#pragma unroll
    for (int k = 0; k < K; k++) weight[k] = fetch<float>(w + (channel * p.w_group + k * p.w_tap));
    const float start = bias ? fetch<float>(bias + channel) : 0.0f;
    const Epilogue<ACT, float> epilogue(p.alpha, p.beta);

#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        // Rotations by one lane: lane 31 gives the unit before the 32 of this round, lane 0 the one after.
        Vector<T, kPerWord> words[kLeft + 4 + kRight];
#pragma unroll
        for (int i = 0; i < kLeft; i++) {
            const uint32 last = u == 0 ? before.word[4 - kLeft + i] : unit[max_of(u - 1, 0)].word[4 - kLeft + i];
            const uint32 mine = lane == 31 ? last : unit[u].word[4 - kLeft + i];
            words[i].word[0] = __shfl_sync(~0u, mine, (lane + 31) % 32);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) words[kLeft + i].word[0] = unit[u].word[i];
#pragma unroll
        for (int i = 0; i < kRight; i++) {
            const uint32 first = u == UNITS - 1 ? after.word[i] : unit[min_of(u + 1, UNITS - 1)].word[i];
            const uint32 mine = lane == 0 ? first : unit[u].word[i];
            words[kLeft + 4 + i].word[0] = __shfl_sync(~0u, mine, (lane + 1) % 32);
        }
        float in[(kLeft + 4 + kRight) * kPerWord];
#pragma unroll
        for (int i = 0; i < (kLeft + 4 + kRight) * kPerWord; i++)
            in[i] = element<float>(words[i / kPerWord], i % kPerWord);

        const int at = base + (u * 32 + lane) * N;
        float v[N], r[N];
        if constexpr (RESIDUAL) {
            unpack(load_unit<N, ALIGNED, false>(residual + row_at, at, p.length), r);
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
            v[i] = RESIDUAL ? start + r[i] : start;
#pragma unroll
            for (int k = 0; k < K; k++) v[i] = multiply_add(weight[k], in[kLeft * kPerWord + i - PAD + k], v[i]);
            v[i] = epilogue.activate(v[i]);
        }
        Y* const y_at = y + (row_at + at);
        if (ALIGNED ? at < p.length : at >= 0 && at + N <= p.length) {
            store(y_at, pack<Y>(v));
        } else if (!ALIGNED) {
#pragma unroll
            for (int i = 0; i < N; i++) {
                if (at + i >= 0 && at + i < p.length) y_at[i] = from_accumulator<Y>(v[i]);
            }
        }
    }
}
