// AVX-512 with VNNI.

#include "isa_avx512.h"

#include "attention_kernels.h"
#include "isa.h"
#include "matmul_kernels.h"
#include "peak.h"
#include "row_kernels.h"

namespace qtool {

const InstructionSet& avx512_vnni_instruction_set() {
  static const InstructionSet set{"avx512-vnni",
                                  MatMulTable<Avx512Vnni>::kTable,
                                  Attention<Avx512Vnni>::kernels(),
                                  Rows<Avx512Vnni>::functions(),
                                  has_avx512_vnni,
                                  repeat_dot_products<Avx512Vnni, 16>};
  return set;
}

}  // namespace qtool
