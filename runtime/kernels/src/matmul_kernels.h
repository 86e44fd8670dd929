// The kernels of matmul.h, written once for all instruction sets.
//
// An instruction set is a class with vectors of 64 bytes (in one register, or in several) that are seen as
// four lanes of 16 bytes; isa_portable.h says what each of its functions does. This file must only be
// included where one instruction set is compiled: everything in it is a template over that class.
#pragma once

#include <cstring>
#include <limits>

#include "matmul.h"
#include "matmul_tiles.h"
#include "packed_weights.h"

namespace qtool {

// Weights of kStoredBits bits in memory have kBits bits in vectors.
template <class Isa, int kBits, int kBlockSize, int kStoredBits = kBits>
class MatMul {
  using Bytes = typename Isa::Bytes;
  using Ints = typename Isa::Ints;
  using Floats = typename Isa::Floats;
  using Packed = PackedWeights<Isa, kBits, kStoredBits>;
  using ManyRows = Tiles<Isa, kBits, kBlockSize, kStoredBits>;

  static constexpr int kFields = 8 / kBits;  // weights in a byte
  static constexpr int64_t kBlockBytes = kBlockSize / kFields;
  static constexpr int64_t kStoredBlockBytes = kBlockSize * kStoredBits / 8;
  static constexpr int64_t kStoredGroupBytes = kGroup * kStoredBlockBytes;
  static constexpr int64_t kGroupBytes = kGroup * kBlockBytes;
  static constexpr int64_t kGroupValues = kGroup * kBlockSize;
  static constexpr int64_t kVectors = kGroupBytes / 64;             // of a group of one column
  static constexpr int64_t kVectorsPerSum = kVectors == 8 ? 2 : 1;  // whose lanes are the same blocks'
  static_assert(kVectors >= 1);

 public:
  static constexpr MatMulKernels kernels() { return {quantize_row, few_rows, ManyRows::many_rows}; }

  static void quantize_row(const float* x, int64_t depth, const QuantizedRows& out, int64_t row) {
    int8_t* values = out.row_values(row);
    float* scales = out.row_scales(row);
    int32_t* negative_sums = out.row_negative_sums(row);
    int64_t stride = out.for_many ? kBlockBytes : kGroupBytes;  // from field to field
    for (int64_t block = 0; block < out.groups * kGroup; ++block) {
      int64_t begin = block * kBlockSize;
      int8_t* first = values + (out.for_many ? begin : block / kGroup * kGroupValues + block % kGroup * kBlockBytes);
      if (depth - begin >= kBlockSize) {
        quantize_block(x + begin, first, stride, scales + block, negative_sums + block);
      } else {
        alignas(64) float padded[kBlockSize] = {};
        for (int64_t k = begin; k < depth; ++k) padded[k - begin] = x[k];
        quantize_block(padded, first, stride, scales + block, negative_sums + block);
      }
    }
    if (out.for_many && kAbove<Isa, kBits> != 0) {
      for (int64_t block = 0; block < out.groups * kGroup; ++block) negative_sums[block] *= kAbove<Isa, kBits>;
    }
  }

  static void few_rows(const Weights& w, const QuantizedRows& x, Range columns, Output y) {
    int64_t ahead = (Isa::kPrefetch + 4 * w.column_bytes() - 1) / (4 * w.column_bytes()) * 4 * w.column_bytes();
    for (int64_t column = columns.begin; column < columns.end; column += 4) {
      int64_t count = columns.end - column < 4 ? columns.end - column : 4;
      FourColumns four(w, column, count, ahead);
      Output of_four{y.data + (column - columns.begin), y.stride};
      int64_t row = 0;
      if constexpr (Isa::kRows == 4) {
        // A token and four drafts are faster together than as 4 and 1, though not all registers suffice.
        for (; x.rows - row == 5; row += 5) four.template multiply<5>(x, row, of_four);
      }
      for (; row + Isa::kRows <= x.rows; row += Isa::kRows) four.template multiply<Isa::kRows>(x, row, of_four);
      if constexpr (Isa::kRows > 2) {
        for (; row + 2 <= x.rows; row += 2) four.template multiply<2>(x, row, of_four);
      }
      for (; row < x.rows; ++row) four.template multiply<1>(x, row, of_four);
    }
  }

