// Rows of `width` outputs per block; the bug lets neighbouring blocks write one column together.
template <bool BUG>
__global__ void overlap(const float* x, float* y, int n) {
    for (int i = threadIdx.x; i < 64 + BUG; i += blockDim.x)
        if (blockIdx.x * 64 + i < n) y[blockIdx.x * 64 + i] = 2 * x[blockIdx.x * 64 + i];  // FOUND: global race
}
