// Two halves of a block meet at a named barrier; the bug sends them to different ones.
template <int N>
__device__ void meet() {
    asm volatile("bar.sync %0;" ::"n"(N) : "memory");
}
template <bool BUG>
__global__ void deadlock(const float* x, float* y) {
    __shared__ float tile[64];
    const int t = threadIdx.x;
    tile[t] = x[t];
    if (t < 32)
        meet<1>();  // FOUND: barrier deadlock
    else
        meet<BUG ? 2 : 1>();
    y[t] = tile[63 - t];
}
