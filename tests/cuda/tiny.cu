// Small kernels with the signature of every kernel of the library, for the tests of compiler and device.
#include "tiny.cuh"

#define OPERANDS                                                                                                  \
    const T *x, const T *w, const T *bias, const T *residual, const T *x_zero_point, const T *w_zero_point, T *y, \
        unsigned *workspace, const TinyParams p

// y = N * scale * x + offsets[2], and the bias where there is one. One thread per element.
template <typename T, int N>
__global__ void tiny(OPERANDS) {
    const long long i = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
    if (i >= p.count) return;
    const float value = scaled(static_cast<float>(x[i]), p) * N + p.offsets[2];
    y[i] = static_cast<T>(bias != nullptr ? value + static_cast<float>(bias[i]) : value);
}

// y = scale * x: a product of subnormal numbers must not become zero.
template <typename T>
__global__ void scale_only(OPERANDS) {
    const long long i = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
    if (i < p.count) y[i] = static_cast<T>(scaled(static_cast<float>(x[i]), p));
}

// Reverses p.count elements through dynamic shared memory, in one block: the last bytes of the request are used too.
template <typename T>
__global__ void reverse(OPERANDS) {
    extern __shared__ unsigned char bytes[];
    T* tile = reinterpret_cast<T*>(bytes);
    for (long long i = threadIdx.x; i < p.count; i += blockDim.x) tile[i] = x[i];
    __syncthreads();
    for (long long i = threadIdx.x; i < p.count; i += blockDim.x) y[i] = tile[p.count - 1 - i];
}

// Counts arrivals in the workspace; the last block writes the count, and zero for the next launch.
template <typename T>
__global__ void arrivals(OPERANDS) {
    if (threadIdx.x != 0) return;
    const unsigned arrived = atomicAdd(workspace, 1u) + 1;
    if (arrived < gridDim.x) return;
    y[0] = static_cast<T>(arrived);
    *workspace = 0;
}

// 64 floats of static shared memory, and 64 floats of local memory because the index is known only at run time.
template <typename T>
__global__ void frames(OPERANDS) {
    __shared__ float tile[64];
    float local[64];
    tile[threadIdx.x] = static_cast<float>(x[threadIdx.x]);
    __syncthreads();
    for (int i = 0; i < 64; ++i) local[i] = tile[(threadIdx.x + i) & 63] / p.scale;
    y[threadIdx.x] = static_cast<T>(local[p.offsets[0] & 63] + local[p.offsets[1] & 63]);
}

// 200 live values in 32 registers: spills.
template <typename T>
__global__ void __launch_bounds__(1024, 2) spills(OPERANDS) {
    float live[200];
#pragma unroll
    for (int i = 0; i < 200; ++i) live[i] = static_cast<float>(x[threadIdx.x + i * 1024]);
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 200; ++i) sum += live[i] * live[199 - i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 200; ++i) y[threadIdx.x + i * 1024] = static_cast<T>(live[i] * sum);
}
