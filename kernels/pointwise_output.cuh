// From the sums in registers to the output: sums that several warps share, then the tile staged in shared memory.
#pragma once
#include "across_blocks.cuh"
#include "pointwise_plan.cuh"
#include "pointwise_stage.cuh"

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

// The output tile of one warp: pixels and channels behind rows and columns, and the memory in which it is staged.
template <class Y, class PLAN, class TILE, class ACCESS, class Params>
struct Output {
    static constexpr int kUnit = ACCESS::kYBytes / sizeof(Y);  // elements per store
    static constexpr int kUnits = TILE::kWarpColumns / kUnit, kTotal = TILE::kWarpRows * kUnits;
    static_assert(TILE::kWarpColumns % kUnit == 0, "stores divide the rows of a warp");

    const Params& p;
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

    // Sums, terms of the channels and the staged residual -> outputs, staged; row and column: of the warp in the tile.
    template <class WARP, class EPILOGUE, class Term>
    DEVICE void finish(WARP& warp, const EPILOGUE& epilogue, const Term* terms, int warp_row, int warp_column,
                       bool residual) const {
        __syncwarp();
#pragma unroll
        for (int i = 0; i < WARP::kRows; i++) {
#pragma unroll
            for (int j = 0; j < WARP::kColumns; j++) {
                const int row = WARP::row(lane, i), column = WARP::column(lane, j);
                Y* const to = staged(row, column);
                Vector<Y, WARP::kRun> before = zero_vector<Y, WARP::kRun>();
                if (residual) before = load<Y, WARP::kRun, false>(to);
#pragma unroll
                for (int e = 0; e < WARP::kRun; e++) {
                    typedef typename PLAN::Acc Acc;
                    const int in_tile = ACCESS::kPixelsInRows ? warp_column + column + e : warp_row + row;
                    warp.sum[i][j][e] = epilogue.finish(warp.sum[i][j][e], terms[in_tile], element<Acc>(before, e));
                }
                store(to, pack<Y>(warp.sum[i][j]));
            }
        }
        __syncwarp();
    }

    DEVICE void flush(Y* y) const {
        for_each_unit(p.y_stride, p.y_channel, [&](Y* from, int64 offset, bool inside) {
            if (inside) store(y + offset, load<Y, kUnit, false>(from));
        });
    }
};
