// Planes to channels last, for as few channels as a picture has, with a change of the element type:
//
//     y[n, pixel, c] = x[n, c, pixel]
//
// Block: 256 * EACH neighbouring pixels, counted over all images, with all their channels: one run of y. Thread: EACH
// pixels, 256 apart, of every plane, all loads in flight at once; they change places in shared memory, and leave in
// pieces of 16 bytes. Traffic: x once and y once, both coalesced whatever the sizes. Limits: x dense in planes, y dense
// with channels last and aligned to 16 bytes; fewer than 2^30 pixels.
#include "numeric.cuh"

struct ChannelsLastParams {
    int32 total;   // pixels of all images
    int32 pixels;  // of an image
};
static_assert(sizeof(ChannelsLastParams) == 8, "gpu_conv/families/channels_last.py packs this struct");

constexpr int kThreads = 256;

template <class T, class Y, int CHANNELS, int EACH>
__global__ void __launch_bounds__(kThreads) channels_last(const T* x, const T*, const T*, const Y*, const int32*,
                                                          const int32*, Y* y, void*, const ChannelsLastParams p) {
    constexpr int kPixels = kThreads * EACH, kPiece = 16 / int(sizeof(Y));
    static_assert(kPixels * CHANNELS % kPiece == 0, "a block writes whole pieces");
    static_assert(kPixels * CHANNELS * sizeof(Y) <= 48 * 1024, "the run fits in static shared memory");
    __shared__ __align__(16) Y run[kPixels * CHANNELS];

    const int first = blockIdx.x * kPixels, inside = min_of(p.total - first, kPixels);
    const int image = first / p.pixels, start = first - image * p.pixels;

    // Load. What lies beyond the end becomes the last pixel, is read again and not stored: no load has a condition.
    float value[EACH][CHANNELS];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int pixel = start + min_of(i * kThreads + int(threadIdx.x), inside - 1);
        const T* from = x + int64(image) * CHANNELS * p.pixels;
        for (; pixel >= p.pixels; pixel -= p.pixels) from += int64(CHANNELS) * p.pixels;  // images end in few blocks
        from += pixel;
#pragma unroll
        for (int c = 0; c < CHANNELS; c++, from += p.pixels) value[i][c] = fetch<float>(from);
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        Y* const to = run + (i * kThreads + threadIdx.x) * CHANNELS;
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) to[c] = from_accumulator<Y>(value[i][c]);
    }
    __syncthreads();

    // Store.
    Y* const out = y + int64(first) * CHANNELS;
    const int elements = inside * CHANNELS, whole = elements / kPiece;
#pragma unroll
    for (int i = 0; i < ceil_div(EACH * CHANNELS, kPiece); i++) {
        const int piece = i * kThreads + threadIdx.x;
        if (piece < whole) store(out + piece * kPiece, load<Y, kPiece, false>(run + piece * kPiece));
    }
    const int rest = whole * kPiece + threadIdx.x;
    if (rest < elements) out[rest] = run[rest];
}
