// The arguments of the implicit GEMM, and how pixels and filters find their way into shared memory: by two tables, one
// of output pixels and one of the depth k, so that an element costs one addition and one comparison per padded axis.
#pragma once
#include "pointwise_plan.cuh"
#include "pointwise_stage.cuh"

// All strides in elements; spatial axes right-aligned to three, missing ones have size 1.
struct ImplicitGemmParams {
    int64 x_image;
    int64 x_group;
    int64 w_group;
    int64 y_group;
    int64 y_channel;
    int64 residual_group;
    int64 residual_channel;
    int64 y_stride[4];  // of the pixel axes that do not collapse, right-aligned, the fastest last
    int64 residual_stride[4];
    double alpha;
    double beta;
    int32 y_size[4];
    int32 pixels;        // of the whole batch
    int32 out_channels;  // per group
    int32 groups;
    int32 pixel_tiles;
    int32 channel_tiles;
    int32 splits;  // blocks that share the depth of one tile
    int32 depth;   // products of one output
    int32 inner;   // k counts through so many channels of a tap, or taps of a channel, before the next one
    int32 inner_taps;
    int32 x_channel;
    int32 w_out;
    int32 w_channel;
    int32 x_stride[3];
    int32 w_stride[3];
    int32 in[3];
    int32 out[3];
    int32 filter[3];
    int32 strides[3];
    int32 padding[3];  // low side; negative crops
    int32 dilations[3];
};
static_assert(sizeof(ImplicitGemmParams) == 296, "PARAMS of families/implicit_gemm.py has the same layout");

DEVICE void set_geometry(ImplicitGemmParams& p, const int32 (&padding)[3], const int32 (&filter)[3]) {
    const int32 most = p.filter[0] * p.filter[1] * p.filter[2], taps = filter[0] * filter[1] * filter[2];
    p.depth = p.depth / most * taps;
    if (p.inner_taps) p.inner = taps;
#pragma unroll
    for (int axis = 0; axis < 3; axis++) p.padding[axis] = padding[axis], p.filter[axis] = filter[axis];
}

// The part of the problem that a block computes. Channel tiles and groups are the fastest, so that neighbours read the
// same pixels.
struct Part {
    int channel_tile, group, split, pixel_tile;

    DEVICE Part(int block, const ImplicitGemmParams& p) {
        channel_tile = block % p.channel_tiles, block /= p.channel_tiles;
        group = block % p.groups, block /= p.groups;
        split = block % p.splits, pixel_tile = block / p.splits;
    }
};

// Where the tile of a warp lies in that of the block.
template <class TILE>
struct WarpPlace {
    int lane, warp, k_warp, row, column;  // warp: beside it, k_warp: of those that share the place

    DEVICE explicit WarpPlace(int thread) {
        constexpr int kAcross = TILE::kColumns / TILE::kWarpColumns;
        lane = thread % 32, warp = thread / 32 % TILE::kWarps, k_warp = thread / 32 / TILE::kWarps;
        row = warp / kAcross * TILE::kWarpRows, column = warp % kAcross * TILE::kWarpColumns;
    }
};

// A coordinate so far below 0 that no sum with another one is inside.
constexpr int32 kNowhere = -(1 << 30);

// What the last AXES spatial axes say of an output pixel, and of one k: coordinates whose sum is that of an element of
// x. The other axes have no padding. What does not exist is nowhere.
template <class X, int AXES>
struct __align__(AXES == 3 ? 8 : 16) Pixel {
    const X* x;
    int32 at[AXES == 3 ? 4 : 2];
};
template <int AXES>
struct __align__(AXES == 3 ? 8 : 16) Term {
    int32 x, w;  // offsets from the element of the pixel and from the filter of the output channel
    int32 at[AXES == 3 ? 4 : 2];
};

// An entry of a table, by the widest loads.
template <class Entry>
DEVICE Entry entry_of(const Entry* from) {
    typedef typename Select<alignof(Entry) == 16, uint4, uint2>::type Word;
    Word word[sizeof(Entry) / sizeof(Word)];
#pragma unroll
    for (int i = 0; i < int(sizeof(Entry) / sizeof(Word)); i++) word[i] = reinterpret_cast<const Word*>(from)[i];
    Entry entry;
    memcpy(&entry, word, sizeof(Entry));
    return entry;
}

template <class X, int AXES>
DEVICE bool inside(const Pixel<X, AXES>& pixel, const Term<AXES>& term, const int32 (&size)[3]) {
    bool valid = true;
#pragma unroll
    for (int i = 0; i < AXES; i++) valid &= uint32(pixel.at[i] + term.at[i]) < uint32(size[3 - AXES + i]);
    return valid;
}

