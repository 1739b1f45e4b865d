// What one warp computes of sum[row][column] += A[row][k] * B[k][column] from tiles in shared memory.
//
// A is stored as lines of k, one per row. B is stored as lines of k, one per column, or, TRANSPOSED, as lines of
// columns, one per k. A thread owns kRows x kColumns runs of kRun neighbouring columns; row(i) and column(j) say where.
#pragma once
#include "tensor_core.cuh"

// Tensor cores; A and B are the operand types of mma(), 4 accumulators per 16 x 8 product.
template <class A, class B, class Acc, bool TRANSPOSED, int ROWS, int COLUMNS, class LinesA, class LinesB>
struct TensorCoreWarp {
    static_assert(ROWS % 16 == 0 && COLUMNS % 8 == 0, "a warp tile consists of 16 x 8 products");
    static_assert(!TRANSPOSED || sizeof(A) > 1, "bytes cannot be transposed on the way to the registers");
    static constexpr int kStepBytes = 32;  // of k, per step
    static constexpr int kUnrolledSteps = 8;
    static constexpr bool kFused = false;  // loads and products are separate functions
    // Sets of fragments: two hide the loads; TF32 needs the registers for its conversions and scattered addresses.
    static constexpr int kBuffers = same<A, tf32> ? 1 : 2;
    static constexpr int kRows = ROWS / 8, kColumns = COLUMNS / 8, kRun = 2;
    Acc sum[kRows][kColumns][kRun];

    static DEVICE int row(int lane, int i) { return i * 8 + lane / 4; }
    static DEVICE int column(int lane, int j) { return j * 8 + lane % 4 * 2; }

    static DEVICE void load_a(uint32 (&a)[ROWS / 16][4], uint32 tile, int first_row, int step, int lane) {
        const uint32 line = tile + LinesA::offset(first_row + lane % 16, step * 2 + lane / 16);
#pragma unroll
        for (int i = 0; i < ROWS / 16; i++) {
            ldmatrix_x4(a[i], line + i * 16 * LinesA::kBytes);
            if constexpr (same<A, tf32>) {
#pragma unroll
                for (uint32& r : a[i]) round_to_tf32(r);
            }
        }
    }

    // Columns 8 * j to 8 * j + 15 (to 8 * j + 7 if they are the last): b[0..1] and b[2..3].
    static DEVICE void load_b(uint32 (&b)[4], uint32 tile, int first_column, int step, int lane, int j) {
        const bool pair = j + 1 < kColumns;
        if constexpr (!TRANSPOSED) {
            const int line = first_column + lane % 8 + (pair ? lane / 16 * 8 : 0);
            const uint32 address = tile + LinesB::offset(line, step * 2 + lane / 8 % 2) + j * 8 * LinesB::kBytes;
            if (pair) {
                ldmatrix_x4(b, address);
            } else {
                ldmatrix_x2(b[0], b[1], address);
            }
        } else if constexpr (sizeof(A) == 2) {
            const int chunk = first_column / 8 + j + (pair ? lane / 16 : 0);
            const uint32 address = tile + LinesB::offset(step * 16 + lane % 16, chunk);
            if (pair) {
                ldmatrix_x4_transposed(b, address);
            } else {
                ldmatrix_x2_transposed(b[0], b[1], address);
            }
        } else {
#pragma unroll
            for (int h = 0; h < (pair ? 2 : 1); h++) {
                // The permutation of the lines repeats every 4: one address serves every step and both halves of it.
                const int chunk = (first_column + (j + h) * 8) / 4 + lane / 16;
                const uint32 address = tile + LinesB::offset(lane % 4, chunk) + lane / 4 % 4 * 4;
                b[2 * h] = shared_load_4(address + step * 8 * LinesB::kBytes);
                b[2 * h + 1] = shared_load_4(address + (step * 8 + 4) * LinesB::kBytes);
            }
        }
        if constexpr (same<A, tf32>) {
#pragma unroll
            for (int r = 0; r < (pair ? 4 : 2); r++) round_to_tf32(b[r]);
        }
    }

    DEVICE void clear() {
#pragma unroll
        for (auto& row : sum) {
#pragma unroll
            for (auto& run : row) run[0] = run[1] = Acc(0);
        }
    }

    // What one step reads of both tiles. Two of them in turn hide the loads behind the products.
    struct Fragments {
        uint32 a[ROWS / 16][4], b[(kColumns + 1) / 2][4];
    };

    static DEVICE void load(Fragments& f, uint32 tile_a, uint32 tile_b, int first_row, int first_column, int step,
                            int lane) {
        load_a(f.a, tile_a, first_row, step, lane);
#pragma unroll
        for (int j = 0; j < kColumns; j += 2) load_b(f.b[j / 2], tile_b, first_column, step, lane, j);
    }

    DEVICE void multiply(const Fragments& f) {
#pragma unroll
        for (int j = 0; j < kColumns; j++) {
#pragma unroll
            for (int i = 0; i < ROWS / 16; i++) {
                mma<A, B>(sum[2 * i][j], sum[2 * i + 1][j], f.a[i], f.b[j / 2][j % 2 * 2], f.b[j / 2][j % 2 * 2 + 1]);
            }
        }
    }
};

