// Asynchronous copies, matrix loads and matrix products: one function per PTX instruction, with the fragment layouts.
//
// All matrix operands are written as 32-bit registers, and every product below consumes 32 bytes of the k axis (16
// 16-bit, 8 TF32 or 32 8-bit elements), so one loop serves every element type. Lane = 4 * g + t, g = 0..7, t = 0..3:
//   A, 16 rows x 32 bytes, row-major:     a[0] row g, bytes 4t..4t+3      a[1] row g + 8, the same bytes
//                                         a[2] row g, bytes 16 + 4t..     a[3] row g + 8, the same bytes
//   B, 32 bytes x 8 columns, column-major: b[0] column g, bytes 4t..4t+3  b[1] column g, bytes 16 + 4t..
//   C, 16 rows x 8 columns:               top[0..1] row g, columns 2t and 2t + 1      bottom[0..1] row g + 8
// sm_75 has no asynchronous copy, no bfloat16, no TF32 and smaller products: copies become plain, products are
// composed.
#pragma once
#include "numeric.cuh"

DEVICE uint32 shared_address(const void* p) { return uint32(__cvta_generic_to_shared(p)); }

// ---- global -> shared ----

// Start the copy of BYTES (4, 8 or 16, both sides aligned to it); invalid: write zeros and read nothing.
template <int BYTES>
DEVICE void copy_async(uint32 destination, const void* source, bool valid) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async moves 4, 8 or 16 bytes");
#if __CUDA_ARCH__ >= 800
    const int32 count = valid ? BYTES : 0;
    if constexpr (BYTES == 16) {  // only 16-byte copies may bypass the first-level cache
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(source), "r"(count));
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(destination), "l"(source), "r"(count),
                     "n"(BYTES));
    }
#else
    const uint32* words = static_cast<const uint32*>(source);
#pragma unroll
    for (int i = 0; i < BYTES / 4; i++) {
        asm volatile("st.shared.u32 [%0], %1;" ::"r"(destination + 4 * i), "r"(valid ? __ldg(words + i) : 0u));
    }
#endif
}

// 16 bytes under a predicate instead of a branch: after a divergent branch the compiler may duplicate what follows.
DEVICE void copy_async_if(uint32 destination, const void* source, bool valid, bool active) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "{.reg .pred active; setp.ne.b32 active, %3, 0; @active cp.async.cg.shared.global [%0], [%1], 16, %2;}" ::"r"(
            destination),
        "l"(source), "r"(valid ? 16 : 0), "r"(int32(active)));
#else
    if (active) copy_async<16>(destination, source, valid);
#endif
}

// Close the group of this thread's copies since the last one.
DEVICE void copy_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait until at most PENDING of this thread's youngest groups are still under way.
template <int PENDING>
DEVICE void copy_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// The same for a number known at run time; more than MOST counts as MOST.
template <int MOST>
DEVICE void copy_wait_for(int pending) {
    if constexpr (MOST > 0) {
        if (pending >= MOST) return copy_wait<MOST>();
        copy_wait_for<MOST - 1>(pending);
    } else {
        copy_wait<0>();
    }
}

// ---- shared -> registers ----

DEVICE Vector<uint32, 4> shared_load_16(uint32 address) {
    Vector<uint32, 4> v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                 : "r"(address));
    return v;
}

// Four floats, by a plain load: the compiler knows their type and adds constant offsets to the address in the load.
DEVICE float4 shared_load_floats(uint32 address) {
    return *static_cast<const float4*>(__cvta_shared_to_generic(address));
}

DEVICE uint32 shared_load_4(uint32 address) {
    uint32 v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
    return v;
}

DEVICE void shared_load_8(uint32 (&word)[2], uint32 address) {
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(word[0]), "=r"(word[1]) : "r"(address));
}

DEVICE void shared_store_8(uint32 address, uint32 word0, uint32 word1) {
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(word0), "r"(word1));
}

DEVICE void shared_store_4(uint32 address, uint32 word) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(word));
}

DEVICE void shared_store_2(uint32 address, uint16 bits) {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(address), "h"(bits));
}

DEVICE void shared_store_16(uint32 address, const uint32 (&word)[4]) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(word[0]), "r"(word[1]), "r"(word[2]),
                 "r"(word[3]));
}

// Four matrices of 8 lines x 16 bytes: lane l names line l % 8 of matrix l / 8 and gets, of each matrix, word l % 4 of
// line l / 4. Operand A: matrices = (rows 0-7, low), (rows 8-15, low), (rows 0-7, high), (rows 8-15, high).
DEVICE void ldmatrix_x4(uint32 (&r)[4], uint32 line) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(line));
}

// One matrix; the addresses of lanes 0 to 7 count.
DEVICE void ldmatrix_x1(uint32& r, uint32 line) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r) : "r"(line));
}

