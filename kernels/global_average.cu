// The mean over all pixels of each image and channel, channels last, summed in float32 (in float64 if that is stored):
//
//     y[n, c] = (sum over the pixels of x[n, pixel, c]) / pixels
//
// Block: VECTORS * VEC neighbouring channels of one image. Thread: VEC channels of every (256 / VECTORS)th pixel, up
// to 4 loads in flight; the sums of a channel are added up in shared memory, in the order of the threads, so every run
// gives the same. Traffic: x once, in runs of VECTORS * VEC elements. Limits: x dense with channels last, channels a
// multiple of VEC, x aligned to VEC elements.
#include "numeric.cuh"

struct GlobalAverageParams {
    int32 pixels;
    int32 channels;
    int32 parts;  // blocks per image
};
static_assert(sizeof(GlobalAverageParams) == 12, "gpu_conv/families/global_average.py packs this struct");

constexpr int kThreads = 256, kAhead = 4;

template <class T, int VEC, int VECTORS>
__global__ void __launch_bounds__(kThreads) global_average(const T* x, const T*, const T*, const T*, const int32*,
                                                           const int32*, T* y, void*, const GlobalAverageParams p) {
    typedef typename Select<same<T, double>, double, float>::type Acc;
    constexpr int kLines = kThreads / VECTORS;  // pixels side by side
    constexpr int kChannels = VECTORS * VEC;
    static_assert(kThreads % VECTORS == 0 && kChannels <= kThreads, "a thread divides one channel at most");
    __shared__ __align__(16) Acc sums[kLines * kChannels];

    const int image = blockIdx.x / p.parts, first = (blockIdx.x - image * p.parts) * kChannels;
    const int line = threadIdx.x / VECTORS, within = threadIdx.x % VECTORS * VEC;

    // Load and add.
    Acc sum[VEC] = {};
    if (first + within < p.channels) {
        const T* from = x + (int64(image) * p.pixels + line) * p.channels + first + within;
        for (int pixel = line; pixel < p.pixels; pixel += kAhead * kLines) {
            Vector<T, VEC> ahead[kAhead];
#pragma unroll
            for (int i = 0; i < kAhead; i++, from += int64(kLines) * p.channels) {
                ahead[i] = zero_vector<T, VEC>();
                if (pixel + i * kLines < p.pixels) ahead[i] = load<T, VEC>(from);
            }
#pragma unroll
            for (int i = 0; i < kAhead; i++) {
#pragma unroll
                for (int v = 0; v < VEC; v++) sum[v] += element<Acc>(ahead[i], v);
            }
        }
    }
    store(sums + line * kChannels + within, pack<Acc>(sum));
    __syncthreads();

    // Add up and store.
    if (threadIdx.x < kChannels && first + threadIdx.x < p.channels) {
        Acc total = 0;
#pragma unroll 8
        for (int i = 0; i < kLines; i++) total += sums[i * kChannels + threadIdx.x];
        y[int64(image) * p.channels + first + threadIdx.x] = from_accumulator<T>(total / Acc(p.pixels));
    }
}
