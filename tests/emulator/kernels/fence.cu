// Sum over blocks: each leaves a partial sum in the workspace, the last one adds them up in a fixed order.
// BUG 1: no fence before the ticket. BUG 2: no fence after it.
template <int BUG>
__global__ void fence(const float* x, float* y, float* partial, int* ticket) {
    __shared__ int last;
    float sum = 0;
    for (int i = 0; i < 4; ++i) sum += x[(blockIdx.x * 4 + i) * 64 + threadIdx.x];
    partial[blockIdx.x * 64 + threadIdx.x] = sum;
    if (BUG != 1) __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(ticket, 1) == gridDim.x - 1;
    __syncthreads();
    if (!last) return;
    if (BUG != 2) __threadfence();
    float total = 0;
    for (int b = 0; b < gridDim.x; ++b) total += partial[b * 64 + threadIdx.x];  // FOUND: global race
    y[threadIdx.x] = total;
}
