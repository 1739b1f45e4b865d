// A 3-tap sum with zero padding; the bug tests the right edge with <= instead of <.
template <bool BUG>
__global__ void halo(const float* x, float* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float sum = 0;
    for (int d = -1; d <= 1; ++d)
        if (i + d >= 0 && (BUG ? i + d <= n : i + d < n)) sum += x[i + d];  // FOUND: out of bounds
    y[i] = sum;
}
