// From the sums in registers to the output: sums that several warps or blocks share, then the tile staged in shared
// memory.
#pragma once
#include "pointwise_plan.cuh"
#include "pointwise_stage.cuh"

template <class WARP, class Visit>
DEVICE void for_each_sum(WARP& warp, Visit visit) {
#pragma unroll
    for (int i = 0; i < WARP::kRows; i++) {
#pragma unroll
        for (int j = 0; j < WARP::kColumns; j++) {
#pragma unroll
            for (int e = 0; e < WARP::kRun; e++) {
                visit((i * WARP::kColumns + j) * WARP::kRun + e, warp.sum[i][j][e]);
            }
        }
    }
}

// Add the sums of the K_WARPS warps of one tile, in order, into the first of them.
template <int K_WARPS, int THREADS, class WARP, class Acc>
DEVICE void add_across_warps(WARP& warp, Acc* shared, int k_warp, int thread) {
    constexpr int kSums = WARP::kRows * WARP::kColumns * WARP::kRun;
    if (k_warp > 0) {
        Acc* own = shared + (k_warp - 1) * kSums * THREADS + thread;
        for_each_sum(warp, [&](int s, Acc v) { own[s * THREADS] = v; });
    }
    __syncthreads();
    if (k_warp == 0) {
#pragma unroll
        for (int k = 0; k < K_WARPS - 1; k++) {
            for_each_sum(warp, [&](int s, Acc& v) { v += shared[(k * kSums + s) * THREADS + thread]; });
        }
    }
}

// Add the sums of the blocks that share a tile in the order of their parts, in whichever block comes last; false in the
// others. The workspace starts with one zeroed ticket per tile; partial sums follow in the order of the threads.
template <int THREADS, class WARP, class Acc>
DEVICE bool add_across_blocks(WARP& warp, Acc*, void* workspace, int tile, int tiles, int part, int parts, bool owner,
                              int thread) {
    constexpr int kSums = WARP::kRows * WARP::kColumns * WARP::kRun;
    __shared__ bool last;
    int32* ticket = static_cast<int32*>(workspace) + tile;
    Acc* sums = reinterpret_cast<Acc*>(static_cast<int32*>(workspace) + ceil_div(tiles, 32) * 32);
    sums += int64(tile) * parts * kSums * THREADS + thread;
    if (owner) {
        for_each_sum(warp, [&](int s, Acc v) { __stcg(sums + (int64(part) * kSums + s) * THREADS, v); });
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(ticket, 1) == parts - 1;
    __syncthreads();
    if (!last) return false;
    __threadfence();
    if (owner) {
        for_each_sum(warp, [&](int s, Acc& v) { v = __ldcg(sums + s * THREADS); });
        for (int other = 1; other < parts; other++) {
            for_each_sum(warp, [&](int s, Acc& v) { v += __ldcg(sums + (int64(other) * kSums + s) * THREADS); });
        }
    }
    return true;
}

// The output tile of one warp: pixels and channels behind rows and columns, and the memory in which it is staged.
template <class Y, class PLAN, class TILE, class ACCESS>
struct Output {
    static constexpr int kUnit = ACCESS::kYBytes / sizeof(Y);  // elements per store
    static constexpr int kUnits = TILE::kWarpColumns / kUnit, kTotal = TILE::kWarpRows * kUnits;
    static_assert(TILE::kWarpColumns % kUnit == 0, "stores divide the rows of a warp");

    const PointwiseParams& p;
    unsigned char* staging;
    int first_pixel, first_channel, lane;  // of this warp

    DEVICE int pixel(int row, int column) const { return first_pixel + (ACCESS::kPixelsInRows ? row : column); }
    DEVICE int channel(int row, int column) const { return first_channel + (ACCESS::kPixelsInRows ? column : row); }
    DEVICE Y* staged(int row, int column) const { return reinterpret_cast<Y*>(staging + row * PLAN::kPitch) + column; }

    // visit(staged unit, element offset, whether it lies inside the output) for every unit of this lane.
    template <class Visit>
    DEVICE void for_each_unit(const int64 (&pixel_stride)[4], int64 channel_stride, Visit visit) const {
#pragma unroll 2  // more would hold the addresses of all units in registers
        for (int u = 0; u < ceil_div(kTotal, 32); u++) {
            const int unit = u * 32 + lane, row = unit / kUnits, column = unit % kUnits * kUnit;
            if (kTotal % 32 && unit >= kTotal) break;
            const bool inside = pixel(row, column) < p.pixels && channel(row, column) < p.out_channels;
            visit(staged(row, column),
                  pixel_offset<ACCESS::kYAxes>(pixel(row, column), p.y_size, pixel_stride) +
                      channel(row, column) * channel_stride,
                  inside);
        }
    }

    // residual -> staging, zero outside; asynchronous where a unit is wide enough.
    DEVICE void fetch(const Y* residual) const {
        for_each_unit(p.residual_stride, p.residual_channel, [&](Y* to, int64 offset, bool inside) {
            if constexpr (ACCESS::kYBytes >= 4) {
                copy_async<ACCESS::kYBytes>(shared_address(to), inside ? residual + offset : residual, inside);
            } else {
                store(to, inside ? load<Y, kUnit>(residual + offset) : zero_vector<Y, kUnit>());
            }
        });
    }

    DEVICE void flush(Y* y) const {
        for_each_unit(p.y_stride, p.y_channel, [&](Y* from, int64 offset, bool inside) {
            if (inside) store(y + offset, load<Y, kUnit, false>(from));
        });
    }
};
