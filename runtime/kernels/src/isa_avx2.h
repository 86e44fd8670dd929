// AVX2, with or without VNNI: two registers hold a vector. Functions are described in isa_portable.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "dot_tile.h"
#include "isa_x86.h"

namespace qtool {

// `Dot` is how bytes are multiplied: a class with `template <int kBits> __m256i dot(sum, a, b)`.
template <class Dot>
struct Avx2 {
  struct Bytes {
    __m256i low, high;
  };
  using Ints = Bytes;
  struct Floats {
    __m256 low, high;
  };

  static constexpr int kRows = 2;
  static constexpr int kTileRows = 2;
  static constexpr int64_t kPrefetch = 8192;
  static constexpr bool kUnsignedWeights = true;

  template <int kBits, int kBlockSize>
  using Tile = DotTile<Avx2, kBits, kBlockSize>;

  static Ints zero_ints() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static Floats zero_floats() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Ints set(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
  static Floats set(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }

  static Bytes load_bytes(const void* from) {
    auto* at = static_cast<const __m256i*>(from);
    return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
  }
  static Bytes load_bytes(const void* from, int64_t count) {
    if (count >= 64) return load_bytes(from);
    alignas(32) uint8_t padded[64] = {};
    if (count > 0) std::memcpy(padded, from, count);
    return load_bytes(padded);
  }
  static Bytes load_widened(const void* from) {
    auto* at = static_cast<const __m128i*>(from);
    return {widen(_mm_loadu_si128(at)), widen(_mm_loadu_si128(at + 1))};
  }
  static void store_bytes(void* to, Bytes a) {
    auto* at = static_cast<__m256i*>(to);
    _mm256_storeu_si256(at, a.low);
    _mm256_storeu_si256(at + 1, a.high);
  }
  static Ints load_ints(const int32_t* from) { return load_bytes(from); }
  static void store_ints(int32_t* to, Ints a) { store_bytes(to, a); }
  static Floats load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
  static void store(float* to, Floats a) {
    _mm256_storeu_ps(to, a.low);
    _mm256_storeu_ps(to + 8, a.high);
  }
  static void prefetch(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0); }

