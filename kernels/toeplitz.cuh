// What the Toeplitz kernels share: parameters, how outputs are dealt to products, copies of rows, and the way out of
// sums.
#pragma once
#include "epilogue.cuh"
#include "tensor_core.cuh"

constexpr int kToeplitzWarps = 4;

// Strides in elements; rows, then columns.
struct DepthwiseToeplitzParams {
    int64 x_image;
    int64 x_channel;
    int64 w_group;
    int64 w_multiplier;
    int64 w_row;
    int64 w_column;
    int64 y_image;
    int64 y_group;
    int64 y_multiplier;
    int64 residual_image;
    int64 residual_group;
    int64 residual_multiplier;
    double alpha;
    double beta;
    int32 x_row;
    int32 y_row;
    int32 residual_row;
    int32 multiplier;
    int32 in[2];
    int32 out[2];
    int32 padding[2];
    int32 filter[2];
    int32 lead;
    int32 blocks;      // column blocks of 8 outputs in a strip; blockIdx.z counts strips
    int32 reciprocal;  // ceil(2^16 / blocks)
    int32 per_group;   // streams that a warp walks down together
    int32 streams;     // of a channel; of one band of it in depthwise_toeplitz_tall
    int32 groups;      // of a channel
    int32 bands;       // of an image
    int32 band;        // output rows of a band
    int32 chunks;      // of a band; unused in depthwise_toeplitz_tall
    int32 groups_per_warp;
    int32 stream_pitch;  // bytes of one row of one stream in shared memory
    int32 shift;         // with STRIPS: columns by which a row begins later than the one before

    // Offsets of an output channel.
    DEVICE int32 input(int32 channel) const { return multiplier == 1 ? channel : channel / multiplier; }
    DEVICE int64 x_offset(int32 channel) const { return input(channel) * x_channel; }
    DEVICE int64 w_offset(int32 channel) const { return offset(channel, w_group, w_multiplier); }
    DEVICE int64 y_offset(int32 channel) const { return offset(channel, y_group, y_multiplier); }
    DEVICE int64 residual_offset(int32 channel) const { return offset(channel, residual_group, residual_multiplier); }
    DEVICE int64 offset(int32 channel, int64 group, int64 member) const {
        return input(channel) * group + (channel - input(channel) * multiplier) * member;
    }
};
static_assert(sizeof(DepthwiseToeplitzParams) == 208, "the host packs this struct");

// Elements tap and tap + 1 of a filter row as one word, zero outside.
template <class X>
DEVICE uint32 band_word(const X* row, int64 step, int32 tap, int32 taps) {
    uint32 word = 0;
    if (uint32(tap) < uint32(taps)) word = load<X, 1>(row + tap * step).word[0];
    if (uint32(tap + 1) < uint32(taps)) word |= load<X, 1>(row + (tap + 1) * step).word[0] << 16;
    return word;
}

// A stream: a band of one image.
struct ToeplitzStream {
    int32 image;
    int32 first_row;  // of y
    bool exists;

    DEVICE ToeplitzStream(const DepthwiseToeplitzParams& p, int32 stream)
        : image(stream), first_row(0), exists(stream < p.streams) {
        if (p.bands > 1) image = uint32(stream) / uint32(p.bands), first_row = (stream - image * p.bands) * p.band;
    }
    DEVICE ToeplitzStream(int32 image, int32 first_row, bool exists)
        : image(image), first_row(first_row), exists(exists) {}
};

// Row `unit` of the products: a column block of one of the streams of a group.
struct ToeplitzUnit {
    int32 stream;  // in the group; kNone: nothing
    int32 column;
    static constexpr int32 kNone = 1 << 16;

    DEVICE ToeplitzUnit(const DepthwiseToeplitzParams& p, int32 unit) : stream(unit * p.reciprocal >> 16) {
        column = (int32(blockIdx.z) * p.blocks + unit - stream * p.blocks) * 8;
        if (stream >= p.per_group) stream = kNone;
    }

