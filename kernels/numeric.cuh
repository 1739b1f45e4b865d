// Element types, conversions with one rounding, vector loads and stores. No CUDA header: NVRTC needs no include path.
//
// A kernel reads with to_accumulator<Acc>(v), computes in Acc (float, double or int32) and writes with
// from_accumulator<T>(acc), which rounds once, to nearest even, and keeps NaN a NaN.
#pragma once

#define DEVICE __device__ __forceinline__

typedef signed char int8;
typedef unsigned char uint8;
typedef unsigned short uint16;
typedef int int32;
typedef unsigned int uint32;
typedef long long int64;
typedef unsigned long long uint64;

// The 16-bit floating-point types are their bits; arithmetic happens in the accumulator type only.
struct float16 {
    uint16 bits;
};
struct bfloat16 {
    uint16 bits;
};

static_assert(sizeof(int64) == 8 && sizeof(float16) == 2 && sizeof(bfloat16) == 2, "element sizes are part of the ABI");

template <class A, class B>
inline constexpr bool same = false;
template <class A>
inline constexpr bool same<A, A> = true;

template <bool CONDITION, class A, class B>
struct Select {
    typedef A type;
};
template <class A, class B>
struct Select<false, A, B> {
    typedef B type;
};

template <class T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
    return (a + b - 1) / b;
}
template <class T>
__host__ __device__ constexpr T min_of(T a, T b) {
    return a < b ? a : b;
}
template <class T>
__host__ __device__ constexpr T max_of(T a, T b) {
    return a > b ? a : b;
}

// v, which the optimiser now takes for unknown: what a loop derives from it is computed there instead of being kept in
// registers (a pointer per column costs more registers than the multiply-add that makes it).
DEVICE int32 opaque(int32 v) {
    asm volatile("" : "+r"(v));
    return v;
}
template <class T>
DEVICE const T* opaque(const T* p) {
    asm volatile("" : "+l"(p));
    return p;
}

// ---- stored type -> accumulator (exact) ----

DEVICE float half_to_float(uint16 bits) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(bits));
    return f;
}

template <class Acc, class T>
DEVICE Acc to_accumulator(T v) {
    if constexpr (same<T, float16>) {
        return Acc(half_to_float(v.bits));
    } else if constexpr (same<T, bfloat16>) {
        return Acc(__uint_as_float(uint32(v.bits) << 16));
    } else {
        return Acc(v);
    }
}

// ---- accumulator -> stored type (one rounding) ----

DEVICE uint16 float_to_half(float v) {
    uint16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
    return bits;
}

DEVICE uint16 float_to_bfloat(float v) {
#if __CUDA_ARCH__ >= 800
    uint16 bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(v));
    return bits;
#else
    const uint32 u = __float_as_uint(v);
    return v != v ? uint16(0x7fff) : uint16((u + 0x7fff + (u >> 16 & 1)) >> 16);
#endif
}

// Round to odd: a second rounding, to 22 bits or fewer, then gives what one rounding of v would have given.
DEVICE float double_to_float_odd(double v) {
    const float f = __double2float_rz(v);
    return double(f) == v ? f : __uint_as_float(__float_as_uint(f) | 1);
}

template <class T, class Acc>
DEVICE T from_accumulator(Acc v) {
    static_assert(!same<T, int32> || same<Acc, int32>, "integers are stored from integer sums only");
    if constexpr (same<T, float16> || same<T, bfloat16>) {
        float f;
        if constexpr (same<Acc, float>) {
            f = v;
        } else {
            f = double_to_float_odd(double(v));
        }
        T stored;
        stored.bits = same<T, float16> ? float_to_half(f) : float_to_bfloat(f);
        return stored;
    } else {
        return T(v);
    }
}

// Two floats as two 16-bit elements in one word, the first in the low half.
template <class T>
DEVICE uint32 from_accumulators(float lo, float hi) {
#if __CUDA_ARCH__ >= 800
    uint32 word;
    if constexpr (same<T, float16>) {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(hi), "f"(lo));
    } else {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(hi), "f"(lo));
    }
    return word;
