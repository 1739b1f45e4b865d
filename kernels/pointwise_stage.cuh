// Pixels and filters on their way from global to shared memory; what lies outside the problem arrives as zeros, so the
// padding of k is zero on both sides of the product and 0 * Inf cannot arise.
#pragma once
#include "tensor_core.cuh"

// How a line is fetched: an asynchronous copy of 4, 8 or 16 bytes, or element by element through registers with
// neighbouring lanes on neighbouring chunks of a line (k contiguous) or on neighbouring lines (any other strides).
enum Copy { GATHER_LINES = 0, GATHER_CHUNKS = 1 };

// Element offset of an output pixel counted over the last AXES axes of `size`, the last one fastest.
template <int AXES>
DEVICE int64 pixel_offset(int pixel, const int32 (&size)[4], const int64 (&stride)[4]) {
    if constexpr (AXES == 1) return pixel * stride[3];
    int64 offset = 0;
    uint32 rest = uint32(pixel);
#pragma unroll
    for (int axis = 3; axis > 4 - AXES; axis--) {
        const uint32 outer = rest / uint32(size[axis]);
        offset += int32(rest - outer * uint32(size[axis])) * stride[axis];
        rest = outer;
    }
    return offset + int32(rest) * stride[4 - AXES];
}

// Which part of a tile of LINES lines thread `tid` copies: COUNT units of COPY bytes.
template <class L, int LINES, int THREADS, int COPY>
struct Units {
    static constexpr int kPerLine = L::kBytes / COPY;
    static constexpr int kTotal = LINES * kPerLine;
    static constexpr int kCount = ceil_div(kTotal, THREADS);
    static constexpr int kLineStep = THREADS / kPerLine;
    static constexpr int kUnroll =
        COPY == 16 ? kCount : 2;  // the addresses of many narrow copies would fill the registers
    static_assert(THREADS % kPerLine == 0, "a thread keeps its place in the line");

    static DEVICE int line(int tid, int i) { return tid / kPerLine + i * kLineStep; }
    static DEVICE int byte(int tid) { return tid % kPerLine * COPY; }
    static DEVICE bool inside(int tid, int i) { return kTotal % THREADS == 0 || tid + i * THREADS < kTotal; }
    static DEVICE uint32 place(int tid, int i) {
        if constexpr (kLineStep % 8 == 0) {  // the permutation repeats every 8 lines
            return L::offset(line(tid, 0), byte(tid) / 16) + byte(tid) % 16 + i * kLineStep * L::kBytes;
        }
        return L::offset(line(tid, i), byte(tid) / 16) + byte(tid) % 16;
    }
};

// Lines of k, k contiguous in memory. address(i, line) is the element k = 0 of a line, null outside the problem.
template <class T, class L, int LINES, int THREADS, int COPY, class Address>
DEVICE void stage_lines(uint32 tile, const T* anywhere, int tid, int first_k, int end_k, Address address) {
    typedef Units<L, LINES, THREADS, COPY> U;
    const int k = first_k + U::byte(tid) / int(sizeof(T));
#pragma unroll U::kUnroll
    for (int i = 0; i < U::kCount; i++) {
        if (!U::inside(tid, i)) break;
        const T* line = address(i, U::line(tid, i));
        const bool valid = line != nullptr && k < end_k;
        copy_async<COPY>(tile + U::place(tid, i), valid ? line + k : anywhere, valid);
    }
}

// The same for any stride of k, through registers. AT_ONCE: 16-byte chunks whose loads are under way together.
template <class T, class L, int LINES, int THREADS, int COPY, int AT_ONCE, class Address>
DEVICE void gather_lines(uint32 tile, int tid, int first_k, int end_k, int64 k_stride, Address address) {
    constexpr int kElements = 16 / sizeof(T), kTotal = LINES * L::kChunks;
#pragma unroll AT_ONCE
    for (int u = tid; u < kTotal; u += THREADS) {
        const int line = COPY == GATHER_LINES ? u % LINES : u / L::kChunks;
        const int chunk = COPY == GATHER_LINES ? u / LINES : u % L::kChunks;
        const int k = first_k + chunk * kElements;
        const T* source = address(line);
        uint32 word[4] = {};
#pragma unroll
        for (int e = 0; e < kElements; e++) {
            if (source != nullptr && k + e < end_k) {
                word[e * sizeof(T) / 4] |= load<T, 1>(source + (k + e) * k_stride).word[0] << 8 * (e * sizeof(T) % 4);
            }
        }
        shared_store_16(tile + L::offset(line, chunk), word);
    }
}

// The pixels of one block: tiles of PIXELS pixels, in slabs of SLAB elements of k.
template <class X, class L, int PIXELS, int SLAB, int THREADS, int COPY, int AT_ONCE, int AXES, bool TRANSPOSED,
          class Params>
struct PixelSource {
    static constexpr int kLines = TRANSPOSED ? SLAB : PIXELS;
    static constexpr bool kGather = COPY < 4;
    typedef Units<L, kLines, THREADS, kGather ? 16 : COPY> U;
    // Offsets kept while the slabs of a tile are fetched: of the thread's column, or of each of its lines where they
    // cost divisions; narrow copies have too many lines per thread and divide again.
    static constexpr bool kKeepLines = !TRANSPOSED && AXES > 1 && COPY == 16;
    static constexpr int kKept = kKeepLines ? U::kCount : 1;

    const X* x;
    const Params& p;
    int tid, first_pixel;
    int64 kept[kKept];  // -1: outside

    DEVICE PixelSource(const X* x, const Params& p, int tid) : x(x), p(p), tid(tid), first_pixel(0) {}

    DEVICE int64 offset(int pixel) const {
        return pixel < p.pixels ? pixel_offset<AXES>(pixel, p.x_size, p.x_stride) : -1;
    }
    DEVICE const X* at(int64 offset) const { return offset < 0 ? nullptr : x + offset; }
    DEVICE const X* pixel(int line) const {
        const int pixel = first_pixel + line;
        return pixel < p.pixels ? x + pixel_offset<AXES>(pixel, p.x_size, p.x_stride) : nullptr;
    }

    DEVICE void enter(int tile) {
        first_pixel = tile * PIXELS;
        if constexpr (TRANSPOSED) {
            kept[0] = offset(first_pixel + U::byte(tid) / int(sizeof(X)));
        } else if constexpr (kKeepLines) {
#pragma unroll
            for (int i = 0; i < kKept; i++) kept[i] = offset(first_pixel + U::line(tid, i));
        }
    }

    DEVICE void stage(uint32 tile, int first_k, int end_k) const {
        if constexpr (TRANSPOSED) {
            const X* column = at(kept[0]);
#pragma unroll U::kUnroll
            for (int i = 0; i < U::kCount; i++) {
                if (!U::inside(tid, i)) break;
                const int k = first_k + U::line(tid, i);
                const bool valid = column != nullptr && k < end_k;
                copy_async<COPY>(tile + U::place(tid, i), valid ? column + k * p.x_channel : x, valid);
            }
        } else if constexpr (kGather) {
            gather_lines<X, L, PIXELS, THREADS, COPY, AT_ONCE>(tile, tid, first_k, end_k, p.x_channel,
                                                               [&](int line) { return pixel(line); });
        } else {
            stage_lines<X, L, PIXELS, THREADS, COPY>(tile, x, tid, first_k, end_k, [&](int i, int line) {
                if constexpr (kKeepLines) return at(kept[i]);
                return pixel(line);
            });
        }
    }
};
