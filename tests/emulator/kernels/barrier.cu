// A 3-tap sum through shared memory. One block of 128 threads per 128 outputs.
template <bool BUG>
__global__ void barrier(const float* x, float* y) {
    __shared__ float tile[130];
    const int t = threadIdx.x, i = blockIdx.x * 128 + t;
    tile[t + 1] = x[i + 1];
    if (t < 2) tile[t * 129] = x[blockIdx.x * 128 + t * 129];
    if (!BUG) __syncthreads();
    y[i] = tile[t] + tile[t + 1] + tile[t + 2];  // FOUND: shared race
}
