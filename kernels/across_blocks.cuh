// Sums in registers that several blocks share: the hand-over of a split reduction.
#pragma once
#include "numeric.cuh"

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

// Add the sums of the blocks that share a tile in the order of their parts, in whichever block comes last; false in the
// others. The workspace starts with one ticket per tile, zero before and after the launch; partial sums follow in the
// order of the threads.
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
    if (threadIdx.x == 0) *ticket = 0;
    __threadfence();
    if (owner) {
        for_each_sum(warp, [&](int s, Acc& v) { v = __ldcg(sums + s * THREADS); });
        for (int other = 1; other < parts; other++) {
            for_each_sum(warp, [&](int s, Acc& v) { v += __ldcg(sums + (int64(other) * kSums + s) * THREADS); });
        }
    }
    return true;
}
