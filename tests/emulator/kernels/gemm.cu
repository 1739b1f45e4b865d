// y = a b^T, one 64 x 64 tile per block: a producer warp fills two stages with the copy engine, a warpgroup multiplies,
// and the result leaves through shared memory with the copy engine. Every BUG but 0 is one mistake; the lines where
// each is found carry its number.
using u32 = unsigned;
using u64 = unsigned long long;
struct alignas(64) Map {
    u64 opaque[16];
};
#define INLINE __device__ __forceinline__
INLINE void init(u32 barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
INLINE void fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
INLINE void expect(u32 barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
INLINE void arrive(u32 barrier) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory"); }
INLINE bool passed(u32 barrier, u32 parity) {
    u32 ok;
    asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                 : "=r"(ok)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return ok;
}
INLINE void load(u32 to, const Map& map, int column, int row, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
        "[%4];" ::"r"(to),
        "l"(&map), "r"(column), "r"(row), "r"(barrier)
        : "memory");
}
INLINE void store(const Map& map, int column, int row, u32 from) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map),
                 "r"(column), "r"(row), "r"(from)
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
INLINE void wait_store() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
INLINE void fence_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
INLINE void fence_registers() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
INLINE void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
INLINE void wait_products() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
#define F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
INLINE void multiply(float (&d)[32], u64 a, u64 b, int add) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %34, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {%0, %1, %2, %3, %4,"
        "%5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27,"
        "%28, %29, %30, %31}, %32, %33, p, 1, 1, 0, 0;}"
        : F4(0), F4(4), F4(8), F4(12), F4(16), F4(20), F4(24), F4(28)
        : "l"(a), "l"(b), "r"(add));
}
template <int BUG>
__global__ void __launch_bounds__(160)
    gemm(const void* a, const void* b, float* y, int steps, const __grid_constant__ Map a_map,
         const __grid_constant__ Map b_map, const __grid_constant__ Map y_map) {
    extern __shared__ __align__(1024) unsigned char stages[];
    __shared__ u64 full[2], empty[2];
    const u32 ring = (u32)__cvta_generic_to_shared(stages), filled = (u32)__cvta_generic_to_shared(full);
    const u32 freed = (u32)__cvta_generic_to_shared(empty);
    const int t = threadIdx.x;
    if (t == 0) {
        for (int i = 0; i < 2; i++) init(filled + 8 * i, 1), init(freed + 8 * i, 4);
        if (BUG != 9) fence_init();
    }
    if (BUG != 8) __syncthreads();
    float d[32];
    if (t >= 128) {
        for (int i = 0; t == 128 && i < steps; i++) {
            const u32 stage = ring + i % 2 * 16384, barrier = filled + i % 2 * 8;
            while (BUG != 7 && !passed(freed + i % 2 * 8, i / 2 % 2 ^ 1)) {  // FOUND 8
            }
            expect(barrier, BUG == 2 ? 16400 : 16384);
            load(stage, a_map, i * 64, blockIdx.y * 64, barrier);         // FOUND 5 9
            load(stage + 8192, b_map, i * 64, blockIdx.x * 64, barrier);  // FOUND 7
        }
    } else {
        for (int i = 0; i < steps; i++) {
            if (BUG == 11) passed(filled + i % 2 * 8, i / 2 % 2);
            while (BUG != 1 && BUG != 11 && !passed(filled + i % 2 * 8, i / 2 % 2)) {  // FOUND 2
            }
            const u64 a_at = (ring + i % 2 * 16384) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62, b_at = a_at + 512;
            if (BUG != 6) fence_registers();
            for (int k = 0; k < 4; k++) multiply(d, a_at + 2 * k, b_at + 2 * k, i || k);  // FOUND 1 6 11
            commit();
            if (BUG == 5 && t % 32 == 0) arrive(freed + i % 2 * 8);
            if (BUG != 4) wait_products();
            if (BUG != 5 && t % 32 == 0) arrive(freed + i % 2 * 8);
        }
    }
    __syncthreads();
    if (t < 128) {
        float* out = (float*)stages + (t / 32 * 16 + t % 32 / 4) * 64 + t % 4 * 2;
        for (int j = 0; j < 32; j++) out[j / 2 % 2 * 512 + j / 4 * 8 + j % 2] = d[j];  // FOUND 4
        if (BUG != 3) fence_proxy();
    }
    if (BUG != 12) __syncthreads();
    if (t == 0) {
        store(y_map, blockIdx.x * 64, blockIdx.y * 64, ring);  // FOUND 3 10 12
        if (BUG != 10) wait_store();
    }
}
