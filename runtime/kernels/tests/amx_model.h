// An instruction set whose tiles are a model of AMX in plain C++: to test their use on any processor.
#pragma once

#include "instruction_sets.h"

namespace qtool {

const InstructionSet& amx_model_instruction_set();

}  // namespace qtool
