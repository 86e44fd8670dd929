// Compares an instruction set's kernels with the portable ones on small data.
#pragma once

#include <string>

#include "instruction_sets.h"

namespace qtool {

// What is wrong, or an empty string. Takes some milliseconds.
std::string self_test(const InstructionSet& set);

}  // namespace qtool