// 8-bit operands with zero points: sum (a - za)(b - zb) = sum ab - za sum b - zb sum a + K za zb. The sums over k of
// the rows of A and of the columns of B are two more products, with a matrix of ones, so they end in the lanes that
// need them.
template <class A, class B, bool TRANSPOSED, int ROWS, int COLUMNS, class LinesA, class LinesB>
struct ZeroPointWarp : TensorCoreWarp<A, B, int32, TRANSPOSED, ROWS, COLUMNS, LinesA, LinesB> {
    typedef TensorCoreWarp<A, B, int32, TRANSPOSED, ROWS, COLUMNS, LinesA, LinesB> Base;
    int32 row_sum[Base::kRows][2], column_sum[Base::kColumns][2];  // of A over k; of B over k

    DEVICE void clear() {
        Base::clear();
#pragma unroll
        for (auto& s : row_sum) s[0] = s[1] = 0;
#pragma unroll
        for (auto& s : column_sum) s[0] = s[1] = 0;
    }

    DEVICE void multiply(const typename Base::Fragments& f) {
        constexpr uint32 kOnes = 0x01010101;
        const uint32 ones[4] = {kOnes, kOnes, kOnes, kOnes};
        Base::multiply(f);
#pragma unroll
        for (int i = 0; i < ROWS / 16; i++) mma<A, int8>(row_sum[2 * i], row_sum[2 * i + 1], f.a[i], kOnes, kOnes);
#pragma unroll
        for (int j = 0; j < Base::kColumns; j++) {
            int32 unused[2] = {};  // rows 8 to 15 of the product repeat rows 0 to 7
            mma<int8, B>(column_sum[j], unused, ones, f.b[j / 2][j % 2 * 2], f.b[j / 2][j % 2 * 2 + 1]);
        }
    }
};

// IEEE float32 on the ordinary cores: 4 x 8 lanes, a step is 4 k. A thread reads 16 bytes of k of each of its rows,
// then per column 16 bytes of k (or, TRANSPOSED, per k 16 bytes of columns): 16 loads for 256 multiply-adds at 8 x 8.
template <bool TRANSPOSED, int ROWS, int COLUMNS, class LinesA, class LinesB>
struct FloatWarp {
    static_assert(ROWS % 8 == 0 && COLUMNS % (TRANSPOSED ? 32 : 8) == 0, "4 x 8 lanes, TRANSPOSED with 4 columns each");
    static constexpr int kStepBytes = 16;
    static constexpr int kUnrolledSteps = 1;  // unrolled, the addresses of all steps would stay in registers
    static constexpr bool kFused = true;      // two sets of fragments would be more registers than there are
    static constexpr int kRun = TRANSPOSED ? 4 : 1;
    static constexpr int kRows = ROWS / 4, kColumns = COLUMNS / 8 / kRun;
    float sum[kRows][kColumns][kRun];

    static DEVICE int row(int lane, int i) { return i * 4 + lane / 8; }
    static DEVICE int column(int lane, int j) { return (j * 8 + lane % 8) * kRun; }

    DEVICE void clear() {
#pragma unroll
        for (auto& row : sum) {
#pragma unroll
            for (auto& run : row) {
#pragma unroll
                for (float& v : run) v = 0.0f;
            }
        }
    }

    DEVICE void load_and_multiply(uint32 tile_a, uint32 tile_b, int first_row, int first_column, int step, int lane) {
        // Lines repeat their permutation every 8 rows: two addresses serve all rows of a thread.
        constexpr uint32 kOdd = LinesA::offset(4, 0) - 4 * LinesA::kBytes;
        const uint32 even = opaque(LinesA::chunk_from(tile_a + LinesA::offset(first_row + lane / 8, 0), step));
        const uint32 odd = opaque((even ^ kOdd) + 4 * LinesA::kBytes);
        float4 a[kRows];
#pragma unroll
        for (int i = 0; i < kRows; i++) a[i] = shared_load_floats((i % 2 ? odd : even) + i / 2 * 8 * LinesA::kBytes);
        if constexpr (TRANSPOSED) {
            const uint32 lines = opaque(tile_b + LinesB::offset(step * 4, first_column / 4 + lane % 8));
#pragma unroll
            for (int k = 0; k < 4; k++) {
#pragma unroll
                for (int j = 0; j < kColumns; j++) {
                    const float4 b = shared_load_floats(lines + k * LinesB::kBytes + j * 128);
#pragma unroll
                    for (int e = 0; e < 4; e++) accumulate(a, k, of(b, e), j, e);
                }
            }
        } else {
            const uint32 address =
                opaque(LinesB::chunk_from(tile_b + LinesB::offset(first_column + lane % 8, 0), step));
#pragma unroll
            for (int j = 0; j < kColumns; j++) {
                const float4 b = shared_load_floats(address + j * 8 * LinesB::kBytes);
#pragma unroll
                for (int k = 0; k < 4; k++) accumulate(a, k, of(b, k), j, 0);
            }
        }
    }

  private:
    static DEVICE float of(const float4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

    DEVICE void accumulate(const float4 (&a)[kRows], int k, float b, int j, int e) {
#pragma unroll
        for (int i = 0; i < kRows; i++) sum[i][j][e] = fmaf(of(a[i], k), b, sum[i][j][e]);
    }
};