// Two matrices; the addresses of lanes 0 to 15 count.
DEVICE void ldmatrix_x2(uint32& r0, uint32& r1, uint32 line) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r0), "=r"(r1) : "r"(line));
}

// The same with each 8 x 8 matrix of 16-bit elements transposed: B from memory in which the columns are contiguous.
DEVICE void ldmatrix_x4_transposed(uint32 (&r)[4], uint32 line) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(line));
}

DEVICE void ldmatrix_x2_transposed(uint32& r0, uint32& r1, uint32 line) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(r0), "=r"(r1) : "r"(line));
}

// ---- matrix products: C += A * B ----

// A tag: float operands of which the product sees the 19 bits of TF32.
struct tf32 {
    uint32 bits;
};

// The float in r rounded to nearest (the product itself would truncate, which doubles the error).
DEVICE void round_to_tf32(uint32& r) { asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(__uint_as_float(r))); }

#define MMA_FLOAT(NAME)                                                         \
    asm volatile("mma.sync.aligned." NAME                                       \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "              \
                 "{%0, %1, %2, %3};"                                            \
                 : "+f"(top[0]), "+f"(top[1]), "+f"(bottom[0]), "+f"(bottom[1]) \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
#define MMA_HALF(NAME)                                                                           \
    asm volatile("mma.sync.aligned." NAME " {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};" \
                 : "+f"(top[0]), "+f"(top[1]), "+f"(bottom[0]), "+f"(bottom[1])                  \
                 : "r"(a0), "r"(a1), "r"(b))
#define MMA_INT(TYPES)                                                          \
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32." TYPES                 \
                 ".s32 {%0, %1, %2, %3}, "                                      \
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                \
                 : "+r"(top[0]), "+r"(top[1]), "+r"(bottom[0]), "+r"(bottom[1]) \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
#define MMA_INT_HALF(TYPES)                                                     \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.s32." TYPES                 \
                 ".s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"     \
                 : "+r"(top[0]), "+r"(top[1]), "+r"(bottom[0]), "+r"(bottom[1]) \
                 : "r"(a0), "r"(a1), "r"(b))
