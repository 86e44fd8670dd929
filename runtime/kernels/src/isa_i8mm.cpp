// NEON with USDOT, of Armv8.6's int8 matrix extension: unsigned weights need no bias.

#include "attention_kernels.h"
#include "isa.h"
#include "isa_neon.h"
#include "matmul_kernels.h"
#include "row_kernels.h"

namespace qtool {
namespace {

struct MixedDot {
  static constexpr bool kBiased = false;
  static int32x4_t dot(int32x4_t sum, uint8x16_t weights, int8x16_t values) {
    return vusdotq_s32(sum, weights, values);
  }
};

}  // namespace

const InstructionSet& i8mm_instruction_set() {
  static const InstructionSet set{"i8mm", MatMulTable<Neon<MixedDot>>::kTable, Attention<Neon<MixedDot>>::kernels(),
                                  Rows<Neon<MixedDot>>::functions(), has_i8mm};
  return set;
}

}  // namespace qtool
