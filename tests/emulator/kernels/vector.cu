// Copies rows of `pitch` floats by vectors of four; the bug starts every row one element late.
struct alignas(16) float4_t {
    float v[4];
};
template <bool BUG>
__global__ void vector(const float* x, float* y, int pitch) {
    const int row = blockIdx.x, i = threadIdx.x * 4;
    if (i + 4 + BUG > pitch) return;
    const float4_t value = *(const float4_t*)(x + row * pitch + i + BUG);  // FOUND: misaligned
    *(float4_t*)(y + row * pitch + i) = value;
}