#else
    return from_accumulator<T>(lo).bits | uint32(from_accumulator<T>(hi).bits) << 16;
#endif
}

// a * b + c in the accumulator type, with one rounding for floating point.
DEVICE float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE double multiply_add(double a, double b, double c) { return fma(a, b, c); }
DEVICE int32 multiply_add(int32 a, int32 b, int32 c) { return a * b + c; }

// ---- four bytes in a word: 8-bit integers A and B, each int8 or uint8, the first in the low byte ----

// sum + a0 * b0 + a1 * b1 + a2 * b2 + a3 * b3, modulo 2^32.
template <class A, class B>
DEVICE int32 dot_4(uint32 a, uint32 b, int32 sum) {
    static_assert((same<A, int8> || same<A, uint8>) && (same<B, int8> || same<B, uint8>), "8-bit operands only");
    int32 d;
    if constexpr (same<A, int8> && same<B, int8>) {
        asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(sum));
    } else if constexpr (same<A, int8>) {
        asm("dp4a.s32.u32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(sum));
    } else if constexpr (same<B, int8>) {
        asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(sum));
    } else {
        asm("dp4a.u32.u32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(sum));
    }
    return d;
}

constexpr uint32 kFourOnes = 0x01010101;

DEVICE uint32 four_bytes(int32 v) { return (uint32(v) & 0xff) * kFourOnes; }

// Byte j of word i becomes byte i of word j.
DEVICE void transpose_bytes(uint32 (&word)[4]) {
    const uint32 low01 = __byte_perm(word[0], word[1], 0x5140), high01 = __byte_perm(word[0], word[1], 0x7362);
    const uint32 low23 = __byte_perm(word[2], word[3], 0x5140), high23 = __byte_perm(word[2], word[3], 0x7362);
    word[0] = __byte_perm(low01, low23, 0x5410), word[1] = __byte_perm(low01, low23, 0x7632);
    word[2] = __byte_perm(high01, high23, 0x5410), word[3] = __byte_perm(high01, high23, 0x7632);
}

// ---- vectors: N elements of T in 32-bit words, moved by the widest access that N * sizeof(T) allows ----
// Arrays of words rather than structs of elements: ptxas does not merge the scalar accesses of the latter again.

template <class T, int N>
struct Vector {
    static constexpr int kBytes = N * int(sizeof(T));
    static_assert(kBytes == 1 || kBytes == 2 || kBytes == 4 || kBytes == 8 || kBytes % 16 == 0,
                  "a vector is 1, 2, 4, 8 or a multiple of 16 bytes");
    uint32 word[(kBytes + 3) / 4];
};

template <class T, int N>
DEVICE Vector<T, N> zero_vector() {
    Vector<T, N> v;
#pragma unroll
    for (uint32& word : v.word) word = 0;
    return v;
}

template <bool READ_ONLY, class Raw>
DEVICE Raw load_word(const Raw* p) {
    if constexpr (READ_ONLY) {
        return __ldg(p);
    } else {
        return *p;
    }
}

// p must be aligned to the smaller of 16 bytes and the vector. READ_ONLY: nothing writes the memory during the kernel.
template <class T, int N, bool READ_ONLY = true>
DEVICE Vector<T, N> load(const T* p) {
    Vector<T, N> v;
    constexpr int kBytes = Vector<T, N>::kBytes;
    if constexpr (kBytes >= 16) {
#pragma unroll
        for (int i = 0; i < kBytes / 16; i++) {
            const uint4 u = load_word<READ_ONLY>(reinterpret_cast<const uint4*>(p) + i);
            v.word[4 * i] = u.x, v.word[4 * i + 1] = u.y, v.word[4 * i + 2] = u.z, v.word[4 * i + 3] = u.w;
        }
    } else if constexpr (kBytes == 8) {
        const uint2 u = load_word<READ_ONLY>(reinterpret_cast<const uint2*>(p));
        v.word[0] = u.x, v.word[1] = u.y;
    } else if constexpr (kBytes == 4) {
        v.word[0] = load_word<READ_ONLY>(reinterpret_cast<const uint32*>(p));
    } else if constexpr (kBytes == 2) {
        v.word[0] = load_word<READ_ONLY>(reinterpret_cast<const uint16*>(p));
    } else {
        v.word[0] = load_word<READ_ONLY>(reinterpret_cast<const uint8*>(p));
    }
    return v;
}

