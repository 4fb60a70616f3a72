// Convolution of +-1 images with +-1 weights on a CPU with AVX2. Sums are whole numbers, so no order of additions and
// no number of threads changes them.
//
// A product of two signs is -1 where their bits differ, so a sum of K products is K - 2 * (number of differing bits).
// The usual way counts the ones of xor words: some eight instructions for 256 bits. Here one instruction looks up 32
// counts. Four channels of a pixel are one of 16 nibbles; for each, a table of 16 bytes says in how many bits it
// differs from every nibble that a weight can be. The shuffle instruction reads that table at 32 places at once: the
// weights of 32 output channels. So 128 products cost a shuffle and an addition, and counts lie one output channel to
// a byte, as they are needed.
//
// A 17th table holds 2 everywhere. Four zeros against four signs are as good as two bits that differ, 4 - 2 * 2 = 0:
// with it, zero padding is exact and costs no case of its own.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

constexpr int kPixels = 6;           // output pixels at a time: 12 registers of counts, 2 of weights, 1 table
constexpr int kBeforeOverflow = 63;  // a nibble adds at most 4 to a byte
constexpr uint8_t kZero = 16 * 8;    // the place of the table for padding; places are counted in units of two bytes

struct Tables {
    alignas(64) uint8_t counts[17 * 16];
    uint16_t nibbles[256];  // eight sign bits -> the places of their two tables, the lower nibble first
    Tables() {
        for (int a = 0; a < 16; ++a)
            for (int w = 0; w < 16; ++w) counts[a * 16 + w] = static_cast<uint8_t>(__builtin_popcount(a ^ w));
        std::memset(counts + 16 * 16, 2, 16);
        for (int bits = 0; bits < 256; ++bits) nibbles[bits] = static_cast<uint16_t>((bits & 15) * 8 | (bits >> 4) * 8 << 8);
    }
};
const Tables tables;

struct Shape {
    int64_t batch, height, width, channels, outputs, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
    int64_t padded_h() const { return height + 2 * pad_h; }
    int64_t padded_w() const { return width + 2 * pad_w; }
    int64_t out_h() const { return (padded_h() - kernel_h) / stride_h + 1; }
    int64_t out_w() const { return (padded_w() - kernel_w) / stride_w + 1; }
    int64_t nibbles() const { return channels / 4; }
    int64_t block() const { return outputs <= 32 ? 32 : 64; }  // output channels at a time, 32 to a register
};

// Signs of one pixel: a table's place for every four channels. Negative is 1; zero of either sign, and NaN, are 0.
void pack_pixel(const float* x, uint8_t* out, int64_t channels) {
    const __m256 zero = _mm256_setzero_ps();
    int64_t c = 0;
    for (; c + 8 <= channels; c += 8) {
        int bits = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x + c), zero, _CMP_LT_OQ));
        std::memcpy(out + c / 4, &tables.nibbles[bits], 2);
    }
    if (c < channels) {
        int bits = _mm_movemask_ps(_mm_cmplt_ps(_mm_loadu_ps(x + c), _mm_setzero_ps()));
        out[c / 4] = static_cast<uint8_t>(bits * 8);
    }
}

inline void widen(__m256i counts, uint16_t* sums) {
    __m256i* s = reinterpret_cast<__m256i*>(sums);
    __m256i low = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(counts));
    __m256i high = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(counts, 1));
    _mm256_store_si256(s, _mm256_add_epi16(_mm256_load_si256(s), low));
    _mm256_store_si256(s + 1, _mm256_add_epi16(_mm256_load_si256(s + 1), high));
}

// Adds to counts the differing bits of `length` nibbles of every pixel and output channel.
template <int R>
void count_run(const uint8_t* const* x, const uint8_t* weight, int64_t length, __m256i* counts) {
    __m256i c[kPixels][R];
#pragma GCC unroll 12
    for (int i = 0; i < kPixels * R; ++i) c[i / R][i % R] = _mm256_load_si256(counts + i);
    for (int64_t n = 0; n < length; ++n) {
        __m256i w[R];
#pragma GCC unroll 2
        for (int r = 0; r < R; ++r) w[r] = _mm256_load_si256(reinterpret_cast<const __m256i*>(weight) + n * R + r);
#pragma GCC unroll 6
        for (int p = 0; p < kPixels; ++p) {
            const auto* place = reinterpret_cast<const __m128i*>(tables.counts + 2 * static_cast<size_t>(x[p][n]));
            const __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128(place));
#pragma GCC unroll 2
            for (int r = 0; r < R; ++r) c[p][r] = _mm256_add_epi8(c[p][r], _mm256_shuffle_epi8(table, w[r]));
            // All 16 registers are in use: pixels that the compiler interleaves would go through memory.
            asm volatile("" : "+x"(c[p][0]), "+x"(c[p][R - 1]));
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < kPixels * R; ++i) _mm256_store_si256(counts + i, c[i / R][i % R]);
}