#define MMA_HALF_TURING(A_TOP, A_BOTTOM, B_PART)                                        \
    asm volatile(                                                                       \
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, " \
        "{%6}, {%0, %1, %2, %3};"                                                       \
        : "+f"(top[0]), "+f"(top[1]), "+f"(bottom[0]), "+f"(bottom[1])                  \
        : "r"(A_TOP), "r"(A_BOTTOM), "r"(B_PART))
#define MMA_INT_TURING(TYPES, C, A_PART, B_PART)                                                      \
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32." TYPES ".s32 {%0, %1}, {%2}, {%3}, {%0, %1};" \
                 : "+r"(C[0]), "+r"(C[1])                                                             \
                 : "r"(A_PART), "r"(B_PART))

// A and B: float16, bfloat16 or tf32 (the same for both), with float sums.
template <class A, class B>
DEVICE void mma(float (&top)[2], float (&bottom)[2], const uint32 (&a)[4], uint32 b0, uint32 b1) {
    static_assert(same<A, B>, "floating-point products need one operand type");
    if constexpr (same<A, float16>) {
#if __CUDA_ARCH__ >= 800
        MMA_FLOAT("m16n8k16.row.col.f32.f16.f16.f32");
#else
        MMA_HALF_TURING(a[0], a[1], b0);
        MMA_HALF_TURING(a[2], a[3], b1);
#endif
    } else if constexpr (same<A, bfloat16>) {
        MMA_FLOAT("m16n8k16.row.col.f32.bf16.bf16.f32");
    } else {
        static_assert(same<A, tf32>, "no matrix product for this type");
        MMA_FLOAT("m16n8k8.row.col.f32.tf32.tf32.f32");
    }
}

// The same over 16 bytes of k only, 16-bit operands: a[0] row g, a[1] row g + 8.
template <class T, class = T>
DEVICE void mma_half(float (&top)[2], float (&bottom)[2], uint32 a0, uint32 a1, uint32 b) {
    if constexpr (same<T, float16>) {
        MMA_HALF("m16n8k8.row.col.f32.f16.f16.f32");
    } else {
        static_assert(same<T, bfloat16>, "16-bit operands only");
        MMA_HALF("m16n8k8.row.col.f32.bf16.bf16.f32");
    }
}

// The same of 8-bit operands, whose sums are int32.
template <class A, class B>
DEVICE void mma_half(int32 (&top)[2], int32 (&bottom)[2], uint32 a0, uint32 a1, uint32 b) {
    static_assert((same<A, int8> || same<A, uint8>) && (same<B, int8> || same<B, uint8>), "8-bit operands only");
    if constexpr (same<A, int8> && same<B, int8>) MMA_INT_HALF("s8.s8");
    if constexpr (same<A, int8> && same<B, uint8>) MMA_INT_HALF("s8.u8");
    if constexpr (same<A, uint8> && same<B, int8>) MMA_INT_HALF("u8.s8");
    if constexpr (same<A, uint8> && same<B, uint8>) MMA_INT_HALF("u8.u8");
}

// A and B: int8 or uint8 in any combination, with int32 sums that wrap.
template <class A, class B>
DEVICE void mma(int32 (&top)[2], int32 (&bottom)[2], const uint32 (&a)[4], uint32 b0, uint32 b1) {
    static_assert((same<A, int8> || same<A, uint8>) && (same<B, int8> || same<B, uint8>), "8-bit operands only");
#if __CUDA_ARCH__ >= 800
    if constexpr (same<A, int8> && same<B, int8>) MMA_INT("s8.s8");
    if constexpr (same<A, int8> && same<B, uint8>) MMA_INT("s8.u8");
    if constexpr (same<A, uint8> && same<B, int8>) MMA_INT("u8.s8");
    if constexpr (same<A, uint8> && same<B, uint8>) MMA_INT("u8.u8");
#else
#define MMA_INT_TURING_ALL(TYPES)            \
    MMA_INT_TURING(TYPES, top, a[0], b0);    \
    MMA_INT_TURING(TYPES, top, a[2], b1);    \
    MMA_INT_TURING(TYPES, bottom, a[1], b0); \
    MMA_INT_TURING(TYPES, bottom, a[3], b1)
    if constexpr (same<A, int8> && same<B, int8>) {
        MMA_INT_TURING_ALL("s8.s8");
    }
    if constexpr (same<A, int8> && same<B, uint8>) {
        MMA_INT_TURING_ALL("s8.u8");
    }
    if constexpr (same<A, uint8> && same<B, int8>) {
        MMA_INT_TURING_ALL("u8.s8");
    }
    if constexpr (same<A, uint8> && same<B, uint8>) {
        MMA_INT_TURING_ALL("u8.u8");
    }
#undef MMA_INT_TURING_ALL
#endif
}

#undef MMA_FLOAT
#undef MMA_HALF
#undef MMA_INT
#undef MMA_INT_HALF
#undef MMA_HALF_TURING
#undef MMA_INT_TURING

// ---- sums of filters, which meet the zero point of the input ----

// A lane's share of the sum of `count` 8-bit integers, WIDTH of them (1, 4, 8, 16) at a time: more than 1 must be
// contiguous, aligned and divide the count.
template <class T, int WIDTH>
DEVICE int32 lane_sum(const T* from, int64 stride, int count, int lane) {
    int32 sum = 0;
#pragma unroll 1
    for (int i = lane * WIDTH; i < count; i += 32 * WIDTH) {
        if constexpr (WIDTH == 1) {
            sum += fetch<int32>(from + i * stride);
        } else {
            const Vector<T, WIDTH> part = load<T, WIDTH>(from + i);
#pragma unroll
            for (const uint32 word : part.word) sum = dot_4<uint8, T>(kFourOnes, word, sum);
        }
    }
    return sum;
}

// The sum over the lanes of a warp, in each of them.
DEVICE int32 warp_sum(int32 v) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) v += __shfl_xor_sync(0xffffffff, v, lanes);
    return v;
}

// ---- where a tile lies in shared memory ----

// Lines of LINE_BYTES (a power of two) in 16-byte chunks, the chunks of a line permuted so that any 8 successive lines
// read at one chunk hit 8 different groups of banks: ldmatrix and 16-byte copies are free of conflicts.
// SPREAD = 2 keeps pairs of chunks of 4 successive lines apart instead (32-bit reads down a column); 0 permutes
// nothing.
template <int LINE_BYTES, int SPREAD = 1>
struct Lines {
    static constexpr int kBytes = LINE_BYTES;
    static constexpr int kChunks = LINE_BYTES / 16;
    static constexpr int kLinesPerRound = LINE_BYTES >= 128 ? 1 : 128 / LINE_BYTES;
    static_assert((LINE_BYTES & (LINE_BYTES - 1)) == 0 && LINE_BYTES >= 32, "lines are a power of two of bytes");

    // Byte offset of a chunk. A line number that differs by a multiple of 8 shifts it by as many lines exactly.
    static __host__ DEVICE constexpr uint32 offset(int line, int chunk) {
        const int permutation = (line * SPREAD / kLinesPerRound) & (min_of(kChunks, 8) - 1);
        return uint32(line * LINE_BYTES + ((chunk ^ permutation) * 16));
    }

    // The address of a chunk from that of chunk 0 of its line, in a tile that begins at a multiple of 128 bytes.
    static DEVICE uint32 chunk_from(uint32 first, int chunk) {
        if constexpr (kChunks <= 8) return first ^ (chunk * 16);
        return (first ^ (chunk % 8 * 16)) + chunk / 8 * 128;
    }
};
