// Depthwise convolution of channels-last 16-bit data with long filters, on the tensor cores.
//
// The products are those of depthwise_toeplitz.cu: 8 neighbouring outputs of a row are a window of x times the filter
// row as a banded matrix. What is new is the way there and back: 8 channels lie side by side in memory, and a product
// takes one. They are copied as they lie, and turned between two places of shared memory by transposing loads.
//
// Block: 8 channels, one per warp, and a list of groups. A group is OUTPUTS output rows (a band) of `per_group` images;
//        a wide map is cut into strips of 16 blocks of 8 columns. With one spatial axis the strips are the rows.
// Warp: 16 column blocks are the rows of a product. Every row of x that reaches the band goes by once, in chunks of
//        OUTPUTS rows; it feeds as many sums, through as many filter rows. These move on by one with each row of x: one
//        is loaded, and the others stay in registers, as do the sums.
// Shared memory: a ring of STAGES chunks [row][image][column] of 16 bytes, 8 channels, filled by asynchronous copies; a
//        chunk as planes [channel][row][image] of columns, then in their place the outputs, 256 bytes for each channel
//        and row; the filters as pairs of neighbouring taps: four bytes for each tap, for a lane may start at any.
// Traffic: x (OUTPUTS + rows of the filter - 1) / OUTPUTS times from the second-level cache, less at the borders; once
//        from memory. Of each sector of 32 bytes another block takes the other half, at about the same time.
// Non-finite inputs: as in depthwise_toeplitz.cu, by bands of OUTPUTS rows of a channel.
// Limits: stride 1, x, y and residual dense and aligned to 16 bytes, channels a multiple of 8, multiplier 1.
#include "toeplitz.cuh"

struct DepthwiseNhwcToeplitzParams {
    int64 x_image;  // strides of x and y in pixels
    int64 y_image;
    int64 w_group;  // strides of w in elements
    double alpha;
    double beta;
    int32 w_row;
    int32 w_column;
    int32 x_row;
    int32 y_row;
    int32 shift;  // columns by which a row begins later than the one before: 0, or rows are strips of one row
    int32 channels;
    int32 images;
    int32 in[2];
    int32 out[2];
    int32 padding[2];  // low side; negative crops
    int32 filter[2];
    int32 blocks;     // column blocks of 8 outputs in a strip; blockIdx.z counts strips
    int32 per_group;  // images that are computed together
    int32 bands;      // of an image
    int32 groups;
    int32 groups_per_block;
    int32 columns;        // of a row in the ring: a multiple of 8
    int32 stream_pitch;   // bytes of a row of one image and channel in the planes
    int32 channel_pitch;  // bytes of a channel in the planes
};
static_assert(sizeof(DepthwiseNhwcToeplitzParams) == 136,
              "gpu_conv/families/depthwise_nhwc_toeplitz.py packs this struct");

constexpr int kChannels = 8;  // of a block: one for each warp
constexpr int kPixel = 16;    // bytes of its channels
constexpr int kUnits = 16;    // rows of a product

// n / d for n < 4096 and n * d < 2^20.
struct Division {
    int32 d;
    uint32 reciprocal;

    DEVICE explicit Division(int32 d) : d(d), reciprocal(((1u << 20) + uint32(d) - 1) / uint32(d)) {}
    DEVICE int32 quotient(int32 n) const { return int32(uint32(n) * reciprocal >> 20); }
};

// A group: OUTPUTS rows of y of some images. Rows of x are counted from `top`, the one under filter row 0 of the first
// of them: row `first` + i meets filter row first + i - o of output row o.
template <int OUTPUTS>
struct NhwcBand {
    int32 image;
    int32 row;    // of y
    int32 top;    // row of x
    int32 first;  // the first row that is walked: where a chunk begins
    int32 end;