// Sums (kPixels, 32 R): differing bits of every pixel and output channel, over a kernel's rows of `run` nibbles, which
// lie `row` bytes apart in the image and next to each other in the weight.
template <int R>
void count(const uint8_t* const* x, int64_t rows, int64_t row, int64_t run, const uint8_t* weight, uint16_t* sums) {
    __m256i counts[kPixels * R] = {};
    int64_t room = kBeforeOverflow;
    const auto empty = [&] {
        for (int i = 0; i < kPixels * R; ++i) {
            widen(counts[i], sums + i * 32);
            counts[i] = _mm256_setzero_si256();
        }
        room = kBeforeOverflow;
    };
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t begin = 0; begin < run;) {
            const int64_t length = std::min(room, run - begin);
            const uint8_t* here[kPixels];
            for (int p = 0; p < kPixels; ++p) here[p] = x[p] + i * row + begin;
            count_run<R>(here, weight, length, counts);
            weight += length * 32 * R;
            begin += length;
            room -= length;
            if (room == 0) empty();
        }
    }
    empty();
}

struct Finish {
    float scale;
    int relu;
    const float* multiplier;   // (outputs) with bias, or null
    const float* bias;         // (outputs) or null
    const int32_t* threshold;  // (outputs) with above and instead of all others, or null
    const float* above;        // (outputs), +1 or -1, or null
    const float* residual;     // like the output, or null
};

// multiplier * x + bias, rounded once, as torch's batch norm rounds it.
inline __m256 affine(__m256 x, const float* multiplier, const float* bias) {
    return _mm256_fmadd_ps(x, _mm256_loadu_ps(multiplier), _mm256_loadu_ps(bias));
}

// Sums of one pixel to what leaves the layer, rounded wherever the trained network's operators round.
void finish_pixel(const uint16_t* differing, int64_t products, int64_t first, int64_t outputs, const Finish& f,
                  const float* residual, float* out) {
    const __m256i all = _mm256_set1_epi32(static_cast<int>(products));
    for (int64_t o = 0; o < outputs; o += 8) {
        const __m128i loaded = _mm_load_si128(reinterpret_cast<const __m128i*>(differing + o));
        const __m256i sum = _mm256_sub_epi32(all, _mm256_slli_epi32(_mm256_cvtepu16_epi32(loaded), 1));
        if (f.threshold) {
            const auto* t = reinterpret_cast<const __m256i*>(f.threshold + first + o);
            const __m256i below = _mm256_cmpgt_epi32(_mm256_loadu_si256(t), sum);
            const __m256 minus = _mm256_and_ps(_mm256_castsi256_ps(below), _mm256_set1_ps(-0.0f));
            _mm256_storeu_ps(out + o, _mm256_xor_ps(_mm256_loadu_ps(f.above + first + o), minus));
            continue;
        }
        __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(f.scale));
        if (f.relu) y = _mm256_max_ps(y, _mm256_setzero_ps());
        if (f.multiplier)
            y = affine(y, f.multiplier + first + o, f.bias + first + o);
        else if (f.bias)
            y = _mm256_add_ps(y, _mm256_loadu_ps(f.bias + first + o));
        if (residual) y = _mm256_add_ps(y, _mm256_loadu_ps(residual + o));
        _mm256_storeu_ps(out + o, y);
    }
}

