#include "isa_portable.h"

#include "isa.h"
#include "matmul_kernels.h"

namespace qtool {

const InstructionSet& portable_instruction_set() {
  static const InstructionSet set{"portable", MatMulTable<Portable>::kTable, [] { return true; }};
  return set;
}

}  // namespace qtool