 private:
  // Below this magnitude numbers count as zero: the reciprocal of a smaller scale would overflow.
  static constexpr float kSmallest = 0x1p-100f;

  static void quantize_block(const float* x, int8_t* first, int64_t stride, float* scale, int32_t* negative_sum) {
    float largest = Isa::template largest_magnitude<kBlockSize>(x);
    if (!(largest >= kSmallest && largest <= 0x1.fffffep127f)) {
      *scale = largest < kSmallest ? 0.0f : std::numeric_limits<float>::quiet_NaN();
      *negative_sum = 0;
      for (int field = 0; field < kFields; ++field) std::memset(first + field * stride, 0, kBlockBytes);
      return;
    }
    *scale = largest / 127.0f;
    *negative_sum = -Isa::template quantize<kBlockSize, kFields>(x, 127.0f / largest, first, stride);
  }

  // Four neighbouring columns of W; the last ones may stand for others that are not there.
  class FourColumns {
   public:
    FourColumns(const Weights& w, int64_t column, int64_t count, int64_t ahead)
        : w_(w), column_(column), count_(count), ahead_(ahead), scales_ahead_(ahead / kStoredBlockBytes) {
      for (int64_t i = 0; i < 4; ++i) {
        int64_t n = column + (i < count ? i : count - 1);
        values_[i] = w.values + n * w.column_bytes();
        scales_[i] = w.scales + n * w.blocks;
        zero_points_[i] = w.zero_points ? w.zero_points + n * w.zero_point_bytes() : nullptr;
      }
    }

    template <int kRows>
    void multiply(const QuantizedRows& x, int64_t row, Output y) const {
      const int8_t* values[kRows];
      for (int m = 0; m < kRows; ++m) values[m] = x.row_values(row + m);
      Floats sums[kRows];
      for (int m = 0; m < kRows; ++m) sums[m] = Isa::zero_floats();
      int64_t whole = w_.blocks / kGroup;
      for (int64_t group = 0; group < whole; ++group) {
        add_group<kRows, false>(x, row, group, values, sums);
      }
      if (whole < w_.groups()) add_group<kRows, true>(x, row, whole, values, sums);
      for (int m = 0; m < kRows; ++m) {
        alignas(64) float result[4];
        Isa::sum_lanes(sums[m], result);
        float* out = y.data + (row + m) * y.stride;
        for (int64_t i = 0; i < count_; ++i) out[i] = w_.bias ? result[i] + w_.bias[column_ + i] : result[i];
      }
    }

   private:
    template <int kRows, bool kLast>
    void add_group(const QuantizedRows& x, int64_t row, int64_t group, const int8_t* const* values,
                   Floats* sums) const {
      int64_t blocks = kLast ? w_.blocks - group * kGroup : kGroup;
      Ints products[kRows][kVectors / kVectorsPerSum];
      multiply_group<kRows, kLast>(group, blocks, values, products);
      Ints zero_points = group_zero_points<kLast>(group, blocks);
      // Four groups of scales share 64 bytes: one column's are fetched at a time.
      Isa::prefetch(scales_[group % 4] + group * kGroup + scales_ahead_);
      Floats scales = Isa::transpose_scales(scales_[0] + group * kGroup, scales_[1] + group * kGroup,
                                            scales_[2] + group * kGroup, scales_[3] + group * kGroup, blocks);
      for (int m = 0; m < kRows; ++m) {
        Ints total = lanes_to_blocks(products[m]);
        int64_t at = group * kGroup;
        total = Isa::multiply_add(total, zero_points, Isa::spread(x.row_negative_sums(row + m) + at));
        Floats scale = Isa::multiply(scales, Isa::spread(x.row_scales(row + m) + at));
        sums[m] = Isa::add(sums[m], Isa::multiply(Isa::to_floats(total), scale));
      }
    }

