// What `many_rows` of matmul.h multiplies by: weights, unpacked and in the order of tiles. Like matmul_kernels.h, a
// template over an instruction set.
//
// Weights of fewer than eight bits lose their zero points here. Weights of eight bits stay as they are, and their zero
// points meet the products.
#pragma once

#include <cstring>

#include "dot_tile.h"
#include "matmul.h"
#include "packed_weights.h"

namespace qtool {

template <class Isa, int kBits, int kBlockSize, int kStoredBits>
class Unpack {
  using Bytes = typename Isa::Bytes;
  using Packed = PackedWeights<Isa, kBits, kStoredBits>;
  using Tile = typename Isa::template Tile<kBits, kBlockSize>;

  static constexpr int kFields = 8 / kBits;  // weights in a byte
  static constexpr int64_t kBlockBytes = kBlockSize / kFields;
  static constexpr int64_t kStoredBlockBytes = kBlockSize * kStoredBits / 8;
  static constexpr int64_t kStoredGroupBytes = kGroup * kStoredBlockBytes;
  static constexpr int64_t kVectors = kGroup * kBlockBytes / 64;  // of a group of one column
  static constexpr int64_t kMostBlocks = kTileDepth / kBlockSize;

 public:
  // Columns that are not there repeat the last one.
  static void unpack(const Weights& w, Range groups, Range columns, TileBuffer& buffer) {
    Range blocks{groups.begin * kGroup, groups.end * kGroup < w.blocks ? groups.end * kGroup : w.blocks};
    for (int64_t first = 0; first < columns.size(); first += 16) {
      int64_t of[16];
      for (int64_t i = 0; i < 16; ++i) {
        of[i] = columns.begin + (first + i < columns.size() ? first + i : columns.size() - 1);
      }
      alignas(64) uint32_t less[kMostBlocks][16] = {};
      unpack_scales(w, of, blocks, buffer.scales + first);
      unpack_zero_points(w, of, blocks, buffer.zero_points + first, less);
      for (int64_t group = groups.begin; group < groups.end; ++group) {
        int64_t at = (group - groups.begin) * kGroup;
        unpack_weights(w, of, group, less + at, buffer.weights + at * kBlockSize * kTileColumns + 4 * first);
      }
    }
  }

 private:
  // A row of kTileColumns for each block.
  static void unpack_scales(const Weights& w, const int64_t* of, Range blocks, float* to) {
    for (int64_t block = blocks.begin; block < blocks.end; block += 16) {
      int64_t count = blocks.end - block < 16 ? blocks.end - block : 16;
      Bytes vectors[16];
      for (int64_t i = 0; i < 16; ++i) {
        const float* from = w.scales + of[i] * w.blocks + block;
        vectors[i] = count == 16 ? Isa::load_bytes(from) : Isa::load_bytes(from, count * sizeof(float));
      }
      Isa::transpose_words(vectors);
      for (int64_t j = 0; j < count; ++j) {
        Isa::store_bytes(to + (block - blocks.begin + j) * kTileColumns, vectors[j]);
      }
    }
  }

  // Where weights keep them, likewise. Otherwise less[j][i] is what weights of block j of column i are made less by,
  // four times.
  static void unpack_zero_points(const Weights& w, const int64_t* of, Range blocks, int32_t* to, uint32_t (*less)[16]) {
    constexpr int kInWord = 32 / kStoredBits;
    constexpr uint32_t kMask = (1u << kStoredBits) - 1, kMiddle = 1u << (kStoredBits - 1);
    for (int64_t block = blocks.begin; block < blocks.end; block += kInWord) {
      uint32_t words[16];
      for (int i = 0; i < 16; ++i) {
        words[i] = w.zero_points ? zero_points_of(w, of[i], block * kStoredBits / 8) : kMiddle * (~0u / kMask);
      }
      int64_t count = blocks.end - block < kInWord ? blocks.end - block : kInWord;
      for (int64_t j = 0; j < count; ++j) {
        int64_t at = block - blocks.begin + j;
        for (int i = 0; i < 16; ++i) {
          int32_t zero_point = static_cast<int32_t>(words[i] >> (j * kStoredBits) & kMask);
          if constexpr (kBits == 8) {
            to[at * kTileColumns + i] = Isa::template stored_zero_point<kBits>(zero_point);
          } else {
            less[at][i] = static_cast<uint8_t>(zero_point - kAbove<Isa, kBits>) * 0x01010101u;
          }
        }
      }
    }
  }

  // Four bytes of a column's zero points, as far as there are so many.
  static uint32_t zero_points_of(const Weights& w, int64_t column, int64_t at) {
    const uint8_t* from = w.zero_points + column * w.zero_point_bytes() + at;
    uint32_t word = 0;
    if (w.zero_point_bytes() - at >= 4) {
      std::memcpy(&word, from, 4);
    } else {
      for (int64_t i = 0; i < w.zero_point_bytes() - at; ++i) word |= uint32_t{from[i]} << (8 * i);
    }
    return word;
  }

  // Each vector holds four weights of each of 16 columns.
  static void unpack_weights(const Weights& w, const int64_t* of, int64_t group, const uint32_t (*less)[16],
                             uint8_t* to) {
    int64_t blocks = w.blocks - group * kGroup;
    for (int64_t v = 0; v < kVectors; ++v) {
      int64_t present = blocks * kStoredBlockBytes - v * Packed::kStoredBytes;
      Bytes vectors[16];
      for (int64_t i = 0; i < 16; ++i) {
        const uint8_t* from =
            w.values + of[i] * w.column_bytes() + group * kStoredGroupBytes + v * Packed::kStoredBytes;
        vectors[i] = blocks >= kGroup ? Packed::load(from) : Packed::load(from, present);
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
};

}  // namespace qtool
