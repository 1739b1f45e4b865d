// What sm_90a has and no other architecture: barriers that count bytes, boxes copied by the copy engine, and products
// of whole warpgroups. One function per instruction.
//
// A product takes 64 rows x 16 of k (A) and N columns x 16 of k (B), both from shared memory, k along the line, 16-bit
// floats, and adds to float32 sums. A line is 128 bytes, 64 elements of k; the 16-byte pieces of line l are exchanged,
// piece i lies at i ^ (l % 8), as the copy engine writes them with a swizzle of 128 bytes. Thread t of the warpgroup,
// lane = t % 32, has of the sums: row t / 32 * 16 + lane / 4, columns 8 j + 2 (lane % 4) and the next, in sums[4 j] and
// sums[4 j + 1], and of the row 8 below in sums[4 j + 2] and sums[4 j + 3].
#pragma once
#include "numeric.cuh"

constexpr int kWarpgroup = 128;    // threads that compute a product together
constexpr int kLineBytes = 128;    // of an operand in shared memory
constexpr int kProductBytes = 32;  // of a line, for one product

// ---- barriers in shared memory, 8 bytes each ----

constexpr int kBarrierBytes = 8;

DEVICE void barrier_init(uint32 barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// What this thread wrote to shared memory so far, the copy engine and the products see.
DEVICE void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

DEVICE void barrier_arrive(uint32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrive, and let the phase end only after so many bytes have been copied.
DEVICE void barrier_arrive_expecting(uint32 barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Whether the phase of this parity has ended; the hardware waits for some time before it says no. Of a barrier that was
// just initialised, the phase of parity 1 has.
DEVICE bool barrier_passed(uint32 barrier, uint32 parity) {
    uint32 passed;
    asm volatile(
        "{.reg .pred passed; mbarrier.try_wait.parity.shared::cta.b64 passed, [%1], %2; selp.u32 %0, 1, 0, passed;}"
        : "=r"(passed)
        : "r"(barrier), "r"(parity)
        : "memory");
    return passed;
}

DEVICE void barrier_wait(uint32 barrier, uint32 parity) {
    while (!barrier_passed(barrier, parity)) {
    }
}

// ---- global -> shared: the copy engine ----

// An array and its boxes, as cuTensorMapEncodeTiled describes them; a kernel's parameter.
struct alignas(64) TensorMap {
    uint64 opaque[16];
};

// Start the copy of the box that begins at these elements, the innermost axis first; zeros where it is outside of the
// array. The barrier counts its bytes, the zeros too.
DEVICE void copy_box(uint32 destination, const TensorMap& map, const int (&at)[5], uint32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5, %6}], "
        "[%7];" ::"r"(destination),
        "l"(&map), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4]), "r"(barrier)
        : "memory");
}

// ---- device memory -> second-level cache ----

constexpr int kCacheLineBytes = 128;

DEVICE void prefetch_line(const void* p) {
    asm volatile("{.reg .u64 global; cvta.to.global.u64 global, %0; prefetch.global.L2 [global];}" ::"l"(p));
}

// ---- products of a warpgroup: all 128 threads call each of these together ----

// How the products find an operand: its first line is a multiple of 1024 bytes, plus a multiple of kProductBytes for
// the next products of the same lines.
DEVICE uint64 operand(uint32 address) {
    constexpr uint64 kEightLines = 8 * kLineBytes >> 4, kUnused = 1, kSwizzle128 = 1;
    return uint64(address >> 4 & 0x3fff) | kUnused << 16 | kEightLines << 32 | kSwizzle128 << 62;
}

// Registers that this thread wrote so far may be sums of the products that follow.
DEVICE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Close the group of products since the last one.
DEVICE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Wait until at most PENDING of the youngest groups are still under way.
template <int PENDING>
DEVICE void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// The sums, which the compiler must not read before this point: what it knows of a product ends with its start.
template <int COUNT>
DEVICE void sums_ready(float (&sums)[COUNT]) {
#pragma unroll
    for (float& sum : sums) asm volatile("" : "+f"(sum)::"memory");
}

// clang-format off
#define SUMS_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SUMS_64 SUMS_32 \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SUMS_96 SUMS_64 \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
    ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define SUMS_128 SUMS_96 \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
    ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define IN_OUT_8(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), \
    "+f"(c[i + 4]), "+f"(c[i + 5]), "+f"(c[i + 6]), "+f"(c[i + 7])
#define IN_OUT_32(i) IN_OUT_8(i), IN_OUT_8(i + 8), IN_OUT_8(i + 16), IN_OUT_8(i + 24)
#define IN_OUT_64(i) IN_OUT_32(i), IN_OUT_32(i + 32)
#define PRODUCT(N, TYPE, SUMS, A, B, ADD, ...)                                                       \
    asm volatile("{.reg .pred add; setp.ne.b32 add, " ADD ", 0; wgmma.mma_async.sync.aligned.m64n" N \
                 "k16.f32." TYPE "." TYPE " {" SUMS "}, " A ", " B ", add, 1, 1, 0, 0;}"             \
                 : __VA_ARGS__ : "l"(a), "l"(b), "r"(int32(add)))
#define PRODUCT_64(TYPE) PRODUCT("64", TYPE, SUMS_32, "%32", "%33", "%34", IN_OUT_32(0))
#define PRODUCT_128(TYPE) PRODUCT("128", TYPE, SUMS_64, "%64", "%65", "%66", IN_OUT_64(0))
#define PRODUCT_192(TYPE) PRODUCT("192", TYPE, SUMS_96, "%96", "%97", "%98", IN_OUT_64(0), IN_OUT_32(64))
#define PRODUCT_256(TYPE) PRODUCT("256", TYPE, SUMS_128, "%128", "%129", "%130", IN_OUT_64(0), IN_OUT_64(64))
// clang-format on

// Start c = A * B, or c += A * B. a, b: from operand(). Sums that other instructions wrote would make ptxas wait for
// each product (C7515), so they begin with one that does not add.
template <class T, int N>
DEVICE void product(float (&c)[N / 2], uint64 a, uint64 b, bool add) {
    static_assert(N == 64 || N == 128 || N == 192 || N == 256, "one of the widths that tiles have");
    static_assert(same<T, float16> || same<T, bfloat16>, "16-bit floats");
    if constexpr (same<T, float16>) {
        if constexpr (N == 64) PRODUCT_64("f16");
        if constexpr (N == 128) PRODUCT_128("f16");
        if constexpr (N == 192) PRODUCT_192("f16");
        if constexpr (N == 256) PRODUCT_256("f16");
    } else {
        if constexpr (N == 64) PRODUCT_64("bf16");
        if constexpr (N == 128) PRODUCT_128("bf16");
        if constexpr (N == 192) PRODUCT_192("bf16");
        if constexpr (N == 256) PRODUCT_256("bf16");
    }
}
