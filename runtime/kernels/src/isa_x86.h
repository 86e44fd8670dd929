// What AVX2 and AVX-512 do alike, with registers of 16 bytes. Templates over the instruction set, because each is
// compiled for its own processors, and the linker would keep only one copy for all.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace qtool {

// Writes quantized values in the order in which weights are unpacked: every kFields-th one after the other.
template <class Isa, int kFields>
void store_fields(__m128i bytes, int8_t* to, int64_t stride) {
  if constexpr (kFields == 1) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
  } else if constexpr (kFields == 2) {
    const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    bytes = _mm_shuffle_epi8(bytes, order);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), bytes);
    _mm_storeh_pd(reinterpret_cast<double*>(to + stride), _mm_castsi128_pd(bytes));
  } else {
    const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    alignas(16) int8_t ordered[16];
    _mm_store_si128(reinterpret_cast<__m128i*>(ordered), _mm_shuffle_epi8(bytes, order));
    for (int f = 0; f < 4; ++f) std::memcpy(to + f * stride, ordered + 4 * f, 4);
  }
}

}  // namespace qtool
