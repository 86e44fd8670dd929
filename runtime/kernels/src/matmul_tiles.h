// `many_rows` of matmul.h: weights are unpacked once, and multiplied in tiles. Like matmul_kernels.h, everything is a
// template over an instruction set.
#pragma once

#include <cstring>

#include "dot_tile.h"
#include "matmul.h"
#include "unpack.h"

namespace qtool {

template <class Isa, int kBits, int kBlockSize, int kStoredBits>
class Tiles {
  using Ints = typename Isa::Ints;
  using Floats = typename Isa::Floats;
  using Tile = typename Isa::template Tile<kBits, kBlockSize>;

  static constexpr int64_t kStep = kTileDepth / (kGroup * kBlockSize);  // groups that are unpacked at a time
  static_assert(Tile::kRows <= kMostTileRows);

 public:
  static void many_rows(const Weights& w, const QuantizedRows& x, Range rows, Range columns, Output y,
                        TileBuffer& buffer) {
    Tile tile;
    for (int64_t group = 0; group < w.groups(); group += kStep) {
      Range groups{group, group + kStep < w.groups() ? group + kStep : w.groups()};
      const bool first = groups.begin == 0, last = groups.end == w.groups();
      Unpack<Isa, kBits, kBlockSize, kStoredBits>::unpack(w, groups, columns, buffer);
      for (int64_t row = rows.begin; row < rows.end; row += Tile::kRows) {
        // Sums that no later groups add to are written out at once: they stay in the nearest cache, and memory is
        // written beside the next rows' products.
        float* sums = buffer.sums + (first && last ? 0 : (row - rows.begin) * kGroup * kTileColumns);
        multiply_tile(tile, x, w.blocks, groups, row, buffer, sums);
        if (!last) continue;
        int64_t count = rows.end - row < Tile::kRows ? rows.end - row : Tile::kRows;
        store_rows(w, columns, sums, count, {y.data + (row - rows.begin) * y.stride, y.stride});
      }
    }
  }

 private:
  // Adds the products of some groups to the sums of Tile::kRows rows, (row, block % kGroup, column).
  static void multiply_tile(const Tile& tile, const QuantizedRows& x, int64_t blocks, Range groups, int64_t row,
                            const TileBuffer& buffer, float* sums_of_tile) {
    constexpr int kRows = Tile::kRows;
    const int64_t stride = x.groups * x.group_values, blocks_stride = x.groups * kGroup;
    for (int64_t phase = 0; phase < kGroup; ++phase) {
      float* stored = sums_of_tile + phase * kTileColumns;
      Floats sums[kRows][kHalves];
      for (int m = 0; m < kRows; ++m) {
        for (int h = 0; h < kHalves; ++h) {
          sums[m][h] = groups.begin == 0 ? Isa::zero_floats() : Isa::load(stored + m * kGroup * kTileColumns + 16 * h);
        }
      }
      for (int64_t group = groups.begin; group < groups.end && group * kGroup + phase < blocks; ++group) {
        int64_t at = group * kGroup + phase, local_at = ((group - groups.begin) * kGroup + phase) * kTileColumns;
        const int32_t* negative_sums = x.row_negative_sums(row) + at;
        const float* row_scales = x.row_scales(row) + at;
        Ints products[kRows][kHalves];
        tile.multiply(x.row_values(row) + at * kBlockSize, stride, buffer.weights + local_at * kBlockSize,
                      negative_sums, blocks_stride, products);
        for (int h = 0; h < kHalves; ++h) {
          Floats scales = Isa::load(buffer.scales + local_at + 16 * h);
          for (int m = 0; m < kRows; ++m) {
            if constexpr (kBits == 8) {
              Ints zero_points = Isa::load_ints(buffer.zero_points + local_at + 16 * h);
              Ints negative_sum = Isa::set(negative_sums[m * blocks_stride]);
              products[m][h] = Isa::multiply_add(products[m][h], zero_points, negative_sum);
            }
            Floats scale = Isa::multiply(scales, Isa::set(row_scales[m * blocks_stride]));
            sums[m][h] = Isa::add(sums[m][h], Isa::multiply(Isa::to_floats(products[m][h]), scale));
          }
        }
      }
      for (int m = 0; m < kRows; ++m) {
        for (int h = 0; h < kHalves; ++h) Isa::store(stored + m * kGroup * kTileColumns + 16 * h, sums[m][h]);
      }
    }
  }

  // Writes the first `count` rows of a tile whose sums are complete.
  static void store_rows(const Weights& w, Range columns, const float* sums, int64_t count, Output y) {
    for (int64_t m = 0; m < count; ++m, sums += kGroup * kTileColumns) {
      alignas(64) float result[kTileColumns];
      for (int h = 0; h < kHalves; ++h) {
        Floats of[kGroup];
        for (int phase = 0; phase < kGroup; ++phase) of[phase] = Isa::load(sums + phase * kTileColumns + 16 * h);
        Isa::store(result + 16 * h, Isa::add(Isa::add(of[0], of[1]), Isa::add(of[2], of[3])));
      }
      float* out = y.data + m * y.stride;
      if (w.bias) {
        for (int64_t n = 0; n < columns.size(); ++n) out[n] = result[n] + w.bias[columns.begin + n];
      } else if (columns.size() == kTileColumns) {
        std::memcpy(out, result, sizeof(result));  // of a size that is known: a few instructions
      } else {
        std::memcpy(out, result, columns.size() * sizeof(float));
      }
    }
  }
};

}  // namespace qtool
