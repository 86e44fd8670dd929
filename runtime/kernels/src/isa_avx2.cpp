// AVX2 without VNNI.

#include "isa_avx2.h"

#include "attention_kernels.h"
#include "isa.h"
#include "matmul_kernels.h"
#include "peak.h"
#include "row_kernels.h"

namespace qtool {
namespace {

struct MultiplyAddBytes {
  template <int kBits>
  static __m256i dot(__m256i sum, __m256i a, __m256i b) {
    if constexpr (kBits == 8) {
      // Pairs of products of bytes would not fit 16 bits; those of half bytes do, and those of weights of fewer bits.
      const __m256i mask = _mm256_set1_epi8(15);
      __m256i low = _mm256_maddubs_epi16(_mm256_and_si256(a, mask), b);
      __m256i high = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(a, 4), mask), b);
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(high, _mm256_set1_epi16(16)));
      return _mm256_add_epi32(sum, _mm256_madd_epi16(low, _mm256_set1_epi16(1)));
    }
    __m256i pairs = _mm256_maddubs_epi16(a, b);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
};

}  // namespace

const InstructionSet& avx2_instruction_set() {
  static const InstructionSet set{"avx2",
                                  MatMulTable<Avx2<MultiplyAddBytes>>::kTable,
                                  Attention<Avx2<MultiplyAddBytes>>::kernels(),
                                  Rows<Avx2<MultiplyAddBytes>>::functions(),
                                  [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); },
                                  repeat_dot_products<Avx2<MultiplyAddBytes>, 6>};
  return set;
}

}  // namespace qtool