// Six output pixels by one block of output channels.
void tile(const Shape& s, const uint8_t* signs, const uint8_t* weight, int64_t first_pixel, int64_t first_output,
          const Finish& f, float* out) {
    const int64_t pixels = s.batch * s.out_h() * s.out_w();
    const int64_t run = s.kernel_w * s.nibbles(), row = s.padded_w() * s.nibbles();
    const int64_t inside = std::min<int64_t>(kPixels, pixels - first_pixel);
    const uint8_t* x[kPixels];
    for (int p = 0; p < kPixels; ++p) {
        // The last tile counts its last pixel again instead of reading beyond the image.
        const int64_t pixel = first_pixel + std::min<int64_t>(p, inside - 1);
        const int64_t column = pixel % s.out_w(), line = pixel / s.out_w() % s.out_h();
        const int64_t image = pixel / (s.out_w() * s.out_h());
        x[p] = signs + ((image * s.padded_h() + line * s.stride_h) * s.padded_w() + column * s.stride_w) * s.nibbles();
    }
    alignas(32) uint16_t sums[kPixels * 64] = {};
    (s.block() == 32 ? count<1> : count<2>)(x, s.kernel_h, row, run, weight, sums);
    const int64_t products = s.kernel_h * s.kernel_w * s.channels;
    const int64_t outputs = std::min(s.block(), s.outputs - first_output);
    for (int64_t p = 0; p < inside; ++p) {
        const int64_t at = (first_pixel + p) * s.outputs + first_output;
        finish_pixel(sums + p * s.block(), products, first_output, outputs, f, f.residual ? f.residual + at : nullptr,
                     out + at);
    }
}

}  // namespace

extern "C" {

// x: (B, H, W, C) float32, contiguous.  shape: the eleven numbers of Shape, C a multiple of 4, outputs one of 8.
// weight: (blocks of outputs, kernel_h * kernel_w * C / 4, outputs of a block) nibbles, bit 1 for -1; a block has 32
// outputs if there are no more, else 64.
// scratch: B * padded_h * padded_w * C / 4 bytes.  residual, out: (B, out_h, out_w, outputs) float32, contiguous.
//     out = bias + multiplier * relu(scale * sum) + residual, each part as given,
//     or sum >= threshold ? above : -above
void reste_binary_conv(const float* x, const int64_t* shape, const uint8_t* weight, uint8_t* scratch, float scale,
                       int relu, const float* multiplier, const float* bias, const int32_t* threshold,
                       const float* above, const float* residual, float* out, int threads) {
    Shape s;
    static_assert(sizeof(Shape) == 11 * sizeof(int64_t));
    std::memcpy(&s, shape, sizeof s);
    const Finish f{scale, relu, multiplier, bias, threshold, above, residual};
    const int64_t lines = s.batch * s.padded_h(), n = s.nibbles(), padded_w = s.padded_w();
    const int64_t pixels = s.batch * s.out_h() * s.out_w();
    const int64_t tiles = (pixels + kPixels - 1) / kPixels, blocks = (s.outputs + s.block() - 1) / s.block();
    const int64_t block_bytes = s.kernel_h * s.kernel_w * n * s.block();
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int64_t line = 0; line < lines; ++line) {
            const int64_t image = line / s.padded_h(), y = line % s.padded_h() - s.pad_h;
            uint8_t* to = scratch + line * padded_w * n;
            if (y < 0 || y >= s.height) {
                std::memset(to, kZero, padded_w * n);
                continue;
            }
            std::memset(to, kZero, s.pad_w * n);
            const float* from = x + (image * s.height + y) * s.width * s.channels;
            for (int64_t column = 0; column < s.width; ++column)
                pack_pixel(from + column * s.channels, to + (s.pad_w + column) * n, s.channels);
            std::memset(to + (s.pad_w + s.width) * n, kZero, s.pad_w * n);
        }
#pragma omp for schedule(static)
        for (int64_t job = 0; job < blocks * tiles; ++job) {
            const int64_t block = job / tiles;
            tile(s, scratch, weight + block * block_bytes, job % tiles * kPixels, block * s.block(), f, out);
        }
    }
}

// out = bias + multiplier * x, or of relu(x); x and out (pixels, channels) float32, contiguous, channels a
// multiple of 8; they may be the same.
void reste_affine(const float* x, int64_t pixels, int64_t channels, int relu, const float* multiplier,
                  const float* bias, float* out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t p = 0; p < pixels; ++p)
        for (int64_t c = 0; c < channels; c += 8) {
            __m256 y = _mm256_loadu_ps(x + p * channels + c);
            if (relu) y = _mm256_max_ps(y, _mm256_setzero_ps());
            _mm256_storeu_ps(out + p * channels + c, affine(y, multiplier + c, bias + c));
        }
}
}
