// Products of matrices of bytes: Intel's AMX, for many rows. Everything else is done as without it.
//
// A tile is a register of up to 16 rows of 64 bytes. One instruction multiplies 16 rows of values (A) by 16 columns of
// weights (B), over up to 64 elements of k; the sums (C) are 16 x 16. Sums are read after each block, because
// blocks have scales of their own. So blocks of 32 fill half of A's and B's tiles: the other half would have to be
// zeros, and the instruction takes a cycle for each row of A either way.
#pragma once

#include <cstdint>

#include "dot_tile.h"

namespace qtool {

// What LDTILECFG reads (Intel SDM, volume 2, "LDTILECFG"): of each tile, bytes in a row, and rows.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

// `Instructions` are the processor's, or a model of them.
template <class Isa, class Instructions, int kBits, int kBlockSize>
class AmxTile {
  using Ints = typename Isa::Ints;

  static constexpr int kDepth = kBlockSize < 64 ? kBlockSize : 64;  // of A and B
  enum Tile { kLeftSums, kRightSums, kValues, kLeftWeights, kRightWeights };

 public:
  static constexpr int kRows = 16;
  static_assert(kHalves == 2);

  // The configuration is this thread's, and threads belong to others: it lasts as long as this object.
  AmxTile() {
    TileConfig config;
    for (int tile : {kLeftSums, kRightSums, kLeftWeights, kRightWeights}) config.row_bytes[tile] = 64;
    for (int tile : {kLeftSums, kRightSums, kValues}) config.rows[tile] = kRows;
    for (int tile : {kLeftWeights, kRightWeights}) config.rows[tile] = kDepth / 4;
    config.row_bytes[kValues] = kDepth;
    Instructions::configure(config);
  }
  ~AmxTile() { Instructions::release(); }
  AmxTile(const AmxTile&) = delete;
  AmxTile& operator=(const AmxTile&) = delete;

  // B's rows have four k of each column: this is the order already.
  template <class Bytes>
  static void arrange(Bytes&, Bytes&) {}

  void multiply(const int8_t* values, int64_t stride, const uint8_t* weights, const int32_t*, int64_t,
                Ints (*products)[kHalves]) const {
    Instructions::template zero<kLeftSums>();
    Instructions::template zero<kRightSums>();
    for (int k = 0; k < kBlockSize; k += kDepth) {
      Instructions::template load<kValues>(values + k, stride);
      Instructions::template load<kLeftWeights>(weights + k * kTileColumns, 4 * kTileColumns);
      Instructions::template load<kRightWeights>(weights + k * kTileColumns + 64, 4 * kTileColumns);
      multiply_add<kLeftSums, kLeftWeights>();
      multiply_add<kRightSums, kRightWeights>();
    }
    Instructions::template store<kLeftSums>(products[0], sizeof(products[0]));
    Instructions::template store<kRightSums>(products[0] + 1, sizeof(products[0]));
  }

 private:
  template <int kSums, int kWeights>
  static void multiply_add() {
    if constexpr (kBits == 8) {
      Instructions::template multiply_signed_by_unsigned<kSums, kValues, kWeights>();
    } else {
      Instructions::template multiply_signed<kSums, kValues, kWeights>();
    }
  }
};

// What `repeat_dot_products` of peak.h is for vectors: six sums, of one pair of tiles.
template <class Instructions>
int64_t repeat_tile_products(int64_t rounds) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.rows[tile] = 16;
    config.row_bytes[tile] = 64;
  }
  Instructions::configure(config);
  Instructions::template zero<6>();
  Instructions::template zero<7>();
  for (int64_t round = 0; round < rounds; ++round) {
    Instructions::template multiply_signed<0, 6, 7>();
    Instructions::template multiply_signed<1, 6, 7>();
    Instructions::template multiply_signed<2, 6, 7>();
    Instructions::template multiply_signed<3, 6, 7>();
    Instructions::template multiply_signed<4, 6, 7>();
    Instructions::template multiply_signed<5, 6, 7>();
  }
  Instructions::release();
  return rounds * 6 * 16 * 16 * 64 * 2;
}

// An instruction set with such tiles.
template <class Isa, class Instructions>
struct Amx : Isa {
  static constexpr bool kUnsignedWeights = false;

  template <int kBits, int kBlockSize>
  using Tile = AmxTile<Isa, Instructions, kBits, kBlockSize>;
};

}  // namespace qtool
