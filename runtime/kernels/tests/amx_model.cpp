#include "amx_model.h"

#include "attention_kernels.h"
#include "isa_portable.h"
#include "matmul_kernels.h"
#include "row_kernels.h"

namespace qtool {

const InstructionSet& amx_model_instruction_set() {
  static const InstructionSet set{"amx, as a model",
                                  MatMulTable<Amx<Portable, TileModel>>::kTable,
                                  Attention<Portable>::kernels(),
                                  Rows<Portable>::functions(),
                                  [] { return true; },
                                  repeat_tile_products<TileModel>};
  return set;
}

}  // namespace qtool
