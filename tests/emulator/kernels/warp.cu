// Every warp reverses its own 32 values; no other warp ever looks at them, so a barrier of the warp is enough.
template <bool BUG>
__global__ void warp(const float* x, float* y) {
    __shared__ float tile[4][32];
    const int lane = threadIdx.x % 32, w = threadIdx.x / 32;
    for (int round = 0; round < 3; ++round) {
        tile[w][lane] = x[round * 128 + threadIdx.x];  // FOUND: shared race
        __syncwarp();
        y[round * 128 + threadIdx.x] = tile[w][31 - lane] + tile[w][0];
        if (!BUG) __syncwarp();
    }
}
