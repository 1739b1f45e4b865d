// Depthwise convolution with every size at run time: any filter, strides, dilations, layout; 1 to 3 spatial axes.
//
// Thread: VEC channels x TW columns of one output row. The filter is walked row by row in chunks of CHUNK taps. With
// WINDOW (stride 1 along the columns) the inputs of a chunk stay in registers and serve all its taps; the next chunk
// loads CHUNK columns more. Columns of a thread lie `dilation` apart, so that dilated taps meet the same window. Block:
// 128 threads on consecutive tiles: channels fastest if CHANNELS_FAST, else columns, of which a load takes ALONG. No
// shared memory. Traffic per product of a row of K taps: (TW - 1 + K) / (TW * K) elements of x through L1 with WINDOW,
// 1 without; 1 / TW of w, VEC at a time with FILTER_FAST. Limits: fewer than 2^31 tiles; the span of one row of x and y
// below 2^31 elements; VEC > 1 needs channels side by side in x and y, and every other stride a multiple of VEC; ALONG
// > 1 needs the same of the columns of x, and rows of whole vectors, undilated; FILTER_FAST needs it of the channels of
// w.
#include "epilogue.cuh"

struct DepthwiseParams {
    int64 x_strides[5];         // n, channel, 3 spatial
    int64 w_strides[5];         // channel of x, multiplier, 3 filter
    int64 y_strides[6];         // n, channel of x, multiplier, 3 spatial
    int64 residual_strides[6];  // as y
    int32 tiles;
    int32 groups;
    int32 multiplier;  // channels of y per channel of x
    int32 in[3];
    int32 filter[3];
    int32 out[3];
    int32 strides[3];
    int32 padding[3];  // low side; negative crops
    int32 dilations[3];
    int32 column_step;  // columns of one thread lie this far apart
    double alpha;
    double beta;
};
static_assert(sizeof(DepthwiseParams) == 280, "gpu_conv/families/depthwise.py packs this struct");

constexpr int kDepthwiseThreads = 128;

template <class T, class B, class Y, int VEC, int TW, int CHUNK, int ALONG, bool CHANNELS_FAST, bool FILTER_FAST,
          bool WINDOW, int ACT>
