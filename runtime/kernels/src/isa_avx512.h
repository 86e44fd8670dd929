// AVX-512 with VNNI: one register holds a whole vector. Functions are described in isa_portable.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "dot_tile.h"
#include "isa_x86.h"

namespace qtool {

struct Avx512Vnni {
  using Bytes = __m512i;
  using Ints = __m512i;
  using Floats = __m512;

  static constexpr int kRows = 4;
  static constexpr int kTileRows = 6;
  static constexpr int64_t kPrefetch = 8192;
  static constexpr bool kUnsignedWeights = true;

  template <int kBits, int kBlockSize>
  using Tile = DotTile<Avx512Vnni, kBits, kBlockSize>;

  static Ints zero_ints() { return _mm512_setzero_si512(); }
  static Floats zero_floats() { return _mm512_setzero_ps(); }
  static Ints set(int32_t value) { return _mm512_set1_epi32(value); }
  static Floats set(float value) { return _mm512_set1_ps(value); }

  static Bytes load_bytes(const void* from) { return _mm512_loadu_si512(from); }
  static Bytes load_bytes(const void* from, int64_t count) {
    if (count <= 0) return _mm512_setzero_si512();
    return count >= 64 ? load_bytes(from) : _mm512_maskz_loadu_epi8((__mmask64{1} << count) - 1, from);
  }
  static Bytes load_widened(const void* from) {
    __m512i a = _mm512_cvtepu8_epi16(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
    a = _mm512_and_si512(_mm512_or_si512(a, _mm512_slli_epi16(a, 4)), _mm512_set1_epi8(0x0f));
    return _mm512_and_si512(_mm512_or_si512(a, _mm512_slli_epi16(a, 2)), _mm512_set1_epi8(0x33));
  }
  static void store_bytes(void* to, Bytes a) { _mm512_storeu_si512(to, a); }
  static Ints load_ints(const int32_t* from) { return _mm512_loadu_si512(from); }
  static void store_ints(int32_t* to, Ints a) { _mm512_storeu_si512(to, a); }
  static Floats load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Floats a) { _mm512_storeu_ps(to, a); }
  static void prefetch(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0); }

  static Ints spread(const int32_t* four) {
    __m128i loaded = _mm_loadu_si128(reinterpret_cast<const __m128i*>(four));
    return _mm512_permutexvar_epi32(quarters(), _mm512_castsi128_si512(loaded));
  }
  static Floats spread(const float* four) {
    return _mm512_permutexvar_ps(quarters(), _mm512_castps128_ps512(_mm_loadu_ps(four)));
  }
  static Bytes repeat_word(const void* four) {
    int32_t word;
    std::memcpy(&word, four, 4);
    return _mm512_set1_epi32(word);
  }

  template <int kBits, int kField>
  static Bytes field(Bytes a) {
    if constexpr (kBits == 8) return a;
    return _mm512_and_si512(_mm512_srli_epi16(a, kBits * kField), _mm512_set1_epi8((1 << kBits) - 1));
  }

  static Bytes subtract(Bytes a, Bytes b) { return _mm512_sub_epi8(a, b); }

  template <int kBits>
  static int32_t stored_zero_point(int32_t zero_point) {
    return zero_point;
  }

  template <int kBits>
  static Ints dot(Ints sum, Bytes a, Bytes b) {
    return _mm512_dpbusd_epi32(sum, a, b);
  }
  static Ints multiply_add(Ints sum, Ints a, Ints b) { return _mm512_dpwssd_epi32(sum, a, b); }

  static Floats to_floats(Ints a) { return _mm512_cvtepi32_ps(a); }
  static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats divide(Floats a, Floats b) { return _mm512_div_ps(a, b); }

