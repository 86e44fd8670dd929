// What isa_amx.cpp is, with a model of the instructions. A library that is compiled with QTOOL_AMX_MODEL has this in
// its place, so that whatever tests the instruction set "amx" runs on any processor with AVX-512 VNNI.

#include "amx_model.h"
#include "attention_kernels.h"
#include "isa.h"
#include "isa_avx512.h"
#include "matmul_kernels.h"
#include "row_kernels.h"

namespace qtool {

const InstructionSet& amx_instruction_set() {
  static const InstructionSet set{"amx",
                                  MatMulTable<Amx<Avx512Vnni, TileModel>>::kTable,
                                  Attention<Avx512Vnni>::kernels(),
                                  Rows<Avx512Vnni>::functions(),
                                  has_avx512_vnni,
                                  repeat_tile_products<TileModel>};
  return set;
}

}  // namespace qtool