template <class T, int N>
DEVICE void store(T* p, const Vector<T, N>& v) {
    constexpr int kBytes = Vector<T, N>::kBytes;
    if constexpr (kBytes >= 16) {
#pragma unroll
        for (int i = 0; i < kBytes / 16; i++) {
            reinterpret_cast<uint4*>(p)[i] =
                make_uint4(v.word[4 * i], v.word[4 * i + 1], v.word[4 * i + 2], v.word[4 * i + 3]);
        }
    } else if constexpr (kBytes == 8) {
        *reinterpret_cast<uint2*>(p) = make_uint2(v.word[0], v.word[1]);
    } else if constexpr (kBytes == 4) {
        *reinterpret_cast<uint32*>(p) = v.word[0];
    } else if constexpr (kBytes == 2) {
        *reinterpret_cast<uint16*>(p) = uint16(v.word[0]);
    } else {
        *reinterpret_cast<uint8*>(p) = uint8(v.word[0]);
    }
}

// Element i of a vector. i must be a constant after unrolling.
template <class Acc, class T, int N>
DEVICE Acc element(const Vector<T, N>& v, int i) {
    if constexpr (same<T, float16> || same<T, bfloat16>) {
        T stored;
        stored.bits = uint16(v.word[i / 2] >> 16 * (i % 2));
        return to_accumulator<Acc>(stored);
    } else if constexpr (same<T, float>) {
        return Acc(__uint_as_float(v.word[i]));
    } else if constexpr (same<T, double>) {
        return Acc(__hiloint2double(int32(v.word[2 * i + 1]), int32(v.word[2 * i])));
    } else if constexpr (sizeof(T) == 1) {
        return Acc(T(v.word[i / 4] >> 8 * (i % 4)));
    } else {
        static_assert(same<T, int32>, "unknown element type");
        return Acc(int32(v.word[i]));
    }
}

template <class Acc, class T, int N>
DEVICE void unpack(const Vector<T, N>& v, Acc (&out)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) out[i] = element<Acc>(v, i);
}

// One element, straight into the accumulator type.
template <class Acc, class T>
DEVICE Acc fetch(const T* p) {
    return element<Acc>(load<T, 1>(p), 0);
}

// N accumulators as a vector of T, each rounded once.
template <class T, class Acc, int N>
DEVICE Vector<T, N> pack(const Acc (&in)[N]) {
    Vector<T, N> v = zero_vector<T, N>();
#pragma unroll
    for (int i = 0; i < N; i++) {
        if constexpr (sizeof(T) == 2) {
            if constexpr (same<Acc, float>) {
                if (i + 1 < N && i % 2 == 0) v.word[i / 2] = from_accumulators<T>(in[i], in[i + 1 < N ? i + 1 : i]);
                if (N == 1) v.word[0] = from_accumulator<T>(in[0]).bits;
            } else {
                v.word[i / 2] |= uint32(from_accumulator<T>(in[i]).bits) << 16 * (i % 2);
            }
        } else if constexpr (same<T, float>) {
            v.word[i] = __float_as_uint(from_accumulator<T>(in[i]));
        } else if constexpr (same<T, double>) {
            v.word[2 * i] = uint32(__double2loint(from_accumulator<T>(in[i])));
            v.word[2 * i + 1] = uint32(__double2hiint(from_accumulator<T>(in[i])));
        } else if constexpr (sizeof(T) == 1) {
            v.word[i / 4] |= uint32(uint8(from_accumulator<T>(in[i]))) << 8 * (i % 4);
        } else {
            static_assert(same<T, int32>, "unknown element type");
            v.word[i] = uint32(from_accumulator<T>(in[i]));
        }
    }
    return v;
}