    // Output rows that there are of a stream.
    DEVICE int32 rows(const DepthwiseToeplitzParams& p, const ToeplitzStream& s) const {
        return stream == kNone || !s.exists ? 0 : min_of(p.band, p.out[0] - s.first_row);
    }
};

// What one lane copies of every row: the columns of x under the windows of the strip, VECTOR at a time, stream by
// stream. STRIPS: rows of x and y are strips of one row, each `shift` columns behind the last.
template <class X, int VECTOR, int COPIES, int INPUTS, bool STRIPS = false>
struct ToeplitzCopies {
    static constexpr int32 kNone = -1;
    static constexpr int kLoads = 8;  // in flight together where VECTOR = 1
    int32 window;
    int32 place[COPIES];  // stream * 2^16 + column in the window, or kNone
    uint32 destination[COPIES];
    const X* source[COPIES];
    int32 row[COPIES];

    // ring: shared address of this warp's ring; window: column of x under its first column.
    DEVICE ToeplitzCopies(const DepthwiseToeplitzParams& p, uint32 ring, int32 lane, int32 window, int32 width)
        : window(window) {
        const int32 from = STRIPS ? window : max_of(window, 0);
        const int32 to = STRIPS ? window + width : min_of(window + width, p.in[1]);
        const int32 vectors = max_of(to - from, 0) / VECTOR;
        const int32 reciprocal = vectors ? (uint32(vectors) + 65535u) / uint32(vectors) : 0;  // ceil(2^16 / vectors)
#pragma unroll
        for (int c = 0; c < COPIES; c++) {
            const int32 i = lane + 32 * c, stream = vectors ? i * reciprocal >> 16 : p.per_group;
            const int32 column = from - window + (i - stream * vectors) * VECTOR;
            place[c] = stream < p.per_group ? stream << 16 | column : kNone;
            destination[c] = ring + stream * p.stream_pitch + column * int(sizeof(X));
        }
    }

    // Go to row first_row(stream) of every stream; stream_of maps numbers in the group.
    template <class Streams, class FirstRow>
    DEVICE void aim(const DepthwiseToeplitzParams& p, const X* x, Streams stream_of, FirstRow first_row) {
#pragma unroll
        for (int c = 0; c < COPIES; c++) {
            const ToeplitzStream stream = stream_of(place[c] >> 16);
            const int32 first = first_row(stream);
            source[c] = x + stream.image * p.x_image + int64(first) * p.x_row + window + (place[c] & 0xffff);
            row[c] = stream.exists ? first : p.in[0];  // a missing stream is read as zeros
        }
    }

    DEVICE bool inside(const DepthwiseToeplitzParams& p, int c, int32 row) const {
        if (STRIPS && uint32(window + (place[c] & 0xffff) + row * p.shift) >= uint32(p.in[1])) return false;
        return uint32(row) < uint32(p.in[0]);
    }

    // Start the copies of the next INPUTS rows to `slot` bytes behind the start of the ring.
    DEVICE void copy(const DepthwiseToeplitzParams& p, uint32 slot, uint32 row_bytes) {
#pragma unroll
        for (int c = 0; c < COPIES; c++) {
            if (place[c] == kNone) continue;
            if constexpr (VECTOR > 1) {
#pragma unroll
                for (int i = 0; i < INPUTS; i++) {
                    copy_async<VECTOR* int(sizeof(X))>(destination[c] + slot + i * row_bytes,
                                                       source[c] + int64(i) * p.x_row, inside(p, c, row[c] + i));
                }
            } else {
#pragma unroll
                for (int first = 0; first < INPUTS; first += kLoads) {
                    uint16 bits[kLoads];  // all loads before the first store
#pragma unroll
                    for (int i = first; i < min_of(first + kLoads, INPUTS); i++) {
                        bits[i - first] = 0;
                        if (inside(p, c, row[c] + i)) bits[i - first] = source[c][int64(i) * p.x_row].bits;
                    }
#pragma unroll
                    for (int i = first; i < min_of(first + kLoads, INPUTS); i++) {
                        shared_store_2(destination[c] + slot + i * row_bytes, bits[i - first]);
                    }
                }
            }
            source[c] += int64(INPUTS) * p.x_row;
            row[c] += INPUTS;
        }
    }
};

