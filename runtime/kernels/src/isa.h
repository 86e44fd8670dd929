// One function for each file that is compiled with an instruction set's own compiler options.
#pragma once

#include <vector>

#include "instruction_sets.h"

namespace qtool {

const InstructionSet& portable_instruction_set();
const InstructionSet& avx2_instruction_set();
const InstructionSet& avx_vnni_instruction_set();
const InstructionSet& amx_instruction_set();
const InstructionSet& avx512_vnni_instruction_set();
const InstructionSet& dotprod_instruction_set();
const InstructionSet& i8mm_instruction_set();

inline std::vector<const InstructionSet*> compiled_instruction_sets() {
  return {
#if defined(QTOOL_AMX)
    &amx_instruction_set(),
#endif
#if defined(QTOOL_X86)
        &avx512_vnni_instruction_set(), &avx_vnni_instruction_set(), &avx2_instruction_set(),
#elif defined(QTOOL_ARM64)
    &i8mm_instruction_set(), &dotprod_instruction_set(),
#endif
        &portable_instruction_set(),
  };
}

}  // namespace qtool
