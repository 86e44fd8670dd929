// How weights are read where they lie. Like matmul_kernels.h, a template over an instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "matmul.h"

namespace qtool {

// Vectors of weights of kBits bits each. A group of blocks of 32 weights of two bits would fill half a vector: those
// become weights of four bits, in the same order.
template <class Isa, int kBits, int kStoredBits>
struct PackedWeights {
  using Bytes = typename Isa::Bytes;

  static constexpr bool kWidened = kStoredBits < kBits;
  static constexpr int64_t kStoredBytes = kWidened ? 32 : 64;  // of a vector
  static_assert(kStoredBits == kBits || (kStoredBits == 2 && kBits == 4));

  static Bytes load(const uint8_t* from) {
    if constexpr (kWidened) return Isa::load_widened(from);
    return Isa::load_bytes(from);
  }

  // The first `count` stored bytes, which may be negative or more than those of a vector, and zeros.
  static Bytes load(const uint8_t* from, int64_t count) {
    if constexpr (!kWidened) return Isa::load_bytes(from, count);
    uint8_t padded[kStoredBytes] = {};
    if (count > 0) std::memcpy(padded, from, count < kStoredBytes ? count : kStoredBytes);
    return load(padded);
  }
};

}  // namespace qtool
