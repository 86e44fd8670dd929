#include "instruction_sets.h"

#include <atomic>
#include <cstring>

#include "isa.h"

namespace qtool {

const std::vector<const InstructionSet*>& instruction_sets() {
  static const std::vector<const InstructionSet*> available = [] {
    std::vector<const InstructionSet*> result;
    for (const InstructionSet* set : compiled_instruction_sets()) {
      if (set->supported()) result.push_back(set);
    }
    return result;
  }();
  return available;
}

const InstructionSet* find_instruction_set(const char* name) {
  for (const InstructionSet* set : instruction_sets()) {
    if (std::strcmp(set->name, name) == 0) return set;
  }
  return nullptr;
}

static std::atomic<const InstructionSet*> selected{nullptr};

const InstructionSet& selected_instruction_set() {
  const InstructionSet* chosen = selected.load();
  return chosen ? *chosen : *instruction_sets().front();
}

void select_instruction_set(const InstructionSet& chosen) { selected.store(&chosen); }

const MatMulKernels* find_matmul(const InstructionSet& set, int bits, int block_size) {
  for (int i = 0; i < kWeightFormatCount; ++i) {
    if (kWeightFormats[i].bits == bits && kWeightFormats[i].block_size == block_size) return &set.matmul[i];
  }
  return nullptr;
}

}  // namespace qtool
