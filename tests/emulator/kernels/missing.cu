// One output per thread, four per loop; the bug forgets what is left over.
template <bool BUG>
__global__ void missing(const float* x, float* y, int n) {
    int i = threadIdx.x * 4;
    for (; i + 4 <= n; i += blockDim.x * 4)
        for (int j = 0; j < 4; ++j) y[i + j] = x[i + j];
    if (!BUG)
        for (; i < n; ++i) y[i] = x[i];
}