// x: of the group.
template <class X, int AXES>
DEVICE Pixel<X, AXES> make_pixel(const X* x, int pixel, const ImplicitGemmParams& p) {
    uint32 rest = uint32(pixel);
    int32 at[3];
#pragma unroll
    for (int axis = 2; axis >= 0; axis--) {
        const uint32 outer = rest / uint32(p.out[axis]);
        at[axis] = int32(rest - outer * uint32(p.out[axis])) * p.strides[axis] - p.padding[axis];
        x += int64(at[axis]) * p.x_stride[axis];
        rest = outer;
    }
    Pixel<X, AXES> entry = {x + int32(rest) * p.x_image};
#pragma unroll
    for (int i = 0; i < AXES; i++) entry.at[i] = pixel < p.pixels ? at[3 - AXES + i] : kNowhere;
    return entry;
}

template <int AXES>
DEVICE Term<AXES> make_term(int k, const ImplicitGemmParams& p) {
    const uint32 outer = uint32(k) / uint32(p.inner), inner = uint32(k) - outer * uint32(p.inner);
    const int32 channel = p.inner_taps ? outer : inner;
    uint32 tap = p.inner_taps ? inner : outer;
    int32 at[3];
    Term<AXES> entry = {channel * p.x_channel, channel * p.w_channel};
#pragma unroll
    for (int axis = 2; axis >= 0; axis--) {
        const uint32 rest = tap / uint32(p.filter[axis]);
        const int32 index = int32(tap - rest * uint32(p.filter[axis]));
        at[axis] = index * p.dilations[axis];
        entry.x += at[axis] * p.x_stride[axis], entry.w += index * p.w_stride[axis];
        tap = rest;
    }
#pragma unroll
    for (int i = 0; i < AXES; i++) entry.at[i] = k < p.depth ? at[3 - AXES + i] : kNowhere;
    return entry;
}

// N elements to shared memory as floats; zeros where they are not valid, and nothing is read. Those of 16 bits go
// through registers.
template <int N, class T>
DEVICE void stage(uint32 destination, const T* source, bool valid) {
    if constexpr (same<T, float>) {
        copy_async<4 * N>(destination, source, valid);
    } else {
        float value[N];
        unpack(valid ? load<T, N>(source) : zero_vector<T, N>(), value);
        uint32 word[N];
#pragma unroll
        for (int i = 0; i < N; i++) word[i] = __float_as_uint(value[i]);
        if constexpr (N == 4) {
            shared_store_16(destination, word);
        } else {
            shared_store_4(destination, word[0]);
        }
    }
}

constexpr int kUnrolledUnits = 2;  // copies of which a thread holds the addresses at the same time

// How the threads share LINES lines of k: units of N elements, unit(place, line, k) for each of a thread.
//
// Neighbouring lanes along k; a thread keeps its k, about which of_k(k) knows what unit needs.
template <class L, int LINES, int THREADS, int N, class OfK, class Unit>
DEVICE void along_k(uint32 tile, int thread, OfK of_k, Unit unit) {
    typedef Units<L, LINES, THREADS, 4 * N> U;
    const int k = U::byte(thread) / 4;
    const auto known = of_k(k);
#pragma unroll kUnrolledUnits
    for (int i = 0; i < U::kCount; i++) {
        if (!U::inside(thread, i)) break;
        unit(tile + U::place(thread, i), U::line(thread, i), k, known);
    }
}

// Single elements, neighbouring lanes on 8 lines x 4 k: all banks, and pieces of 32 bytes where lines are neighbours in
// memory.
template <class L, int LINES, int THREADS, class OfK, class Unit>
DEVICE void along_lines(uint32 tile, int thread, OfK of_k, Unit unit) {
    constexpr int kTotal = LINES * L::kBytes / 4;
#pragma unroll kUnrolledUnits
    for (int i = 0; i < ceil_div(kTotal, THREADS); i++) {
        const int number = thread + i * THREADS, line = number / 32 % (LINES / 8) * 8 + number % 8;
        const int chunk = number / 32 / (LINES / 8), k = chunk * 4 + number / 8 % 4;
        if (kTotal % THREADS && number >= kTotal) break;
        unit(tile + L::offset(line, chunk) + k % 4 * 4, line, k, of_k(k));
    }
}

// Single elements of SLAB lines of PIXELS pixels, one per k; neighbouring lanes on neighbouring pixels.
template <int PIXELS, int SLAB, int THREADS, class OfPixel, class Unit>
DEVICE void along_pixels(uint32 tile, int thread, OfPixel of_pixel, Unit unit) {
    static_assert(PIXELS * SLAB % THREADS == 0, "every thread has as many");
    const auto first = of_pixel(thread % PIXELS);
#pragma unroll kUnrolledUnits
    for (int i = 0; i < PIXELS * SLAB / THREADS; i++) {
        const int number = thread + i * THREADS;
        unit(tile + number * 4, number / PIXELS, THREADS % PIXELS ? of_pixel(number % PIXELS) : first);
    }
}