  static Ints spread(const int32_t* four) {
    Floats spread_floats = spread(reinterpret_cast<const float*>(four));
    return {_mm256_castps_si256(spread_floats.low), _mm256_castps_si256(spread_floats.high)};
  }
  static Floats spread(const float* four) {
    __m256 both = _mm256_broadcast_ps(reinterpret_cast<const __m128*>(four));
    return {_mm256_permutevar_ps(both, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1)),
            _mm256_permutevar_ps(both, _mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3))};
  }
  static Bytes repeat_word(const void* four) {
    int32_t word;
    std::memcpy(&word, four, 4);
    return set(word);
  }

  template <int kBits, int kField>
  static Bytes field(Bytes a) {
    if constexpr (kBits == 8) return a;
    const __m256i mask = _mm256_set1_epi8((1 << kBits) - 1);
    return {_mm256_and_si256(_mm256_srli_epi16(a.low, kBits * kField), mask),
            _mm256_and_si256(_mm256_srli_epi16(a.high, kBits * kField), mask)};
  }

  static Bytes subtract(Bytes a, Bytes b) { return {_mm256_sub_epi8(a.low, b.low), _mm256_sub_epi8(a.high, b.high)}; }

  template <int kBits>
  static int32_t stored_zero_point(int32_t zero_point) {
    return zero_point;
  }

  template <int kBits>
  static Ints dot(Ints sum, Bytes a, Bytes b) {
    return {Dot::template dot<kBits>(sum.low, a.low, b.low), Dot::template dot<kBits>(sum.high, a.high, b.high)};
  }
  static Ints multiply_add(Ints sum, Ints a, Ints b) {
    return add(sum, {_mm256_madd_epi16(a.low, b.low), _mm256_madd_epi16(a.high, b.high)});
  }

  static Floats to_floats(Ints a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
  static Floats add(Floats a, Floats b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
  static Floats multiply(Floats a, Floats b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
  static Floats divide(Floats a, Floats b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }

  static Floats multiply_add(Floats sum, Floats a, Floats b) {
    return {_mm256_fmadd_ps(a.low, b.low, sum.low), _mm256_fmadd_ps(a.high, b.high, sum.high)};
  }
  static Floats maximum(Floats a, Floats b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
  static Ints round(Floats a) { return {_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)}; }
  static Floats power_of_two(Ints a) {
    Ints biased = add(a, set(127));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(biased.low, 23)),
            _mm256_castsi256_ps(_mm256_slli_epi32(biased.high, 23))};
  }
  static Floats zero_if_less(Floats a, Floats x, float bound) {
    const __m256 bounds = _mm256_set1_ps(bound);
    return {_mm256_and_ps(_mm256_cmp_ps(x.low, bounds, _CMP_NLT_UQ), a.low),
            _mm256_and_ps(_mm256_cmp_ps(x.high, bounds, _CMP_NLT_UQ), a.high)};
  }
  static float largest(Floats a) {
    alignas(64) float numbers[16];
    store(numbers, a);
    float result = numbers[0];
    for (float number : numbers) result = number > result ? number : result;
    return result;
  }
  static float sum(Floats a) {
    alignas(64) float numbers[16];
    store(numbers, a);
    float result = 0;
    for (float number : numbers) result += number;
    return result;
  }

  static Ints sum_in_lanes(Ints a, Ints b, Ints c, Ints d) {
    return {sum_in_two_lanes(a.low, b.low, c.low, d.low), sum_in_two_lanes(a.high, b.high, c.high, d.high)};
  }
  static Ints sum_small_in_lanes(Ints a, Ints b, Ints c, Ints d) {
    return {sum_small(a.low, b.low, c.low, d.low), sum_small(a.high, b.high, c.high, d.high)};
  }
  static Ints sum_lane_pairs(Ints a, Ints b) { return {add_pairs(a.low, a.high), add_pairs(b.low, b.high)}; }
  static Ints sum_lanes_of_each(Ints a, Ints b, Ints c, Ints d) {
    return {add_pairs(_mm256_add_epi32(a.low, a.high), _mm256_add_epi32(b.low, b.high)),
            add_pairs(_mm256_add_epi32(c.low, c.high), _mm256_add_epi32(d.low, d.high))};
  }
  static Floats sum_in_lanes(Floats a, Floats b, Floats c, Floats d) {
    return {_mm256_hadd_ps(_mm256_hadd_ps(a.low, b.low), _mm256_hadd_ps(c.low, d.low)),
            _mm256_hadd_ps(_mm256_hadd_ps(a.high, b.high), _mm256_hadd_ps(c.high, d.high))};
  }
  static Floats sum_lanes_of_each(Floats a, Floats b, Floats c, Floats d) {
    return {add_pairs(_mm256_add_ps(a.low, a.high), _mm256_add_ps(b.low, b.high)),
            add_pairs(_mm256_add_ps(c.low, c.high), _mm256_add_ps(d.low, d.high))};
  }
  static void sum_lanes(Floats a, float* four) {
    __m128 low = _mm_add_ps(_mm256_castps256_ps128(a.low), _mm256_extractf128_ps(a.low, 1));
    __m128 high = _mm_add_ps(_mm256_castps256_ps128(a.high), _mm256_extractf128_ps(a.high, 1));
    _mm_storeu_ps(four, _mm_add_ps(low, high));
  }

  static Floats transpose_scales(const float* a, const float* b, const float* c, const float* d, int64_t count) {
    __m128 w = load_some(a, count), x = load_some(b, count), y = load_some(c, count), z = load_some(d, count);
    _MM_TRANSPOSE4_PS(w, x, y, z);
    return {_mm256_set_m128(x, w), _mm256_set_m128(z, y)};
  }

  template <int kBits>
  static Ints unpack_zero_points(const uint32_t* packed) {
    __m256i both = _mm256_broadcastsi128_si256(_mm_setr_epi32(packed[0], packed[1], packed[2], packed[3]));
    const __m256i mask = _mm256_set1_epi32((1 << kBits) - 1);
    const __m256i low = _mm256_setr_epi32(0, 0, 0, 0, kBits, kBits, kBits, kBits);
    const __m256i high = _mm256_add_epi32(low, _mm256_set1_epi32(2 * kBits));
    return {_mm256_and_si256(_mm256_srlv_epi32(both, low), mask),
            _mm256_and_si256(_mm256_srlv_epi32(both, high), mask)};
  }

  static void transpose_words(Bytes* vectors) {
    alignas(32) uint32_t words[16][16];
    for (int i = 0; i < 16; ++i) store_bytes(words[i], vectors[i]);
    for (int j = 0; j < 16; ++j) {
      alignas(32) uint32_t column[16];
      for (int i = 0; i < 16; ++i) column[i] = words[i][j];
      vectors[j] = load_bytes(column);
    }
  }

  template <int kCount>
  static float largest_magnitude(const float* x) {
    __m256i largest = _mm256_setzero_si256();
    for (int i = 0; i < kCount; i += 8) {
      __m256i bits = _mm256_castps_si256(_mm256_loadu_ps(x + i));
      largest = _mm256_max_epi32(largest, _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)));
    }
    alignas(32) int32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), largest);
    int32_t bits = lanes[0];
    for (int32_t lane : lanes) bits = lane > bits ? lane : bits;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
  }

  template <int kCount, int kFields>
  static int32_t quantize(const float* x, float factor, int8_t* to, int64_t stride) {
    __m256i sum = _mm256_setzero_si256();
    const __m256 factors = _mm256_set1_ps(factor);
    for (int i = 0; i < kCount; i += 16) {
      __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), factors));
      __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i + 8), factors));
      sum = _mm256_add_epi32(sum, _mm256_add_epi32(a, b));
      __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
      __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
      store_fields<Avx2, kFields>(bytes, to + i / kFields, stride);
    }
    alignas(32) int32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sum);
    int32_t total = 0;
    for (int32_t lane : lanes) total += lane;
    return total;
  }

 private:
  static Ints add(Ints a, Ints b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }

  static __m256i widen(__m128i bytes) {
    __m256i a = _mm256_cvtepu8_epi16(bytes);
    a = _mm256_and_si256(_mm256_or_si256(a, _mm256_slli_epi16(a, 4)), _mm256_set1_epi8(0x0f));
    return _mm256_and_si256(_mm256_or_si256(a, _mm256_slli_epi16(a, 2)), _mm256_set1_epi8(0x33));
  }

  static __m256i sum_in_two_lanes(__m256i a, __m256i b, __m256i c, __m256i d) {
    return _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
  }

  static __m256i sum_small(__m256i a, __m256i b, __m256i c, __m256i d) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i ab = _mm256_madd_epi16(_mm256_packs_epi32(a, b), ones);
    __m256i cd = _mm256_madd_epi16(_mm256_packs_epi32(c, d), ones);
    return _mm256_madd_epi16(_mm256_packs_epi32(ab, cd), ones);
  }

  // Lanes a0 + a1, b0 + b1
  static __m256i add_pairs(__m256i a, __m256i b) {
    return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
  }

  static __m256 add_pairs(__m256 a, __m256 b) {
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
  }

  static __m128 load_some(const float* from, int64_t count) {
    if (count >= 4) return _mm_loadu_ps(from);
    alignas(16) float padded[4] = {};
    for (int64_t i = 0; i < count; ++i) padded[i] = from[i];
    return _mm_load_ps(padded);
  }
};

}  // namespace qtool
