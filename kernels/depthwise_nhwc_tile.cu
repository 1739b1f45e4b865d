// Depthwise convolution, channels last, 2 spatial axes, unrolled filters, stride 1 or 2, float32 sums, through shared
// memory: each input is read R * S times, and the whole input of a block is in flight at once.
//
// Block: LANES * VEC channels x STRIPS * TW columns x BANDS * ROWS rows of outputs. It copies its input with the halo
// by 16-byte asynchronous copies (zeros outside the image) and the filter as float32, waits once, then each thread
// walks down its input rows: VEC channels x TW columns x ROWS rows, sums of ceil(R / STRIDE) rows in registers. A warp
// stores whole runs of LANES * VEC channels. Dilation: the outputs of one phase are an undilated convolution. Traffic:
// output once; input kInRows * kInColumns / (rows * columns * STRIDE^2) times through L2, about once from DRAM. Limits:
// x and y dense and aligned to 16 bytes, channels a multiple of 16 bytes, multiplier 1, one image below 2^31.
#include "epilogue.cuh"
#include "tensor_core.cuh"

struct DepthwiseNhwcTileParams {
    int64 w_group;  // strides of w in elements: channel, row, column
    int64 w_row;
    int64 w_column;
    int32 channels;
    int32 in[2];
    int32 out[2];
    int32 padding[2];    // low side; negative crops
    int32 dilations[2];  // 1 unless the stride is 1
    int32 channel_blocks;
    int32 column_tiles;  // of one phase
    int32 row_tiles;     // of one phase
    double alpha;
    double beta;
};
static_assert(sizeof(DepthwiseNhwcTileParams) == 88, "gpu_conv/families/depthwise_nhwc_tile.py packs this struct");

template <class T, class B, class Y, int VEC, int TW, int LANES, int STRIPS, int BANDS, int ROWS, int R, int S,
          int STRIDE, int SHARED, bool RESIDUAL, int ACT, int MIN_BLOCKS>