// Two neighbouring outputs of a row, of which `exist` there are 0, 1 or 2. Only accesses depend on it: no branches.
template <class Y, int Y_VECTOR, bool RESIDUAL, int ACT>
DEVICE void finish_pair(const float (&sum)[2], const Y* residual, Y* y, int32 exist,
                        const Epilogue<ACT, float>& epilogue) {
    float values[2] = {sum[0], sum[1]};
    if constexpr (RESIDUAL && Y_VECTOR == 2) {
        const Vector<Y, 2> extra = exist ? load<Y, 2>(residual) : zero_vector<Y, 2>();
        values[0] += element<float>(extra, 0), values[1] += element<float>(extra, 1);
    } else if constexpr (RESIDUAL) {
        if (exist > 0) values[0] += fetch<float>(residual);
        if (exist > 1) values[1] += fetch<float>(residual + 1);
    }
#pragma unroll
    for (float& v : values) v = epilogue.activate(v);
    if constexpr (Y_VECTOR == 2) {
        const Vector<Y, 2> packed = pack<Y>(values);
        if (exist) store(y, packed);
    } else {
        if (exist > 0) y[0] = from_accumulator<Y>(values[0]);
        if (exist > 1) y[1] = from_accumulator<Y>(values[1]);
    }
}

// The outputs of this lane in `count` rows from `first` on once more, tap by tap: padding and neighbours play no part.
// HALVES: eights of units; stream_of maps numbers in the group to streams.
template <class X, class Y, int HALVES, int STRIDE, bool RESIDUAL, bool STRIPS = false, int ACT, class Streams>
DEVICE void exact_rows(const DepthwiseToeplitzParams& p, const X* x, const X* w, const Y* residual, Y* y, int32 channel,
                       int32 first, int32 count, float start, const Epilogue<ACT, float>& epilogue, Streams stream_of) {
    const int32 lane = threadIdx.x % 32;
    x += p.x_offset(channel), w += p.w_offset(channel), y += p.y_offset(channel);
    if constexpr (RESIDUAL) residual += p.residual_offset(channel);
#pragma unroll 1
    for (int i = 0; i < 2 * HALVES * count; i++) {
        const ToeplitzUnit unit(p, lane / 4 + i / 2 % HALVES * 8);
        const ToeplitzStream stream = stream_of(unit.stream);
        const int32 column = unit.column + lane % 4 * 2 + i % 2, step = first + i / (2 * HALVES);
        const int32 row = stream.first_row + step, shift = STRIPS ? row * p.shift : 0;
        if (uint32(step) >= uint32(unit.rows(p, stream)) || column + shift >= p.out[1]) continue;
        const int32 top = row * STRIDE - p.padding[0], left = column * STRIDE - p.padding[1];
        float sum = start;
#pragma unroll 1
        for (int r = max_of(-top, 0); r < min_of(p.filter[0], p.in[0] - top); r++) {
            const X* from = x + stream.image * p.x_image + int64(top + r) * p.x_row + left;
#pragma unroll 1
            for (int s = max_of(-left - shift, 0); s < min_of(p.filter[1], p.in[1] - left - shift); s++) {
                sum = fmaf(fetch<float>(from + s), fetch<float>(w + r * p.w_row + s * p.w_column), sum);
            }
        }
        if constexpr (RESIDUAL) {
            sum += fetch<float>(residual + stream.image * p.residual_image + int64(row) * p.residual_row + column);
        }
        y[stream.image * p.y_image + int64(row) * p.y_row + column] = from_accumulator<Y>(epilogue.activate(sum));
    }
}
