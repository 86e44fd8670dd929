#include "isa_portable.h"

#include "attention_kernels.h"
#include "isa.h"
#include "matmul_kernels.h"
#include "peak.h"
#include "row_kernels.h"

namespace qtool {

const InstructionSet& portable_instruction_set() {
  static const InstructionSet set{
      "portable",          MatMulTable<Portable>::kTable,   Attention<Portable>::kernels(), Rows<Portable>::functions(),
      [] { return true; }, repeat_dot_products<Portable, 1>};
  return set;
}

}  // namespace qtool
