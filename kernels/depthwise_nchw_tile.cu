// Depthwise convolution, channels first, 2 spatial axes, rows of any length, stride 1 or 2, float32 sums, through
// shared memory: rows of 7 or 14 elements start anywhere, so threads that read them from global memory waste most of a
// sector.
//
// Block: whole planes, or a band of rows of one plane. Planes lie one after the other, so its input is one flat range,
// copied asynchronously in 16-byte units from the aligned address below it. Thread: TW columns x ROWS rows of outputs
// (7 x 7 fits maps of 7, 14, 28, 56 and 112): it walks down its input rows, sums of ceil(R / STRIDE) rows in registers.
// Outputs are collected in shared memory at the alignment of their own flat range and leave in 16-byte units; the units
// shared with a neighbouring block are stored element by element.
// With PAD_ROWS, PAD_COLUMNS >= 0 only those elements around a thread's window may lie outside the image, else any.
// Traffic: output once; input once, and with bands (R - STRIDE) / (rows * STRIDE) more through L2.
// Limits: x, y dense and aligned to 16 bytes, multiplier 1, undilated.
#include "epilogue.cuh"
#include "tensor_core.cuh"

struct DepthwiseNchwTileParams {
    int64 w_group;  // strides of w in elements: channel, row, column
    int64 w_row;
    int64 w_column;
    int32 planes;  // batch * channels
    int32 channels;
    int32 in[2];
    int32 out[2];
    int32 padding[2];  // low side; negative crops
    int32 group;       // planes of a block; 1 if it takes a band of rows
    int32 band;        // output rows of a block
    int32 bands;       // of a plane
    int32 out_at;      // where the outputs start in shared memory, in bytes
    double alpha;
    double beta;
};
static_assert(sizeof(DepthwiseNchwTileParams) == 88, "gpu_conv/families/depthwise_nchw_tile.py packs this struct");

constexpr int kMostThreads = 128;

template <class T, class B, class Y, int TW, int ROWS, int R, int S, int STRIDE, int PAD_ROWS, int PAD_COLUMNS,
          bool RESIDUAL, int ACT, int MIN_BLOCKS>