__global__ void __launch_bounds__(LANES * STRIPS * BANDS, MIN_BLOCKS)
    depthwise_nhwc_tile(const T* x, const T* w, const B* bias, const Y* residual, const int32*, const int32*, Y* y,
                        void*, const DepthwiseNhwcTileParams p) {
    constexpr int kThreads = LANES * STRIPS * BANDS, kChannels = LANES * VEC;
    constexpr int kInRows = (BANDS * ROWS - 1) * STRIDE + R, kInColumns = (STRIPS * TW - 1) * STRIDE + S;
    constexpr int kUnit = 16 / int(sizeof(T)), kUnits = kChannels / kUnit;  // elements of a copy, copies of a pixel
    // Pixels shorter than 128 bytes are kept 16 bytes apart: two strips then lie in different banks.
    constexpr int kPixel = kChannels + (kChannels * int(sizeof(T)) < 128 ? kUnit : 0);
    constexpr int kTile = kInRows * kInColumns * kPixel;
    constexpr int kColumns = (TW - 1) * STRIDE + S, kSteps = (ROWS - 1) * STRIDE + R;
    constexpr int kLive = ceil_div(R, STRIDE);
    static_assert(kChannels % kUnit == 0 && kThreads % kUnits == 0, "a thread copies the same channels of every pixel");
    static_assert(kTile * int(sizeof(T)) + R * S * kChannels * 4 == SHARED, "the host allocates the shared memory");
    extern __shared__ __align__(16) unsigned char shared[];
    T* const tile = reinterpret_cast<T*>(shared);
    float* const filter = reinterpret_cast<float*>(shared + kTile * sizeof(T));  // [R * S][kChannels]

    int block = blockIdx.x;
    const auto digit = [&block](int size) {
        const int rest = block / size, last = block - rest * size;
        block = rest;
        return last;
    };
    const int c0 = digit(p.channel_blocks) * kChannels;
    const int q0 = digit(p.column_tiles) * (STRIPS * TW), q_phase = digit(p.dilations[1]);  // within the phase
    const int p0 = digit(p.row_tiles) * (BANDS * ROWS), p_phase = digit(p.dilations[0]);
    const int64 n = block;
    const int thread = threadIdx.x;

    // Load.
    const int h0 = p_phase + p0 * STRIDE * p.dilations[0] - p.padding[0];
    const int w0 = q_phase + q0 * STRIDE * p.dilations[1] - p.padding[1];
    const int copied = c0 + thread % kUnits * kUnit;
    const T* const image = x + n * p.in[0] * p.in[1] * p.channels + copied;
    const uint32 to = shared_address(tile + thread % kUnits * kUnit);
#pragma unroll 4
    for (int pixel = thread / kUnits; pixel < kInRows * kInColumns; pixel += kThreads / kUnits) {
        const int row = pixel / kInColumns, h = h0 + row * p.dilations[0];
        const int column = w0 + (pixel - row * kInColumns) * p.dilations[1];
        const bool valid = uint32(h) < uint32(p.in[0]) && uint32(column) < uint32(p.in[1]) && copied < p.channels;
        const int offset = valid ? (h * p.in[1] + column) * p.channels : 0;
        copy_async<16>(to + pixel * (kPixel * int(sizeof(T))), valid ? image + offset : x, valid);
    }
    copy_commit();
    const bool channels_apart = p.w_group != 1;  // then the taps of a channel lie together: let threads follow them
    for (int i = thread; i < R * S * kChannels; i += kThreads) {
        const int c = channels_apart ? i / (R * S) : i % kChannels, tap = channels_apart ? i % (R * S) : i / kChannels;
        const T* const from = w + ((c0 + c) * p.w_group + tap / S * p.w_row + tap % S * p.w_column);
        filter[tap * kChannels + c] = c0 + c < p.channels ? fetch<float>(from) : 0.0f;
    }
    const int lane = thread % LANES, strip = thread / LANES % STRIPS, band = thread / (LANES * STRIPS);
    const int channel = c0 + lane * VEC, phase_q = q0 + strip * TW, phase_p = p0 + band * ROWS;
    float start[VEC];
#pragma unroll
    for (int i = 0; i < VEC; i++) start[i] = bias && channel < p.channels ? fetch<float>(bias + channel + i) : 0.0f;
    copy_wait<0>();
    __syncthreads();

    // Compute and store.
    const int q = q_phase + phase_q * p.dilations[1], row = p_phase + phase_p * p.dilations[0];
    if (channel >= p.channels || q >= p.out[1]) return;
    float weight[R][S][VEC], sum[kLive][TW][VEC];
#pragma unroll
    for (int tap = 0; tap < R * S; tap++) {
        unpack(load<float, VEC, false>(filter + tap * kChannels + lane * VEC), weight[tap / S][tap % S]);
    }
    const T* const in_tile = tile + ((band * ROWS * STRIDE * kInColumns + strip * TW * STRIDE) * kPixel + lane * VEC);
    const Epilogue<ACT, float> epilogue(p.alpha, p.beta);
    const int y_column = p.dilations[1] * p.channels, y_row = p.dilations[0] * p.out[1] * p.channels;
    const int64 y_at = ((n * p.out[0] + row) * p.out[1] + q) * p.channels + channel;
#pragma unroll
    for (int step = 0; step < kSteps; step++) {
        float in[kColumns][VEC];
#pragma unroll
        for (int j = 0; j < kColumns; j++) {
            unpack(load<T, VEC, false>(in_tile + (step * kInColumns + j) * kPixel), in[j]);
        }
#pragma unroll
        for (int r = 0; r < R; r++) {
            if (step < r || (step - r) % STRIDE != 0 || (step - r) / STRIDE >= ROWS) continue;
            float (&total)[TW][VEC] = sum[(step - r) / STRIDE % kLive];
#pragma unroll
            for (int s = 0; s < S; s++) {
#pragma unroll
                for (int t = 0; t < TW; t++) {
#pragma unroll
                    for (int i = 0; i < VEC; i++) {
                        const float before = r == 0 && s == 0 ? start[i] : total[t][i];
                        total[t][i] = multiply_add(in[t * STRIDE + s][i], weight[r][s][i], before);
                    }
                }
            }
        }
        const int done = (step - (R - 1)) / STRIDE;  // the output row of the thread that is now complete
        if (step < R - 1 || (step - (R - 1)) % STRIDE != 0) continue;
        if (row + done * p.dilations[0] >= p.out[0]) return;
        const int64 at = y_at + int64(opaque(y_row)) * done;
        const int pitch = opaque(y_column);
#pragma unroll
        for (int t = 0; t < TW; t++) {
            if (q + t * p.dilations[1] >= p.out[1]) continue;
            float v[VEC], extra[VEC];
            if constexpr (RESIDUAL) unpack(load<Y, VEC, false>(residual + at + int64(pitch) * t), extra);
#pragma unroll
            for (int i = 0; i < VEC; i++) {
                const float total = sum[done % kLive][t][i];
                v[i] = epilogue.activate(RESIDUAL ? total + extra[i] : total);
            }
            store(y + at + int64(pitch) * t, pack<Y>(v));
        }
    }
}