__global__ void __launch_bounds__(kDepthwiseThreads, (TW * VEC > 16 ? 3 : 4))
    depthwise(const T* x, const T* w, const B* bias, const Y* residual, const int32*, const int32*, Y* y, void*,
              const DepthwiseParams p) {
    constexpr int kKept = WINDOW ? ALONG > 1 ? TW : TW - 1 : 0;  // columns that the next chunk reads too
    constexpr int kColumns = WINDOW ? kKept + CHUNK : TW;
    static_assert(ALONG == 1 || (WINDOW && VEC == 1 && TW % ALONG == 0 && CHUNK % ALONG == 0),
                  "whole vectors of columns");
    const int64 index = int64(blockIdx.x) * kDepthwiseThreads + threadIdx.x;
    if (index >= p.tiles) return;
    int rest = int(index);
    const auto digit = [&rest](int size) {
        const int quotient = rest / size, last = rest - quotient * size;
        rest = quotient;
        return last;
    };
    const int strips = ceil_div(p.out[2], TW * p.column_step) * p.column_step;
    int group, multiple, strip, row, depth;
    if constexpr (CHANNELS_FAST) {
        multiple = digit(p.multiplier), group = digit(p.groups / VEC) * VEC;
        strip = digit(strips), row = digit(p.out[1]), depth = digit(p.out[0]);
    } else {
        strip = digit(strips), row = digit(p.out[1]), depth = digit(p.out[0]);
        multiple = digit(p.multiplier), group = digit(p.groups / VEC) * VEC;
    }
    const int n = rest, q0 = strip / p.column_step * (TW * p.column_step) + strip % p.column_step;

    float sum[TW][VEC];
#pragma unroll
    for (int i = 0; i < VEC; i++) {
        const float start = bias ? fetch<float>(bias + (group + i) * p.multiplier + multiple) : 0.0f;
#pragma unroll
        for (int t = 0; t < TW; t++) sum[t][i] = start;
    }

    const int w0 = q0 * p.strides[2] - p.padding[2];
    const int pitch = WINDOW ? p.column_step : p.column_step * p.strides[2];  // input columns between two loads
    const int x_pitch = pitch * int(p.x_strides[4]), w_tap = int(p.w_strides[4]), w_group = int(p.w_strides[0]);
    const T* const x_image = x + (n * p.x_strides[0] + group * p.x_strides[1]);
    const T* const filter = w + (group * p.w_strides[0] + multiple * p.w_strides[1]);
    for (int kd = 0; kd < p.filter[0]; kd++) {
        const int d = depth * p.strides[0] - p.padding[0] + kd * p.dilations[0];
        if (d < 0 || d >= p.in[0]) continue;
        for (int kr = 0; kr < p.filter[1]; kr++) {
            const int h = row * p.strides[1] - p.padding[1] + kr * p.dilations[1];
            if (h < 0 || h >= p.in[1]) continue;
            const T* const x_row = x_image + (d * p.x_strides[2] + h * p.x_strides[3]);
            const T* const w_row = filter + (kd * p.w_strides[2] + kr * p.w_strides[3]);
            float in[kColumns][VEC];
            const auto load_columns = [&](int begin, int end, int tap) {
                const int from = w0 + tap * p.dilations[2];
                const T* const at = x_row + from * p.x_strides[4];
#pragma unroll
                for (int j = begin; j < end; j += ALONG) {
                    Vector<T, VEC * ALONG> v = zero_vector<T, VEC * ALONG>();
                    if (uint32(from + j * pitch) < uint32(p.in[2])) v = load<T, VEC * ALONG>(at + int64(x_pitch) * j);
#pragma unroll
                    for (int i = 0; i < VEC * ALONG; i++) in[j + i / VEC][i % VEC] = element<float>(v, i);
                }
            };
            // Taps before the first, which are skipped: the columns of the first tap begin a vector of x.
            const int early = ALONG > 1 ? -p.padding[2] & (ALONG - 1) : 0;
            if constexpr (WINDOW) load_columns(0, kKept, -early);
            for (int first = -early; first < p.filter[2]; first += CHUNK) {
                if constexpr (WINDOW) load_columns(kKept, kColumns, first);
#pragma unroll
                for (int s = 0; s < CHUNK; s++) {
                    if (first + s >= p.filter[2]) break;
                    if (s < ALONG - 1 && first + s < 0) continue;
                    if constexpr (!WINDOW) load_columns(0, TW, first + s);
                    Vector<T, FILTER_FAST ? VEC : 1> together;
                    if constexpr (FILTER_FAST) together = load<T, VEC>(w_row + (first + s) * w_tap);
#pragma unroll
                    for (int i = 0; i < VEC; i++) {
                        const float tap = FILTER_FAST ? element<float>(together, i)
                                                      : fetch<float>(w_row + ((first + s) * w_tap + i * w_group));
#pragma unroll
                        for (int t = 0; t < TW; t++) {
                            sum[t][i] = multiply_add(in[WINDOW ? t + s : t][i], tap, sum[t][i]);
                        }
                    }
                }
#pragma unroll
                for (int j = 0; j < kKept; j++) {
#pragma unroll
                    for (int i = 0; i < VEC; i++) in[j][i] = in[j + CHUNK][i];
                }
            }
        }
    }

    const Epilogue<ACT, float> epilogue(p.alpha, p.beta);
    const auto offset = [&](const int64* s) {
        return n * s[0] + group * s[1] + multiple * s[2] + depth * s[3] + row * s[4] + q0 * s[5];
    };
    const int64 y_at = offset(p.y_strides), residual_at = offset(p.residual_strides);
#pragma unroll
    for (int t = 0; t < TW; t++) {
        const int column = t * p.column_step;
        if (q0 + column >= p.out[2]) break;
        float v[VEC], r[VEC];
#pragma unroll
        for (int i = 0; i < VEC; i++) r[i] = 0.0f;
        if (residual) unpack(load<Y, VEC, false>(residual + (residual_at + column * p.residual_strides[5])), r);
#pragma unroll
        for (int i = 0; i < VEC; i++) v[i] = epilogue.activate(sum[t][i] + r[i]);
        store(y + (y_at + column * p.y_strides[5]), pack<Y>(v));
    }
}
