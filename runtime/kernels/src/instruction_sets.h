// The instruction sets that this library was compiled for, and which of them the processor has.
#pragma once

#include <vector>

#include "attention.h"
#include "matmul.h"
#include "row_functions.h"

namespace qtool {

struct InstructionSet {
  const char* name;
  const MatMulKernels* matmul;  // in the order of kWeightFormats
  AttentionKernels attention;
  RowFunctions rows;
  bool (*supported)();                         // by the processor and the operating system
  int64_t (*repeat_products)(int64_t rounds);  // of bytes, as fast as can be; returns how many operations
};

// Those that can run here, best first. The last one is the portable one.
const std::vector<const InstructionSet*>& instruction_sets();

// Null if there is none of that name, or if it cannot run here.
const InstructionSet* find_instruction_set(const char* name);

// What kernels that are created from now on use; at first the best one.
const InstructionSet& selected_instruction_set();
void select_instruction_set(const InstructionSet& chosen);

// Null if no kernel takes such weights.
const MatMulKernels* find_matmul(const InstructionSet& set, int bits, int block_size);

}  // namespace qtool
