// Transposes a 32 x 32 tile; without the padding column every read hits one bank.
template <bool BUG>
__global__ void transpose(const float* x, float* y) {
    __shared__ float tile[32][BUG ? 32 : 33];
    const int c = threadIdx.x, r = threadIdx.y;
    tile[r][c] = x[r * 32 + c];
    __syncthreads();
    y[r * 32 + c] = tile[c][r];  // FOUND: bank conflict
}