    // products[m][v]: lane by lane, the sums over bytes of each of the four columns.
    template <int kRows, bool kLast>
    void multiply_group(int64_t group, int64_t blocks, const int8_t* const* values,
                        Ints (*products)[kVectors / kVectorsPerSum]) const {
      for (int64_t v = 0; v < kVectors; v += kVectorsPerSum) {
        if (kLast && v * 64 >= blocks * kBlockBytes) {
          for (int m = 0; m < kRows; ++m) products[m][v / kVectorsPerSum] = Isa::zero_ints();
          continue;
        }
        Ints sums[kRows][4];
        for (int m = 0; m < kRows; ++m) {
          for (int i = 0; i < 4; ++i) sums[m][i] = Isa::zero_ints();
        }
        for (int64_t u = v; u < v + kVectorsPerSum; ++u) {
          Bytes x[kRows][kFields];
          for (int m = 0; m < kRows; ++m) {
            for (int f = 0; f < kFields; ++f) {
              x[m][f] = Isa::load_bytes(values[m] + group * kGroupValues + f * kGroupBytes + u * 64);
            }
          }
          for (int i = 0; i < 4; ++i) {
            const uint8_t* from = values_[i] + group * kStoredGroupBytes + u * Packed::kStoredBytes;
            int64_t present = blocks * kStoredBlockBytes - u * Packed::kStoredBytes;
            Bytes packed = kLast ? Packed::load(from, present) : Packed::load(from);
            Isa::prefetch(from + ahead_);
            accumulate<kRows, 0>(packed, i, x, sums);
          }
        }
        for (int m = 0; m < kRows; ++m) {
          products[m][v / kVectorsPerSum] =
              kBits == 8 ? Isa::sum_in_lanes(sums[m][0], sums[m][1], sums[m][2], sums[m][3])
                         : Isa::sum_small_in_lanes(sums[m][0], sums[m][1], sums[m][2], sums[m][3]);
        }
      }
    }

    template <int kRows, int kField>
    static void accumulate(Bytes packed, int i, const Bytes (*x)[kFields], Ints (*sums)[4]) {
      Bytes weights = Isa::template field<kBits, kField>(packed);
      for (int m = 0; m < kRows; ++m) {
        sums[m][i] = Isa::template dot<kBits>(sums[m][i], weights, x[m][kField]);
      }
      if constexpr (kField + 1 < kFields) accumulate<kRows, kField + 1>(packed, i, x, sums);
    }

    // Makes one lane of each block, whichever lanes its bytes were in.
    static Ints lanes_to_blocks(const Ints* products) {
      if constexpr (kBlockBytes == 16) {
        return products[0];
      } else if constexpr (kBlockBytes == 32) {
        return Isa::sum_lane_pairs(products[0], products[1]);
      } else {
        return Isa::sum_lanes_of_each(products[0], products[1], products[2], products[3]);
      }
    }

    template <bool kLast>
    Ints group_zero_points(int64_t group, int64_t blocks) const {
      if (w_.zero_points == nullptr) {
        return Isa::set(Isa::template stored_zero_point<kBits>(1 << (kStoredBits - 1)));
      }
      uint32_t packed[4];
      for (int i = 0; i < 4; ++i) {
        packed[i] = four_zero_points(zero_points_[i] + group * kGroup * kStoredBits / 8, kLast ? blocks : kGroup);
      }
      return Isa::template unpack_zero_points<kStoredBits>(packed);
    }

    // A group's of one column, first block in the lowest bits.
    static uint32_t four_zero_points(const uint8_t* from, int64_t blocks) {
      uint32_t packed = 0;
      if (blocks == kGroup) {
        std::memcpy(&packed, from, kGroup * kStoredBits / 8);
      } else {
        for (int64_t i = 0; i < (blocks * kStoredBits + 7) / 8; ++i) packed |= uint32_t{from[i]} << (8 * i);
      }
      return packed;
    }

    const Weights& w_;
    int64_t column_;
    int64_t count_;
    int64_t ahead_;         // bytes of values to fetch ahead: the same place of later columns
    int64_t scales_ahead_;  // and scales
    const uint8_t* values_[4];
    const float* scales_[4];
    const uint8_t* zero_points_[4];
  };
};

// The kernels of an instruction set, in the order of kWeightFormats.
template <class Isa>
struct MatMulTable {
  static constexpr MatMulKernels kTable[kWeightFormatCount] = {
      MatMul<Isa, 4, 32, 2>::kernels(), MatMul<Isa, 2, 64>::kernels(), MatMul<Isa, 2, 128>::kernels(),
      MatMul<Isa, 4, 32>::kernels(),    MatMul<Isa, 4, 64>::kernels(), MatMul<Isa, 4, 128>::kernels(),
      MatMul<Isa, 8, 32>::kernels(),    MatMul<Isa, 8, 64>::kernels(), MatMul<Isa, 8, 128>::kernels()};
};

}  // namespace qtool