    DEVICE NhwcBand(const DepthwiseNhwcToeplitzParams& p, int32 group) {
        image = group / p.bands * p.per_group, row = group % p.bands * OUTPUTS;
        aim(p);
    }
    DEVICE void aim(const DepthwiseNhwcToeplitzParams& p) {
        top = row - p.padding[0];
        first = max_of(min_of(-top, OUTPUTS - 2 + p.filter[0]), 0) / OUTPUTS * OUTPUTS;
        end = min_of(p.in[0] - top, OUTPUTS - 1 + p.filter[0]);
    }
    DEVICE void next(const DepthwiseNhwcToeplitzParams& p) {
        row += OUTPUTS;
        if (row >= p.out[0]) row = 0, image += p.per_group;
        aim(p);
    }
};

// Pixel of y that a lane has of a unit, a row of the products.
struct NhwcPixel {
    int32 image;
    int32 row;
    int32 column;
    bool exists;

    template <int OUTPUTS>
    DEVICE NhwcPixel(const DepthwiseNhwcToeplitzParams& p, const Division& by_blocks, const NhwcBand<OUTPUTS>& band,
                     int32 unit, int32 output, int32 column_in_unit) {
        const int32 stream = by_blocks.quotient(unit);
        image = band.image + stream, row = band.row + output;
        column = (int32(blockIdx.z) * p.blocks + unit - stream * p.blocks) * 8 + column_in_unit;
        exists = stream < p.per_group && image < p.images && row < p.out[0] && column + row * p.shift < p.out[1];
    }

    DEVICE int64 offset(const DepthwiseNhwcToeplitzParams& p) const {
        return (image * p.y_image + int64(row) * p.y_row + column) * p.channels;
    }

    // It may be y itself: no read through the cache of memory that nobody writes.
    template <class X>
    DEVICE float residual(const DepthwiseNhwcToeplitzParams& p, const X* from) const {
        return element<float>(load<X, 1, false>(from + offset(p)), 0);
    }
};

// Columns of x under the windows of the strip, and where they lie in the ring.
struct NhwcWindow {
    int32 first;  // column of x under the first window
    int32 from;   // columns that exist, [from, to); all if rows are strips
    int32 to;
    int32 ring;  // the first column of the ring, octets of padding behind `first`

    DEVICE NhwcWindow(const DepthwiseNhwcToeplitzParams& p, int32 octets) {
        first = int32(blockIdx.z) * p.blocks * 8 - p.padding[1];
        from = first, to = first + octets * 8;
        if (p.shift == 0) from = max_of(from, 0), to = min_of(to, p.in[1]);
        ring = first + (from - first) / 8 * 8;
    }

    // Eight columns that are read together, two of each of four successive octets, lie in different banks.
    DEVICE int32 pixel(int32 column) const {
        const int32 i = column - ring;
        return (i ^ (i >> 3 & 3) * 2) * kPixel;
    }
};

// What one thread copies of every chunk.
template <class X, int OUTPUTS, int COPIES, bool SINGLE>
struct NhwcCopies {
    static constexpr int32 kNone = -1;
    int32 place[COPIES];  // image * 2^16 + row in the chunk, or kNone
    int32 column[COPIES];
    int32 offset[COPIES];  // elements from the first row of the chunk in the first image
    uint32 destination[COPIES];

    DEVICE NhwcCopies(const DepthwiseNhwcToeplitzParams& p, const NhwcWindow& window, uint32 ring) {
        const Division by_columns(p.columns), by_images(p.per_group);
#pragma unroll
        for (int c = 0; c < COPIES; c++) {
            const int32 i = threadIdx.x + c * (kChannels * 32), line = by_columns.quotient(i);
            const int32 row = by_images.quotient(line), image = line - row * p.per_group;
            column[c] = window.ring + i - line * p.columns;
            const bool exists = row < OUTPUTS && column[c] >= window.from && column[c] < window.to;
            place[c] = exists ? image << 16 | row : kNone;
            offset[c] = int32(image * p.x_image + row * p.x_row + column[c]) * p.channels;
            destination[c] = ring + line * p.columns * kPixel + window.pixel(column[c]);
        }
    }

