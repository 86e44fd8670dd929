// AVX2 with VNNI, on processors without AVX-512.

#include <cpuid.h>

#include "attention_kernels.h"
#include "isa.h"
#include "isa_avx2.h"
#include "matmul_kernels.h"
#include "peak.h"
#include "row_kernels.h"

namespace qtool {
namespace {

struct Vnni {
  template <int kBits>
  static __m256i dot(__m256i sum, __m256i a, __m256i b) {
    return _mm256_dpbusd_avx_epi32(sum, a, b);
  }
};

bool supported() {
  unsigned a, b, c, d;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__get_cpuid_count(7, 1, &a, &b, &c, &d))
    return false;
  return (a >> 4) & 1;  // AVX-VNNI; compilers of the age of GCC 12 do not know its name here
}

}  // namespace

const InstructionSet& avx_vnni_instruction_set() {
  static const InstructionSet set{
      "avx-vnni", MatMulTable<Avx2<Vnni>>::kTable,   Attention<Avx2<Vnni>>::kernels(), Rows<Avx2<Vnni>>::functions(),
      supported,  repeat_dot_products<Avx2<Vnni>, 6>};
  return set;
}

}  // namespace qtool