__global__ void __launch_bounds__(kMostThreads, MIN_BLOCKS)
    depthwise_nchw_tile(const T* x, const T* w, const B* bias, const Y* residual, const int32*, const int32*, Y* y,
                        void*, const DepthwiseNchwTileParams p) {
    constexpr int kUnit = 16 / int(sizeof(T)), kOutUnit = 16 / int(sizeof(Y));
    constexpr int kColumns = (TW - 1) * STRIDE + S, kSteps = (ROWS - 1) * STRIDE + R, kLive = ceil_div(R, STRIDE);
    static_assert(kColumns <= 32, "the columns inside the image are one bit mask");
    extern __shared__ __align__(16) unsigned char shared[];
    T* const in_shared = reinterpret_cast<T*>(shared);
    Y* const out_shared = reinterpret_cast<Y*>(shared + p.out_at);

    const int first_plane = int(blockIdx.x) / p.bands * p.group, planes = min_of(p.group, p.planes - first_plane);
    const int p0 = int(blockIdx.x) % p.bands * p.band, p1 = min_of(p.out[0], p0 + p.band);
    const int h0 = p.group > 1 ? 0 : min_of(max_of(p0 * STRIDE - p.padding[0], 0), p.in[0]);
    const int h1 = p.group > 1 ? p.in[0] : max_of(min_of((p1 - 1) * STRIDE - p.padding[0] + R, p.in[0]), h0);
    const int in_plane = p.in[0] * p.in[1], out_plane = p.out[0] * p.out[1];

    // Load: element e of the flat range lies at in_shared[phase + e].
    const int64 from = int64(first_plane) * in_plane + h0 * p.in[1];
    const int phase = int(from % kUnit), count = (planes - 1) * in_plane + (h1 - h0) * p.in[1] + phase;
    const int64 left = int64(p.planes) * in_plane - (from - phase);  // elements of x from the aligned address on
    const T* const source = x + (from - phase);
    for (int e = int(threadIdx.x) * kUnit; e < count; e += int(blockDim.x) * kUnit) {
        if (e + kUnit <= left) {
            copy_async<16>(shared_address(in_shared + e), source + e, true);
        } else {
            for (int i = e; i < left; i++) in_shared[i] = source[i];
        }
    }
    copy_commit();
    copy_wait<0>();
    __syncthreads();

    // Compute.
    const int64 to = int64(first_plane) * out_plane + p0 * p.out[1];
    const int out_phase = int(to % kOutUnit), out_count = (planes - 1) * out_plane + (p1 - p0) * p.out[1];
    const Epilogue<ACT, float> epilogue(p.alpha, p.beta);
    const int strips = ceil_div(p.out[1], TW), bands = ceil_div(p1 - p0, ROWS);
    for (int item = threadIdx.x; item < planes * bands * strips; item += blockDim.x) {
        const int above = item / strips, q = (item - above * strips) * TW;
        const int plane = above / bands, row = p0 + (above - plane * bands) * ROWS;
        const int channel = (first_plane + plane) % p.channels;
        float weight[R][S], sum[kLive][TW];
#pragma unroll
        for (int tap = 0; tap < R * S; tap++) {
            weight[tap / S][tap % S] =
                fetch<float>(w + (channel * p.w_group + tap / S * p.w_row + tap % S * p.w_column));
        }
        const float start = bias ? fetch<float>(bias + channel) : 0.0f;
        const int h = row * STRIDE - p.padding[0], column = q * STRIDE - p.padding[1];
        uint32 inside = 0;
#pragma unroll
        for (int j = 0; j < kColumns; j++) inside |= uint32(uint32(column + j) < uint32(p.in[1])) << j;
        const T* in_row = in_shared + (phase + plane * in_plane + (h - h0) * p.in[1] + column);
        const int out_at = plane * out_plane + (row - p0) * p.out[1] + q;
#pragma unroll
        for (int step = 0; step < kSteps; step++, in_row += p.in[1]) {
            const bool inner_row = PAD_ROWS >= 0 && step >= PAD_ROWS && step <= PAD_ROWS + (ROWS - 1) * STRIDE;
            // Thread tiles that do not fit go on below the rows that were loaded, for outputs that nobody stores.
            const bool row_inside = inner_row || uint32(h + step) < uint32(PAD_ROWS < 0 ? h1 : p.in[0]);
            float in[kColumns];
#pragma unroll
            for (int j = 0; j < kColumns; j++) {
                const bool inner = PAD_COLUMNS >= 0 && j >= PAD_COLUMNS && j <= PAD_COLUMNS + (TW - 1) * STRIDE;
                Vector<T, 1> v = zero_vector<T, 1>();
                if (row_inside && (inner || inside >> j & 1)) v = load<T, 1, false>(in_row + j);
                in[j] = element<float>(v, 0);
            }
#pragma unroll
            for (int r = 0; r < R; r++) {
                if (step < r || (step - r) % STRIDE != 0 || (step - r) / STRIDE >= ROWS) continue;
                float (&total)[TW] = sum[(step - r) / STRIDE % kLive];
#pragma unroll
                for (int s = 0; s < S; s++) {
#pragma unroll
                    for (int t = 0; t < TW; t++) {
                        total[t] = multiply_add(in[t * STRIDE + s], weight[r][s], r == 0 && s == 0 ? start : total[t]);
                    }
                }
            }
            if (step < R - 1 || (step - (R - 1)) % STRIDE != 0) continue;
            const int done = (step - (R - 1)) / STRIDE;  // the output row of the thread that is now complete
            if (PAD_ROWS < 0 && row + done >= p1) break;
            const int at = out_at + done * p.out[1];
#pragma unroll
            for (int t = 0; t < TW; t++) {
                if (PAD_COLUMNS < 0 && q + t >= p.out[1]) break;
                float v = sum[done % kLive][t];
                if constexpr (RESIDUAL) v += to_accumulator<float>(residual[to + at + t]);
                out_shared[out_phase + at + t] = from_accumulator<Y>(epilogue.activate(v));
            }
        }
    }
    __syncthreads();

    // Store.
    Y* const target = y + (to - out_phase);
    for (int e = int(threadIdx.x) * kOutUnit; e < out_phase + out_count; e += int(blockDim.x) * kOutUnit) {
        if (e >= out_phase && e + kOutUnit <= out_phase + out_count) {
            store(target + e, load<Y, kOutUnit, false>(out_shared + e));
        } else {
            for (int i = max_of(e, out_phase); i < min_of(e + kOutUnit, out_phase + out_count); i++) {
                target[i] = out_shared[i];
            }
        }
    }
}