    // x: the first row of the chunk; rows and images that do not exist are zeros.
    DEVICE void copy(const DepthwiseNhwcToeplitzParams& p, const X* x, int32 row, int32 images, uint32 slot) const {
#pragma unroll
        for (int c = 0; c < COPIES; c++) {
            if (place[c] == kNone) continue;
            const int32 r = row + (place[c] & 0xffff);
            bool exists = uint32(r) < uint32(p.in[0]) && place[c] >> 16 < images;
            if (SINGLE) exists = exists && uint32(column[c] + r * p.shift) < uint32(p.in[1]);
            copy_async<kPixel>(destination[c] + slot, x + offset[c], exists);
        }
    }
};

// SINGLE: the filter has one row, so that rows of x and of y are the same. Only then rows may be strips.
template <class X, class BIAS, int OUTPUTS, int STEPS, int COPIES, int STAGES, bool SINGLE, bool RESIDUAL, int ACT,
          int MIN_BLOCKS>
__global__ void __launch_bounds__(kChannels * 32, MIN_BLOCKS)
    depthwise_nhwc_toeplitz(const X* x, const X* w, const BIAS* bias, const X* residual, const int32*, const int32*,
                            X* y, void*, const DepthwiseNhwcToeplitzParams p) {
    static_assert(sizeof(X) == 2, "the products take 16-bit elements");
    static_assert(STAGES >= 2, "one chunk is computed while another one arrives");
    constexpr int kBefore = 7;              // zeros before a filter row in shared memory
    constexpr int kPairs = 16 * STEPS + 8;  // of neighbouring taps of one, with zeros behind it
    constexpr uint32 kFilterRow = kPairs * 4, kOutput = kUnits * 16, kOutputs = OUTPUTS * kOutput + 64;  // bytes
    extern __shared__ __align__(16) unsigned char shared[];

    const int32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int32 block_channel = int32(blockIdx.x) * kChannels, channel = block_channel + warp;
    const int32 octets = p.blocks - 1 + 2 * STEPS, lines = OUTPUTS * p.per_group;
    const Division by_blocks(p.blocks);
    const NhwcWindow window(p, octets);

    const uint32 zeros = shared_address(shared), ring = zeros + 128;
    const uint32 stage_bytes = lines * p.columns * kPixel, last_slot = (STAGES - 1) * stage_bytes;
    const uint32 planes = ring + STAGES * stage_bytes;
    const uint32 filters = planes + kChannels * max_of(uint32(p.channel_pitch), kOutputs);
    const uint32 filter_pitch = ((p.filter[0] + 1) * kFilterRow + 111) / 128 * 128 + 16;  // 8 channels, all banks
    const uint32 filter = filters + warp * filter_pitch;

    int32 group = int32(blockIdx.y) * p.groups_per_block;
    const int32 last_group = min_of(group + p.groups_per_block, p.groups);
    NhwcBand<OUTPUTS> place(p, group), copy_place = place;
    const NhwcCopies<X, OUTPUTS, COPIES, SINGLE> copies(p, window, ring);
    int32 copies_left = last_group - group;
    auto copy_next = [&](uint32 slot) {
        if (copies_left > 0) {
            const int32 row = copy_place.top + copy_place.first;
            const X* from = x + (copy_place.image * p.x_image + int64(row) * p.x_row) * p.channels + block_channel;
            copies.copy(p, from, row, p.images - copy_place.image, slot);
            copy_place.first += OUTPUTS;
            if (copy_place.first >= copy_place.end) copy_place.next(p), copies_left--;
        }
        copy_commit();
    };
#pragma unroll 1
    for (int s = 0; s < STAGES - 1; s++) copy_next(s * stage_bytes);

    // The filters, a row of zeros behind each: word n of a row is taps n - kBefore and the next one. Neighbouring
    // threads have neighbouring channels, which a packed filter has side by side.
    const int32 taps = min_of(p.filter[1], kPairs - kBefore);  // windows of small maps end before
    const Division by_taps(taps);
    for (uint32 i = threadIdx.x * 16; i < kChannels * filter_pitch; i += kChannels * 32 * 16) {
        shared_store_16(filters + i, {0, 0, 0, 0});
    }
    if (threadIdx.x < 8) shared_store_16(zeros + threadIdx.x * 16, {0, 0, 0, 0});
    __syncthreads();
#pragma unroll 4
    for (int32 i = threadIdx.x / kChannels; i < p.filter[0] * taps; i += 32) {
        const int32 c = threadIdx.x % kChannels, r = by_taps.quotient(i), s = i - r * taps;
        const uint16 bits = w[(block_channel + c) * p.w_group + int64(r) * p.w_row + int64(s) * p.w_column].bits;
        const uint32 word = filters + c * filter_pitch + r * kFilterRow + (s + kBefore) * 4;
        shared_store_2(word, bits);
        shared_store_2(word - 2, bits);
    }
    __syncthreads();  // the filters are whole
    const float start = bias ? fetch<float>(bias + channel) : 0.0f;
    const Epilogue<ACT, float> epilogue(p.alpha, p.beta);

    // A chunk from the ring to the planes: of each matrix row 2t and row 2t + 1 are neighbours in octet t.
    const int32 named = lane % 8 / 2 * 8 + lane / 8 * 2 + lane % 2;  // column in 4 octets
    const int32 turned_from = opaque(window.first + named - window.from);
    const int32 turned_columns = max_of(window.to - window.from, 0);
    const uint32 turned_pixel = opaque(ring + window.pixel(window.first + named));
    const uint32 turned_plane = opaque(planes + g * p.channel_pitch + t * 16);
    auto turn = [&](uint32 slot) {
#pragma unroll 1
        for (int32 line = warp; line < lines; line += kChannels) {
            uint32 pixel = turned_pixel + slot + line * p.columns * kPixel;
            uint32 plane = turned_plane + line * p.stream_pitch;
            for (int32 octet = 0; octet < octets; octet += 4, pixel += 32 * kPixel, plane += 64) {
                const bool exists = uint32(turned_from + octet * 8) < uint32(turned_columns);
                uint32 turned[4];
                ldmatrix_x4_transposed(turned, exists ? pixel : zeros + pixel % 128);
                if (octet + t < octets) shared_store_16(plane, turned);
            }
        }
    };

    // A filter row as a band; zeros outside of the filter.
    const uint32 band_from = opaque(filter + (kBefore + 2 * t - g) * 4);
    auto load_band = [&](uint32(&band)[STEPS][2], int32 row) {
        const uint32 from = band_from + min_of(uint32(row), uint32(p.filter[0])) * kFilterRow;
#pragma unroll
        for (int k = 0; k < 2 * STEPS; k++) band[k / 2][k % 2] = shared_load_4(from + 32 * k);
    };

    // The line of a fragment that this lane names: a unit, low or high half of the k axis. Those that do not exist
    // repeat one that does.
    const int32 units = p.per_group * p.blocks, eight = lane % 16 / 8 * 8;
    const int32 unit = lane % 16 < units ? lane % 16 : eight < units ? eight : 0, stream = by_blocks.quotient(unit);
    const uint32 line = opaque(planes + warp * p.channel_pitch + stream * p.stream_pitch +
                               (unit - stream * p.blocks) * 16 + lane / 16 * 16);
    const uint32 row_bytes = opaque(p.per_group * p.stream_pitch);

    uint32 band[SINGLE ? 1 : OUTPUTS][STEPS][2];  // filter row r in place r % OUTPUTS
    if constexpr (SINGLE) load_band(band[0], 0);
    uint32 slot = 0;
    for (; group < last_group; group++, place.next(p)) {
        float sum[OUTPUTS][2][2];  // output row; unit g or g + 8; column
#pragma unroll
        for (int e = 0; e < OUTPUTS * 4; e++) sum[e / 4][e / 2 % 2][e % 2] = start;
        if constexpr (!SINGLE) {
#pragma unroll
            for (int r = 1; r < OUTPUTS; r++) load_band(band[OUTPUTS - r], place.first - r);
        }
        int32 tap = place.first;
        do {
            copy_wait<STAGES - 2>();
            __syncthreads();  // this chunk is there, and all are done with the planes and with the chunk before
            copy_next(slot == 0 ? last_slot : slot - stage_bytes);
            turn(slot);
            slot = slot == last_slot ? 0 : slot + stage_bytes;
            __syncthreads();  // the planes are whole
#pragma unroll
            for (int i = 0; i < OUTPUTS; i++, tap++) {
                if constexpr (!SINGLE) load_band(band[i], tap);
                if (uint32(place.top + tap) >= uint32(p.in[0])) continue;
                uint32 a[STEPS][4];
#pragma unroll
                for (int k = 0; k < STEPS; k++) ldmatrix_x4(a[k], line + i * row_bytes + 32 * k);
#pragma unroll
                for (int o = SINGLE ? i : 0; o < (SINGLE ? i + 1 : OUTPUTS); o++) {
                    const uint32(&b)[STEPS][2] = band[SINGLE ? 0 : (i - o + OUTPUTS) % OUTPUTS];
#pragma unroll
                    for (int k = 0; k < STEPS; k++) mma<X, X>(sum[o][0], sum[o][1], a[k], b[k][0], b[k][1]);
                }
            }
        } while (tap < place.end);

        // Store: outputs by channel and row, then by pixel.
        __syncthreads();  // all are done with the planes
        float probe = 0.0f;
        const uint32 outputs = planes + warp * kOutputs + g * 16 + t * 4;
#pragma unroll
        for (int e = 0; e < OUTPUTS * 2; e++) {
            const int o = e / 2, half = e % 2;
            probe = fmaf(0.0f, sum[o][half][0], probe);
            float (&values)[2] = sum[o][half];
#pragma unroll
            for (int c = 0; c < 2; c++) {
                if constexpr (RESIDUAL) {
                    const NhwcPixel pixel(p, by_blocks, place, g + 8 * half, o, 2 * t + c);
                    if (pixel.exists) values[c] += pixel.residual(p, residual + channel);
                }
                values[c] = epilogue.activate(values[c]);
            }
            shared_store_4(outputs + o * kOutput + half * 128, from_accumulators<X>(values[0], values[1]));
        }
        if (__any_sync(0xffffffffu, probe != probe)) {
            // The band once more, tap by tap: padding and neighbours play no part.
#pragma unroll 1
            for (int i = 0; i < OUTPUTS * 4; i++) {
                const int o = i / 4, half = i / 2 % 2, c = i % 2;
                const NhwcPixel pixel(p, by_blocks, place, g + 8 * half, o, 2 * t + c);
                if (!pixel.exists) continue;
                const int32 top = pixel.row - p.padding[0], left = pixel.column - p.padding[1];
                float exact = start;
#pragma unroll 1
                for (int r = max_of(-top, 0); r < min_of(p.filter[0], p.in[0] - top); r++) {
                    const int64 row = pixel.image * p.x_image + int64(top + r) * p.x_row + left;
                    const X* filter_row = w + channel * p.w_group + int64(r) * p.w_row;
                    const int32 first = left + (top + r) * p.shift;
#pragma unroll 1
                    for (int s = max_of(-first, 0); s < min_of(p.filter[1], p.in[1] - first); s++) {
                        exact = fmaf(fetch<float>(x + (row + s) * p.channels + channel),
                                     fetch<float>(filter_row + s * p.w_column), exact);
                    }
                }
                if constexpr (RESIDUAL) exact += pixel.residual(p, residual + channel);
                shared_store_2(outputs + o * kOutput + half * 128 + c * 2,
                               from_accumulator<X>(epilogue.activate(exact)).bits);
            }
        }
        __syncthreads();  // the outputs are whole
#pragma unroll 1
        for (int i = warp; i < OUTPUTS * 4; i += kChannels) {
            const int32 o = i / 4, unit = i % 4 * 4;
            Vector<X, 8> pixels;
            ldmatrix_x4_transposed(
                pixels.word, planes + (lane / 8 * 2 + lane % 2) * kOutputs + o * kOutput + (unit + lane % 8 / 2) * 16);
            const NhwcPixel pixel(p, by_blocks, place, unit + t, o, g);
            if (pixel.exists) store(y + pixel.offset(p) + block_channel, pixels);
        }
    }
}
