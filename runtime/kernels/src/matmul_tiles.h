// `many_rows` of matmul.h: weights are unpacked once, and multiplied in tiles. Like matmul_kernels.h, everything is a
// template over an instruction set.
//
// Weights of fewer than eight bits lose their zero points when they are unpacked. Weights of eight bits stay as they
// are, and their zero points meet the products.
#pragma once

#include <cstring>

#include "dot_tile.h"
#include "matmul.h"
#include "packed_weights.h"

namespace qtool {

template <class Isa, int kBits, int kBlockSize, int kStoredBits>
class Tiles {
  using Bytes = typename Isa::Bytes;
  using Ints = typename Isa::Ints;
  using Floats = typename Isa::Floats;
  using Packed = PackedWeights<Isa, kBits, kStoredBits>;
  using Tile = typename Isa::template Tile<kBits, kBlockSize>;

  static constexpr int kFields = 8 / kBits;  // weights in a byte
  static constexpr int64_t kBlockBytes = kBlockSize / kFields;
  static constexpr int64_t kStoredBlockBytes = kBlockSize * kStoredBits / 8;
  static constexpr int64_t kStoredGroupBytes = kGroup * kStoredBlockBytes;
  static constexpr int64_t kGroupBytes = kGroup * kBlockBytes;
  static constexpr int64_t kStep = kTileDepth / (kGroup * kBlockSize);  // groups that are unpacked at a time
  static_assert(Tile::kRows <= kMostTileRows);

 public:
  static void many_rows(const Weights& w, const QuantizedRows& x, Range rows, Range columns, Output y,
                        TileBuffer& buffer) {
    Tile tile;
    for (int64_t group = 0; group < w.groups(); group += kStep) {
      Range groups{group, group + kStep < w.groups() ? group + kStep : w.groups()};
      const bool first = groups.begin == 0, last = groups.end == w.groups();
      for (int64_t half = 0; half < kHalves; ++half) unpack(w, groups, columns, half, buffer);
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

  // The zero points of a group of blocks of four columns, and what stands for them where there are none.
  static Ints zero_points(const uint8_t* const* of_columns, int64_t group, int64_t blocks) {
    uint32_t packed[4];
    for (int i = 0; i < 4; ++i) packed[i] = four_zero_points(of_columns[i], group, blocks);
    return Isa::template unpack_zero_points<kStoredBits>(packed);
  }
  static Ints middle() { return Isa::set(Isa::template stored_zero_point<kBits>(1 << (kStoredBits - 1))); }

 private:
  // The zero points of one column, first block in the lowest bits.
  static uint32_t four_zero_points(const uint8_t* of_column, int64_t group, int64_t blocks) {
    const uint8_t* from = of_column + group * kGroup * kStoredBits / 8;
    uint32_t packed = 0;
    if (blocks == kGroup) {
      std::memcpy(&packed, from, kGroup * kStoredBits / 8);
    } else {
      for (int64_t i = 0; i < (blocks * kStoredBits + 7) / 8; ++i) packed |= uint32_t{from[i]} << (8 * i);
    }
    return packed;
  }

  // Unpacks 16 columns of W, each vector four values of each of them, and their scales and zero points.
  static void unpack(const Weights& w, Range groups, Range columns, int64_t half, TileBuffer& buffer) {
    int64_t present = columns.size() - 16 * half;
    if (present <= 0) return;
    int64_t of[16];  // columns that are not there repeat the last one
    for (int64_t i = 0; i < 16; ++i) of[i] = columns.begin + 16 * half + (i < present ? i : present - 1);
    for (int64_t group = groups.begin; group < groups.end; ++group) {
      int64_t at = (group - groups.begin) * kGroup * kTileColumns + 16 * half;
      alignas(64) uint32_t less[kGroup][16];
      for (int64_t i = 0; i < 16; i += 4) unpack_scales(w, of + i, group, at + i, buffer, less[0] + i);
      unpack_weights(w, of, group, less, buffer.weights + (at - 16 * half) * kBlockSize + 64 * half);
    }
  }

  // Of four columns. less[16 * j + i]: four times what weights of block j of column i are made less by.
  static void unpack_scales(const Weights& w, const int64_t* of, int64_t group, int64_t at, TileBuffer& buffer,
                            uint32_t* less) {
    const int64_t blocks = blocks_of(w, group);
    const float* scales[4];
    const uint8_t* zero_points_of[4];
    for (int i = 0; i < 4; ++i) {
      scales[i] = w.scales + of[i] * w.blocks + group * kGroup;
      zero_points_of[i] = w.zero_points ? w.zero_points + of[i] * w.zero_point_bytes() : nullptr;
    }
    alignas(64) float four_scales[kGroup][4];
    alignas(64) int32_t four_points[kGroup][4];
    Isa::store(four_scales[0], Isa::transpose_scales(scales[0], scales[1], scales[2], scales[3], blocks));
    Isa::store_ints(four_points[0], w.zero_points ? zero_points(zero_points_of, group, blocks) : middle());
    for (int64_t j = 0; j < kGroup; ++j) {
      std::memcpy(buffer.scales + at + j * kTileColumns, four_scales[j], sizeof(four_scales[j]));
      std::memcpy(buffer.zero_points + at + j * kTileColumns, four_points[j], sizeof(four_points[j]));
      for (int i = 0; i < 4; ++i) {
        less[16 * j + i] = static_cast<uint8_t>(four_points[j][i] - kAbove<Isa, kBits>) * 0x01010101u;
      }
    }
  }

  static void unpack_weights(const Weights& w, const int64_t* of, int64_t group, const uint32_t (*less)[16],
                             uint8_t* to) {
    constexpr int64_t kVectors = kGroupBytes / 64;
    int64_t blocks = blocks_of(w, group);
    for (int64_t v = 0; v < kVectors; ++v) {
      Bytes vectors[16];
      for (int64_t i = 0; i < 16; ++i) {
        const uint8_t* from =
            w.values + of[i] * w.column_bytes() + group * kStoredGroupBytes + v * Packed::kStoredBytes;
        int64_t present = blocks * kStoredBlockBytes - v * Packed::kStoredBytes;
        vectors[i] = blocks == kGroup ? Packed::load(from) : Packed::load(from, present);
      }
      Isa::transpose_words(vectors);
      for (int64_t i = 0; i < 16; i += 2) {
        int64_t byte = v * 64 + 4 * i, block = byte / kBlockBytes;
        store_fields<0>(vectors[i], vectors[i + 1], Isa::load_bytes(less[block]),
                        to + (block * kBlockSize + byte % kBlockBytes) * kTileColumns);
      }
    }
  }

  template <int kField>
  static void store_fields(Bytes packed_a, Bytes packed_b, Bytes less, uint8_t* to) {
    Bytes a = Isa::template field<kBits, kField>(packed_a), b = Isa::template field<kBits, kField>(packed_b);
    if constexpr (kBits < 8) {
      a = Isa::subtract(a, less);
      b = Isa::subtract(b, less);
    }
    Tile::arrange(a, b);
    Isa::store_bytes(to + kField * kBlockBytes * kTileColumns, a);
    Isa::store_bytes(to + (kField * kBlockBytes + 4) * kTileColumns, b);
    if constexpr (kField + 1 < kFields) store_fields<kField + 1>(packed_a, packed_b, less, to);
  }

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

  static int64_t blocks_of(const Weights& w, int64_t group) {
    return w.blocks - group * kGroup < kGroup ? w.blocks - group * kGroup : kGroup;
  }
};

}  // namespace qtool
