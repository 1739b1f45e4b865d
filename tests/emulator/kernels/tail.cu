// One output per thread; the bug compares with > and lets one thread too many through.
template <bool BUG>
__global__ void tail(const float* x, float* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (BUG ? i > n : i >= n) return;
    const float value = i < n ? 2 * x[i] : 0;
    y[i] = value;  // FOUND: out of bounds
}
