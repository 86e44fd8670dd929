// NEON with SDOT, of Armv8.2's optional dot products.

#include "attention_kernels.h"
#include "dot_tile.h"
#include "isa.h"
#include "isa_neon.h"
#include "matmul_kernels.h"
#include "peak.h"
#include "row_kernels.h"

namespace qtool {
namespace {

struct SignedDot {
  static constexpr bool kBiased = true;

  template <class Isa, int kBits, int kBlockSize>
  using Tile = DotTile<Isa, kBits, kBlockSize>;

  static int32x4_t dot(int32x4_t sum, uint8x16_t weights, int8x16_t values) {
    return vdotq_s32(sum, vreinterpretq_s8_u8(weights), values);
  }
};

}  // namespace

const InstructionSet& dotprod_instruction_set() {
  static const InstructionSet set{"dotprod",
                                  MatMulTable<Neon<SignedDot>>::kTable,
                                  Attention<Neon<SignedDot>>::kernels(),
                                  Rows<Neon<SignedDot>>::functions(),
                                  has_dotprod,
                                  repeat_dot_products<Neon<SignedDot>, 4>};
  return set;
}

}  // namespace qtool