  static Floats multiply_add(Floats sum, Floats a, Floats b) { return _mm512_fmadd_ps(a, b, sum); }
  static Floats maximum(Floats a, Floats b) { return _mm512_max_ps(a, b); }
  static Ints round(Floats a) { return _mm512_cvtps_epi32(a); }
  static Floats power_of_two(Ints a) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(a, _mm512_set1_epi32(127)), 23));
  }
  static Floats zero_if_less(Floats a, Floats x, float bound) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(bound), _CMP_NLT_UQ), a);
  }
  static float largest(Floats a) { return _mm512_reduce_max_ps(a); }
  static float sum(Floats a) { return _mm512_reduce_add_ps(a); }

  static Ints sum_in_lanes(Ints a, Ints b, Ints c, Ints d) {
    Ints ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    Ints cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  }
  static Ints sum_small_in_lanes(Ints a, Ints b, Ints c, Ints d) {
    const __m512i ones = _mm512_set1_epi16(1);
    Ints ab = _mm512_madd_epi16(_mm512_packs_epi32(a, b), ones), cd = _mm512_madd_epi16(_mm512_packs_epi32(c, d), ones);
    return _mm512_madd_epi16(_mm512_packs_epi32(ab, cd), ones);
  }
  static Ints sum_lane_pairs(Ints a, Ints b) {
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
  }
  static Ints sum_lanes_of_each(Ints a, Ints b, Ints c, Ints d) {
    return sum_lane_pairs(sum_lane_pairs(a, b), sum_lane_pairs(c, d));
  }
  static Floats sum_in_lanes(Floats a, Floats b, Floats c, Floats d) {
    Floats ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    Floats cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    return _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  }
  static Floats sum_lane_pairs(Floats a, Floats b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }
  static Floats sum_lanes_of_each(Floats a, Floats b, Floats c, Floats d) {
    return sum_lane_pairs(sum_lane_pairs(a, b), sum_lane_pairs(c, d));
  }
  static void sum_lanes(Floats a, float* four) {
    __m128 low = _mm_add_ps(_mm512_castps512_ps128(a), _mm512_extractf32x4_ps(a, 1));
    __m128 high = _mm_add_ps(_mm512_extractf32x4_ps(a, 2), _mm512_extractf32x4_ps(a, 3));
    _mm_storeu_ps(four, _mm_add_ps(low, high));
  }

  static Floats transpose_scales(const float* a, const float* b, const float* c, const float* d, int64_t count) {
    __mmask8 mask = static_cast<__mmask8>((1 << count) - 1);
    __m256 ab = _mm256_set_m128(_mm_maskz_loadu_ps(mask, b), _mm_maskz_loadu_ps(mask, a));
    __m256 cd = _mm256_set_m128(_mm_maskz_loadu_ps(mask, d), _mm_maskz_loadu_ps(mask, c));
    __m512 columns = _mm512_insertf32x8(_mm512_castps256_ps512(ab), cd, 1);
    const __m512i transposed = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_ps(transposed, columns);
  }

  template <int kBits>
  static Ints unpack_zero_points(const uint32_t* packed) {
    __m128i four = _mm_setr_epi32(packed[0], packed[1], packed[2], packed[3]);
    const __m512i shifts = _mm512_mullo_epi32(quarters(), _mm512_set1_epi32(kBits));
    return _mm512_and_si512(_mm512_srlv_epi32(_mm512_broadcast_i32x4(four), shifts),
                            _mm512_set1_epi32((1 << kBits) - 1));
  }

  static void transpose_words(Bytes* vectors) {
    for (int i = 0; i < 16; i += 4) transpose_words_in_lanes(vectors + i);
    for (int i = 0; i < 4; ++i) transpose_lanes(vectors[i], vectors[4 + i], vectors[8 + i], vectors[12 + i]);
  }

  template <int kCount>
  static float largest_magnitude(const float* x) {
    __m512i largest = _mm512_setzero_si512();
    for (int i = 0; i < kCount; i += 16) {
      __m512i bits = _mm512_and_si512(_mm512_loadu_si512(x + i), _mm512_set1_epi32(0x7fffffff));
      largest = _mm512_max_epi32(largest, bits);
    }
    int32_t bits = _mm512_reduce_max_epi32(largest);
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
  }

  template <int kCount, int kFields>
  static int32_t quantize(const float* x, float factor, int8_t* to, int64_t stride) {
    __m512i sum = _mm512_setzero_si512();
    for (int i = 0; i < kCount; i += 16) {
      __m512i values = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(factor)));
      sum = _mm512_add_epi32(sum, values);
      store_fields<Avx512Vnni, kFields>(_mm512_cvtepi32_epi8(values), to + i / kFields, stride);
    }
    return _mm512_reduce_add_epi32(sum);
  }

 private:
  static __m512i quarters() { return _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3); }

  // Of four vectors: word j of lane l of vector i becomes word i of lane l of vector j.
  static void transpose_words_in_lanes(Bytes* v) {
    __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
    __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
    v[0] = _mm512_unpacklo_epi64(a, c);
    v[1] = _mm512_unpackhi_epi64(a, c);
    v[2] = _mm512_unpacklo_epi64(b, d);
    v[3] = _mm512_unpackhi_epi64(b, d);
  }

  // Lane j of the i-th becomes lane i of the j-th.
  static void transpose_lanes(Bytes& v0, Bytes& v1, Bytes& v2, Bytes& v3) {
    __m512i a = _mm512_shuffle_i32x4(v0, v1, 0x44), b = _mm512_shuffle_i32x4(v2, v3, 0x44);
    __m512i c = _mm512_shuffle_i32x4(v0, v1, 0xee), d = _mm512_shuffle_i32x4(v2, v3, 0xee);
    v0 = _mm512_shuffle_i32x4(a, b, 0x88);
    v1 = _mm512_shuffle_i32x4(a, b, 0xdd);
    v2 = _mm512_shuffle_i32x4(c, d, 0x88);
    v3 = _mm512_shuffle_i32x4(c, d, 0xdd);
  }
};

inline bool has_avx512_vnni() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

}  // namespace qtool
