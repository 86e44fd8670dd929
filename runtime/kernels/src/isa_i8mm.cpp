// NEON with Armv8.6's int8 matrix extension: USDOT, so that unsigned weights need no bias, and for many rows
// SMMLA and USMMLA, which multiply two rows by two columns.

#include "attention_kernels.h"
#include "isa.h"
#include "isa_neon.h"
#include "matmul_kernels.h"
#include "row_kernels.h"

namespace qtool {
namespace {

// Two columns' weights are one operand: eight k of each.
template <class Isa, int kBits, int kBlockSize>
struct MatrixTile {
  using Bytes = typename Isa::Bytes;
  using Ints = typename Isa::Ints;

  static constexpr int kRows = 4;

  // a has eight k of columns 0 to 7, b of columns 8 to 15.
  static void arrange(Bytes& a, Bytes& b) {
    Bytes pairs[2];
    for (int i = 0; i < 4; ++i) {
      uint32x4_t low = vreinterpretq_u32_u8(a.at[i]), high = vreinterpretq_u32_u8(b.at[i]);
      pairs[i / 2].at[i % 2 * 2] = vreinterpretq_u8_u32(vzip1q_u32(low, high));
      pairs[i / 2].at[i % 2 * 2 + 1] = vreinterpretq_u8_u32(vzip2q_u32(low, high));
    }
    a = pairs[0];
    b = pairs[1];
  }

  void multiply(const int8_t* values, int64_t stride, const uint8_t* weights, const int32_t*, int64_t,
                Ints (*products)[kHalves]) const {
    for (int h = 0; h < kHalves; ++h) {
      int32x4_t sums[kRows / 2][8];  // [rows m and m + 1][columns n and n + 1]: n, m; n, m + 1; n + 1, m; ...
      for (auto& of_rows : sums) {
        for (int32x4_t& sum : of_rows) sum = vdupq_n_s32(0);
      }
      for (int k = 0; k < kBlockSize; k += 8) {
        int8x16_t rows[kRows / 2];
        for (int m = 0; m < kRows; m += 2) {
          rows[m / 2] = vcombine_s8(vld1_s8(values + m * stride + k), vld1_s8(values + (m + 1) * stride + k));
        }
        for (int n = 0; n < 8; ++n) {
          uint8x16_t columns = vld1q_u8(weights + (k + n / 4 * 4) * kTileColumns + 64 * h + n % 4 * 16);
          for (int m = 0; m < kRows / 2; ++m) sums[m][n] = multiply_matrices(sums[m][n], columns, rows[m]);
        }
      }
      for (int m = 0; m < kRows / 2; ++m) {
        for (int n = 0; n < 8; n += 2) {
          products[2 * m][h].at[n / 2] = vuzp1q_s32(sums[m][n], sums[m][n + 1]);
          products[2 * m + 1][h].at[n / 2] = vuzp2q_s32(sums[m][n], sums[m][n + 1]);
        }
      }
    }
  }

 private:
  static int32x4_t multiply_matrices(int32x4_t sum, uint8x16_t columns, int8x16_t rows) {
    if constexpr (kBits == 8) return vusmmlaq_s32(sum, columns, rows);
    return vmmlaq_s32(sum, vreinterpretq_s8_u8(columns), rows);
  }
};

struct MixedDot {
  static constexpr bool kBiased = false;

  template <class Isa, int kBits, int kBlockSize>
  using Tile = MatrixTile<Isa, kBits, kBlockSize>;

  static int32x4_t dot(int32x4_t sum, uint8x16_t a, int8x16_t b) { return vusdotq_s32(sum, a, b); }
};

// What `repeat_dot_products` of peak.h is for vectors.
int64_t repeat_matrix_products(int64_t rounds) {
  int8x16_t operand = vdupq_n_s8(1);
  int32x4_t sums[16] = {};
  for (int64_t round = 0; round < rounds; ++round) {
    for (int32x4_t& sum : sums) {
      asm volatile("" : "+w"(operand));
      sum = vmmlaq_s32(sum, operand, operand);
    }
  }
  for (int32x4_t& sum : sums) asm volatile("" ::"w"(sum));
  return rounds * 16 * 2 * 2 * 8 * 2;
}

}  // namespace

const InstructionSet& i8mm_instruction_set() {
  static const InstructionSet set{"i8mm",
                                  MatMulTable<Neon<MixedDot>>::kTable,
                                  Attention<Neon<MixedDot>>::kernels(),
                                  Rows<Neon<MixedDot>>::functions(),
                                  has_i8mm,
                                  repeat_matrix_products};
  return set;
}

}  // namespace qtool
