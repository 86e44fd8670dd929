// AMX for many rows, and AVX-512 with VNNI for all else.

#include "isa_amx.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "attention_kernels.h"
#include "isa.h"
#include "isa_avx512.h"
#include "matmul_kernels.h"
#include "row_kernels.h"

namespace qtool {
namespace {

// Not the compiler's intrinsics: they take no template's arguments, and older ones do not say that memory is read.
struct TileInstructions {
  static void configure(const TileConfig& config) { asm volatile("ldtilecfg %0" ::"m"(config)); }
  static void release() { asm volatile("tilerelease"); }

  template <int kTile>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  template <int kTile>
  static void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  static void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kSums, int kA, int kB>
  static void multiply_signed() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kA), "i"(kB));
  }
  template <int kSums, int kA, int kB>
  static void multiply_signed_by_unsigned() {
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kA), "i"(kB));
  }
};

// Whether the system keeps the tiles of threads: bits 17 and 18 of XCR0 (Intel SDM, volume 1, "XSAVE-managed
// features").
bool enabled() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return false;  // OSXSAVE: XGETBV may be used
  asm volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
  return (a >> 17 & 3) == 3;
}

// Linux lends 8 kB of registers only to processes that ask (Documentation/arch/x86/xstate.rst).
bool permitted() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool supported() {
  unsigned a, b, c, d;
  if (!has_avx512_vnni() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  bool has_tiles = d >> 24 & 1, has_int8 = d >> 25 & 1;
  return has_tiles && has_int8 && enabled() && permitted();
}

}  // namespace

const InstructionSet& amx_instruction_set() {
  static const InstructionSet set{"amx",
                                  MatMulTable<Amx<Avx512Vnni, TileInstructions>>::kTable,
                                  Attention<Avx512Vnni>::kernels(),
                                  Rows<Avx512Vnni>::functions(),
                                  supported,
                                  repeat_tile_products<TileInstructions>};
  return set;
}

}  // namespace qtool
