// How `many_rows` multiplies a block of some rows by that of kTileColumns columns, with an instruction set's dot
// products of four bytes. An instruction set that has products of matrices brings a class of its own instead.
#pragma once

#include "matmul.h"

namespace qtool {

constexpr int kHalves = kTileColumns / 16;  // of a tile: vectors for a row's products

// How much too large `many_rows` stores unpacked weights, where they have to be unsigned. Products make up for it by
// what they start with: minus so many times the sum of the values.
template <class Isa, int kBits>
constexpr int kAbove = kBits < 8 && Isa::kUnsignedWeights ? (1 << kBits) - 1 : 0;

template <class Isa, int kBits, int kBlockSize>
struct DotTile {
  using Bytes = typename Isa::Bytes;
  using Ints = typename Isa::Ints;

  static constexpr int kRows = Isa::kTileRows;

  // Puts in order what is unpacked: k, ..., k + 3 (`a`) and k + 4, ..., k + 7 (`b`) of each of 16 columns.
  static void arrange(Bytes&, Bytes&) {}

  // products[m][h] = the sums of values[m * stride + k] * weights[k] over the block's k, and, if weights are too large,
  // starts[m * starts_stride].
  //
  // Four k of each column lie together, and then the next four.
  void multiply(const int8_t* values, int64_t stride, const uint8_t* weights, const int32_t* starts,
                int64_t starts_stride, Ints (*products)[kHalves]) const {
    Ints sums[kRows][kHalves];  // of this function's own: compilers keep them in registers
    for (int m = 0; m < kRows; ++m) {
      for (int h = 0; h < kHalves; ++h) {
        sums[m][h] = kAbove<Isa, kBits> != 0 ? Isa::set(starts[m * starts_stride]) : Isa::zero_ints();
      }
    }
    // Four steps at a time: in a loop of one, GCC 12 copies the sums, and stores some of them.
    for (int k = 0; k < kBlockSize; k += 16) {
      multiply_word(values + k, stride, weights + k * kTileColumns, sums);
      multiply_word(values + k + 4, stride, weights + (k + 4) * kTileColumns, sums);
      multiply_word(values + k + 8, stride, weights + (k + 8) * kTileColumns, sums);
      multiply_word(values + k + 12, stride, weights + (k + 12) * kTileColumns, sums);
    }
    for (int m = 0; m < kRows; ++m) {
      for (int h = 0; h < kHalves; ++h) products[m][h] = sums[m][h];
    }
  }

 private:
  // Adds the products of four k.
  static void multiply_word(const int8_t* values, int64_t stride, const uint8_t* weights, Ints (*sums)[kHalves]) {
    Bytes columns[kHalves];
    for (int h = 0; h < kHalves; ++h) columns[h] = Isa::load_bytes(weights + 64 * h);
    for (int m = 0; m < kRows; ++m) {
      Bytes four = Isa::repeat_word(values + m * stride);
      for (int h = 0; h < kHalves; ++h) sums[m][h] = Isa::template dot<kBits>(sums[m][h], columns[h], four);
    }
  }
};

}  // namespace qtool
