// A model of AMX's instructions in plain C++, as Intel's Software Developer's Manual, volume 2, describes them: to test
// their use on any processor. Where the processor would raise an exception (#GP for a wrong configuration, #UD for
// wrong tiles), the program ends.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "instruction_sets.h"
#include "isa_amx.h"

namespace qtool {
namespace {  // each file that includes it is compiled for its own processors

inline void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "AMX: %s does not hold\n", what);
  std::abort();
}

struct TileModel {
  static constexpr int kTiles = 8, kMostRows = 16, kMostRowBytes = 64;  // of palette 1

  struct State {
    bool configured = false;
    TileConfig config;
    uint8_t data[kTiles][kMostRows][kMostRowBytes];
  };
  static State& state() {
    static thread_local State state;
    return state;
  }

  static void configure(const TileConfig& config) {
    State& s = state();
    require(!s.configured, "the tiles were released before");  // no exception, but what this library promises
    require(config.palette == 1, "palette is 1");
    for (uint8_t byte : config.reserved) require(byte == 0, "reserved bytes are 0");
    for (int tile = 0; tile < 16; ++tile) {
      int rows = config.rows[tile], row_bytes = config.row_bytes[tile];
      require((rows == 0) == (row_bytes == 0), "a tile has rows and bytes, or neither");
      require(rows <= (tile < kTiles ? kMostRows : 0), "a tile has at most 16 rows, and its number is below 8");
      require(row_bytes <= kMostRowBytes, "a row has at most 64 bytes");
    }
    s.configured = true;
    s.config = config;
    std::memset(s.data, 0, sizeof(s.data));
  }
  static void release() { state().configured = false; }

  static void check(int tile) {
    const State& s = state();
    require(s.configured && tile < kTiles && s.config.rows[tile] > 0, "the tile is configured");
    require(s.config.row_bytes[tile] % 4 == 0, "a row has whole words");
    require(s.config.start_row == 0, "no row is left over");
  }

  template <int kTile>
  static void zero() {
    check(kTile);
    std::memset(state().data[kTile], 0, sizeof(state().data[kTile]));
  }
  template <int kTile>
  static void load(const void* from, int64_t stride) {
    zero<kTile>();
    State& s = state();
    for (int row = 0; row < s.config.rows[kTile]; ++row) {
      std::memcpy(s.data[kTile][row], static_cast<const uint8_t*>(from) + row * stride, s.config.row_bytes[kTile]);
    }
  }
  template <int kTile>
  static void store(void* to, int64_t stride) {
    check(kTile);
    State& s = state();
    for (int row = 0; row < s.config.rows[kTile]; ++row) {
      std::memcpy(static_cast<uint8_t*>(to) + row * stride, s.data[kTile][row], s.config.row_bytes[kTile]);
    }
  }

  template <int kSums, int kA, int kB>
  static void multiply_signed() {
    multiply<int8_t>(kSums, kA, kB);
  }
  template <int kSums, int kA, int kB>
  static void multiply_signed_by_unsigned() {
    multiply<uint8_t>(kSums, kA, kB);
  }

  // sums[m][n] += sum over k and i < 4 of a[m][4 * k + i] * b[k][4 * n + i]
  template <typename TypeOfB>
  static void multiply(int sums, int a, int b) {
    require(sums != a && sums != b && a != b, "the three tiles differ");
    for (int tile : {sums, a, b}) check(tile);
    State& s = state();
    const TileConfig& config = s.config;
    require(config.row_bytes[sums] == config.row_bytes[b], "sums and B have as many columns");
    require(config.rows[sums] == config.rows[a], "sums and A have as many rows");
    require(config.row_bytes[a] / 4 == config.rows[b], "A has as many columns as B has rows");
    for (int m = 0; m < config.rows[sums]; ++m) {
      int32_t row[kMostRowBytes / 4];
      std::memcpy(row, s.data[sums][m], sizeof(row));
      for (int k = 0; k < config.rows[b]; ++k) {
        for (int n = 0; n < config.row_bytes[sums] / 4; ++n) {
          for (int i = 0; i < 4; ++i) {
            row[n] += static_cast<int8_t>(s.data[a][m][4 * k + i]) * static_cast<TypeOfB>(s.data[b][k][4 * n + i]);
          }
        }
      }
      std::memcpy(s.data[sums][m], row, sizeof(row));
    }
  }
};

}  // namespace

// An instruction set with such tiles, and the portable kernels for all else.
const InstructionSet& amx_model_instruction_set();

}  // namespace qtool
