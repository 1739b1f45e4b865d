// Two rounds through one tile: the second one may not start before everybody has read the first.
template <bool BUG>
__global__ void overwrite(const float* x, float* y) {
    __shared__ float tile[128];
    const int t = threadIdx.x;
    for (int round = 0; round < 2; ++round) {
        tile[t] = x[round * 128 + t];  // FOUND: shared race
        __syncthreads();
        y[round * 128 + t] = tile[127 - t];
        if (!BUG) __syncthreads();
    }
}
