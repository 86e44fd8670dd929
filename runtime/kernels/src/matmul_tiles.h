// `many_rows` of matmul.h: weights are unpacked once, and multiplied in tiles. Like matmul_kernels.h, everything is a
// template over an instruction set.
//
// Weights of fewer than eight bits lose their zero points when they are unpacked, and are signed then. Where an
// instruction set only multiplies unsigned by signed bytes, values are stored 128 too large, and sums start at
// what makes up for that: minus 128 times the sum of the weights. Weights of eight bits stay unsigned, and their
// zero points meet the sums.
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
  static constexpr bool kUnsignedValues = kBits < 8 && Isa::kUnsignedValues;

  static void many_rows(const Weights& w, const QuantizedRows& x, Range rows, Range columns, Output y,
                        TileBuffer& buffer) {
    Tile tile;
    std::memset(buffer.sums, 0, sizeof(float) * (rows.size() + Tile::kRows - 1) * kGroup * kTileColumns);
    if constexpr (!kUnsignedValues) std::memset(buffer.starts, 0, sizeof(buffer.starts));
    for (int64_t group = 0; group < w.groups(); group += kStep) {
      Range groups{group, group + kStep < w.groups() ? group + kStep : w.groups()};
      for (int64_t half = 0; half < kHalves; ++half) unpack(w, groups, columns, half, buffer);
      for (int64_t row = rows.begin; row < rows.end; row += Tile::kRows) {
        multiply_tile(tile, x, w.blocks, groups, row, row - rows.begin, buffer);
      }
    }
    store_tile(w, rows, columns, buffer, y);
  }

  // The zero points of a group of blocks of one column, first block in the lowest bits.
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

 private:
  // Unpacks 16 columns of W, each vector four values of each of them, and their scales and zero points.
  static void unpack(const Weights& w, Range groups, Range columns, int64_t half, TileBuffer& buffer) {
    int64_t present = columns.end - columns.begin - 16 * half;
    if (present <= 0) return;
    int64_t of[16];  // columns that are not there repeat the last one
    for (int64_t i = 0; i < 16; ++i) of[i] = columns.begin + 16 * half + (i < present ? i : present - 1);
    for (int64_t group = groups.begin; group < groups.end; ++group) {
      int64_t at = (group - groups.begin) * kGroup;
      alignas(64) uint32_t less[kGroup][16];
      unpack_scales(w, of, group, at * kTileColumns + 16 * half, buffer, less);
      unpack_weights(w, of, group, less, buffer.weights + at * kBlockSize * kTileColumns + 64 * half,
                     buffer.starts + at * kTileColumns + 16 * half);
    }
  }

  // less[j][i]: what weights of block j of column i are made less by, four times.
  static void unpack_scales(const Weights& w, const int64_t* of, int64_t group, int64_t at, TileBuffer& buffer,
                            uint32_t (*less)[16]) {
    int64_t blocks = blocks_of(w, group);
    for (int64_t i = 0; i < 16; ++i) {
      uint32_t packed = 0;
      if (w.zero_points) {
        packed = four_zero_points(w.zero_points + of[i] * w.zero_point_bytes(), group, blocks);
      }
      for (int64_t j = 0; j < kGroup; ++j, packed >>= kStoredBits) {
        int zero_point = w.zero_points ? int(packed & ((1u << kStoredBits) - 1)) : 1 << (kStoredBits - 1);
        buffer.zero_points[at + j * kTileColumns + i] = Isa::template stored_zero_point<kBits>(zero_point);
        buffer.scales[at + j * kTileColumns + i] = j < blocks ? w.scales[of[i] * w.blocks + group * kGroup + j] : 0.0f;
        less[j][i] = kBits == 8 ? 0 : zero_point * 0x01010101u;
      }
    }
  }

  static void unpack_weights(const Weights& w, const int64_t* of, int64_t group, const uint32_t (*less)[16],
                             uint8_t* to, int32_t* starts) {
    constexpr int64_t kVectors = kGroupBytes / 64;
    int64_t blocks = blocks_of(w, group);
    Ints totals[kGroup];
    for (Ints& total : totals) total = Isa::zero_ints();
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
                        to + (block * kBlockSize + byte % kBlockBytes) * kTileColumns, totals[block]);
      }
    }
    if constexpr (!kUnsignedValues) return;
    for (int64_t j = 0; j < kGroup; ++j) {
      alignas(64) int32_t sums[16];
      Isa::store_ints(sums, totals[j]);
      for (int64_t i = 0; i < 16; ++i) starts[j * kTileColumns + i] = -sums[i];
    }
  }

  template <int kField>
  static void store_fields(Bytes packed_a, Bytes packed_b, Bytes less, uint8_t* to, Ints& total) {
    Bytes a = Isa::template field<kBits, kField>(packed_a), b = Isa::template field<kBits, kField>(packed_b);
    if constexpr (kBits < 8) {
      a = Isa::subtract(a, less);
      b = Isa::subtract(b, less);
    }
    if constexpr (kUnsignedValues) {
      const uint32_t too_large = 0x80808080;
      total = Isa::template dot<kBits>(total, Isa::repeat_word(&too_large), a);
      total = Isa::template dot<kBits>(total, Isa::repeat_word(&too_large), b);
    }
    Tile::arrange(a, b);
    Isa::store_bytes(to + kField * kBlockBytes * kTileColumns, a);
    Isa::store_bytes(to + (kField * kBlockBytes + 4) * kTileColumns, b);
    if constexpr (kField + 1 < kFields) store_fields<kField + 1>(packed_a, packed_b, less, to, total);
  }

  static void multiply_tile(const Tile& tile, const QuantizedRows& x, int64_t blocks, Range groups, int64_t row,
                            int64_t local_row, TileBuffer& buffer) {
    constexpr int kRows = Tile::kRows;
    const int64_t stride = x.groups * x.group_values;
    for (int64_t phase = 0; phase < kGroup; ++phase) {
      Floats sums[kRows][kHalves];
      for (int m = 0; m < kRows; ++m) {
        for (int h = 0; h < kHalves; ++h) sums[m][h] = Isa::load(tile_sums(buffer, local_row + m, phase, h));
      }
      for (int64_t group = groups.begin; group < groups.end && group * kGroup + phase < blocks; ++group) {
        int64_t at = group * kGroup + phase, local_at = ((group - groups.begin) * kGroup + phase) * kTileColumns;
        Ints products[kRows][kHalves];
        tile.multiply(x.row_values(row) + at * kBlockSize, stride, buffer.weights + local_at * kBlockSize,
                      buffer.starts + local_at, products);
        for (int h = 0; h < kHalves; ++h) {
          Floats scales = Isa::load(buffer.scales + local_at + 16 * h);
          for (int m = 0; m < kRows; ++m) {
            if constexpr (kBits == 8) {
              Ints zero_points = Isa::load_ints(buffer.zero_points + local_at + 16 * h);
              Ints negative_sum = Isa::set(x.row_negative_sums(row + m)[at]);
              products[m][h] = Isa::multiply_add(products[m][h], zero_points, negative_sum);
            }
            Floats scale = Isa::multiply(scales, Isa::set(x.row_scales(row + m)[at]));
            sums[m][h] = Isa::add(sums[m][h], Isa::multiply(Isa::to_floats(products[m][h]), scale));
          }
        }
      }
      for (int m = 0; m < kRows; ++m) {
        for (int h = 0; h < kHalves; ++h) Isa::store(tile_sums(buffer, local_row + m, phase, h), sums[m][h]);
      }
    }
  }

  static void store_tile(const Weights& w, Range rows, Range columns, TileBuffer& buffer, Output y) {
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const float* sums = tile_sums(buffer, row - rows.begin, 0, 0);
      float* out = y.data + row * y.stride;
      for (int64_t n = columns.begin; n < columns.end; ++n, ++sums) {
        float sum = (sums[0] + sums[kTileColumns]) + (sums[2 * kTileColumns] + sums[3 * kTileColumns]);
        out[n] = w.bias ? sum + w.bias[n] : sum;
      }
    }
  }

  static float* tile_sums(TileBuffer& buffer, int64_t row, int64_t phase, int64_t half) {
    return buffer.sums + (row * kGroup + phase) * kTileColumns + 16 * half;
  }

  static int64_t blocks_of(const Weights& w, int64_t group) {
    return w.blocks - group * kGroup < kGroup ? w.blocks - group * kGroup : kGroup;
  }
};

}  // namespace qtool
