// The instruction set that every processor has, and what the functions of an instruction set mean.
//
// Vectors have 64 bytes: 64 small integers, 16 int32 or 16 floats, seen as four lanes of 16 bytes each.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "dot_tile.h"

namespace qtool {

struct Portable {
  struct Bytes {
    uint8_t at[64];
  };
  struct Ints {
    int32_t at[16];
  };
  struct Floats {
    float at[16];
  };

  static constexpr int kRows = 4;          // of x that share unpacked weights in `few_rows`
  static constexpr int kTileRows = 4;      // likewise in `many_rows`, with `DotTile`
  static constexpr int64_t kPrefetch = 0;  // bytes ahead of those being read

  // Whether `Tile` takes weights of fewer than eight bits only if they are unsigned.
  static constexpr bool kUnsignedWeights = true;

  // How `many_rows` multiplies; see dot_tile.h.
  template <int kBits, int kBlockSize>
  using Tile = DotTile<Portable, kBits, kBlockSize>;

  static Ints zero_ints() { return {}; }
  static Floats zero_floats() { return {}; }
  static Ints set(int32_t value) {
    return map<Ints>([&](int) { return value; });
  }
  static Floats set(float value) {
    return map<Floats>([&](int) { return value; });
  }

  static Bytes load_bytes(const void* from) {
    Bytes result;
    std::memcpy(&result, from, 64);
    return result;
  }

  // The first `count` bytes, which may be negative or more than 64, and zeros.
  static Bytes load_bytes(const void* from, int64_t count) {
    Bytes result = {};
    if (count > 0) std::memcpy(&result, from, count < 64 ? count : 64);
    return result;
  }

  // 32 bytes of numbers of two bits, as numbers of four bits.
  static Bytes load_widened(const void* from) {
    Bytes result;
    for (int i = 0; i < 64; ++i) {
      int two_numbers = static_cast<const uint8_t*>(from)[i / 2] >> (i % 2 * 4) & 0xf;
      result.at[i] = static_cast<uint8_t>((two_numbers | two_numbers << 2) & 0x33);
    }
    return result;
  }

  static void store_bytes(void* to, Bytes a) { std::memcpy(to, &a, 64); }
  static Ints load_ints(const int32_t* from) {
    return map<Ints>([&](int i) { return from[i]; });
  }
  static void store_ints(int32_t* to, Ints a) { std::memcpy(to, &a, 64); }
  static Floats load(const float* from) {
    return map<Floats>([&](int i) { return from[i]; });
  }
  static void store(float* to, Floats a) { std::memcpy(to, &a, 64); }
  static void prefetch(const void*) {}

  // Four numbers, the first in the whole first lane, and so on.
  static Ints spread(const int32_t* four) {
    return map<Ints>([&](int i) { return four[i / 4]; });
  }
  static Floats spread(const float* four) {
    return map<Floats>([&](int i) { return four[i / 4]; });
  }

  // Four bytes, 16 times.
  static Bytes repeat_word(const void* four) {
    Bytes result;
    for (int i = 0; i < 16; ++i) std::memcpy(result.at + 4 * i, four, 4);
    return result;
  }

  // Bits kBits * kField and following of each byte.
  template <int kBits, int kField>
  static Bytes field(Bytes a) {
    for (uint8_t& byte : a.at) byte = static_cast<uint8_t>((byte >> (kBits * kField)) & ((1 << kBits) - 1));
    return a;
  }

  // a - b, byte by byte, modulo 256
  static Bytes subtract(Bytes a, Bytes b) {
    for (int i = 0; i < 64; ++i) a.at[i] = static_cast<uint8_t>(a.at[i] - b.at[i]);
    return a;
  }

  // A zero point as it meets what `field` returns; those of eight bits may both be less by 128.
  template <int kBits>
  static int32_t stored_zero_point(int32_t zero_point) {
    return zero_point;
  }

  // Adds to each int32 the products of four unsigned bytes, weights, and four signed ones, values. Weights of less than
  // eight bits are at most twice what kBits bits hold.
  template <int kBits>
  static Ints dot(Ints sum, Bytes a, Bytes b) {
    for (int i = 0; i < 64; ++i) sum.at[i / 4] += a.at[i] * static_cast<int8_t>(b.at[i]);
    return sum;
  }

  // sum + a * b, where a is at most 255 and b fits 16 bits
  static Ints multiply_add(Ints sum, Ints a, Ints b) {
    return map<Ints>([&](int i) { return sum.at[i] + a.at[i] * b.at[i]; });
  }

  static Floats to_floats(Ints a) {
    return map<Floats>([&](int i) { return static_cast<float>(a.at[i]); });
  }
  static Floats add(Floats a, Floats b) {
    return map<Floats>([&](int i) { return a.at[i] + b.at[i]; });
  }
  static Floats multiply(Floats a, Floats b) {
    return map<Floats>([&](int i) { return a.at[i] * b.at[i]; });
  }
  static Floats divide(Floats a, Floats b) {
    return map<Floats>([&](int i) { return a.at[i] / b.at[i]; });
  }

  // sum + a * b, rounded once or twice
  static Floats multiply_add(Floats sum, Floats a, Floats b) { return add(sum, multiply(a, b)); }
  static Floats maximum(Floats a, Floats b) {
    return map<Floats>([&](int i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; });
  }

  // To the nearest integer; anything for numbers that do not fit.
  static Ints round(Floats a) {
    return map<Ints>([&](int i) {
      bool fits = a.at[i] > -1e9f && a.at[i] < 1e9f;
      return fits ? static_cast<int32_t>(std::nearbyintf(a.at[i])) : 0;
    });
  }

  // 2^a for a from -126 to 127, anything for others
  static Floats power_of_two(Ints a) {
    return map<Floats>([&](int i) {
      uint32_t bits = (static_cast<uint32_t>(a.at[i]) + 127) << 23;
      float result;
      std::memcpy(&result, &bits, 4);
      return result;
    });
  }

  // 0 where x is less than the bound, else a
  static Floats zero_if_less(Floats a, Floats x, float bound) {
    return map<Floats>([&](int i) { return x.at[i] < bound ? 0.0f : a.at[i]; });
  }

  static float largest(Floats a) {
    float result = a.at[0];
    for (float value : a.at) result = value > result ? value : result;
    return result;
  }
  static float sum(Floats a) {
    float result = 0;
    for (float value : a.at) result += value;
    return result;
  }

  // Lane by lane: the sum of a's four numbers, of b's, of c's, of d's.
  template <typename Vector>
  static Vector sum_in_lanes(Vector a, Vector b, Vector c, Vector d) {
    const Vector* of[] = {&a, &b, &c, &d};
    return map<Vector>([&](int i) {
      const auto* lane = of[i % 4]->at + i / 4 * 4;
      return lane[0] + lane[1] + lane[2] + lane[3];
    });
  }

  // The same for numbers whose sums by two fit 16 bits, as those of weights with fewer than 8 bits do.
  static Ints sum_small_in_lanes(Ints a, Ints b, Ints c, Ints d) { return sum_in_lanes(a, b, c, d); }

  // Lanes a0 + a1, a2 + a3, b0 + b1, b2 + b3
  static Ints sum_lane_pairs(Ints a, Ints b) {
    const Ints* of[] = {&a, &b};
    return map<Ints>([&](int i) {
      const int32_t* pair = of[i / 8]->at + i / 4 % 2 * 8 + i % 4;
      return pair[0] + pair[4];
    });
  }

  // Lanes a0 + a1 + a2 + a3, b0 + ..., c0 + ..., d0 + ...
  template <typename Vector>
  static Vector sum_lanes_of_each(Vector a, Vector b, Vector c, Vector d) {
    const Vector* of[] = {&a, &b, &c, &d};
    return map<Vector>([&](int i) {
      const auto* at = of[i / 4]->at + i % 4;
      return at[0] + at[4] + at[8] + at[12];
    });
  }

  // (lane 0 + lane 1) + (lane 2 + lane 3)
  static void sum_lanes(Floats a, float* four) {
    for (int i = 0; i < 4; ++i) four[i] = (a.at[i] + a.at[4 + i]) + (a.at[8 + i] + a.at[12 + i]);
  }

  // Lane i holds a[i], b[i], c[i], d[i]; those from `count` on are zeros, and not read.
  static Floats transpose_scales(const float* a, const float* b, const float* c, const float* d, int64_t count) {
    const float* of[] = {a, b, c, d};
    return map<Floats>([&](int i) { return i / 4 < count ? of[i % 4][i / 4] : 0.0f; });
  }

  // Lane i holds the i-th zero point of each of four columns, as `stored_zero_point` has them.
  template <int kBits>
  static Ints unpack_zero_points(const uint32_t* packed) {
    return map<Ints>(
        [&](int i) { return static_cast<int32_t>((packed[i % 4] >> (i / 4 * kBits)) & ((1u << kBits) - 1)); });
  }

  // 16 vectors of 16 words each: word j of vector i becomes word i of vector j.
  static void transpose_words(Bytes* vectors) {
    for (int i = 0; i < 16; ++i) {
      for (int j = 0; j < i; ++j) {
        uint32_t a, b;
        std::memcpy(&a, vectors[i].at + 4 * j, 4);
        std::memcpy(&b, vectors[j].at + 4 * i, 4);
        std::memcpy(vectors[i].at + 4 * j, &b, 4);
        std::memcpy(vectors[j].at + 4 * i, &a, 4);
      }
    }
  }

  // The largest magnitude; infinity or NaN if one of the numbers is.
  template <int kCount>
  static float largest_magnitude(const float* x) {
    uint32_t largest = 0;  // without their sign, numbers are in the order of their bits, NaN above all
    for (int i = 0; i < kCount; ++i) {
      uint32_t bits;
      std::memcpy(&bits, x + i, 4);
      bits &= 0x7fffffff;
      largest = bits > largest ? bits : largest;
    }
    float result;
    std::memcpy(&result, &largest, 4);
    return result;
  }

  // Writes x * factor, rounded to int8 (to even at ties), and returns their sum. Number i goes to
  // to[i % kFields * stride + i / kFields].
  template <int kCount, int kFields>
  static int32_t quantize(const float* x, float factor, int8_t* to, int64_t stride) {
    int32_t sum = 0;
    for (int i = 0; i < kCount; ++i) {
      int32_t value = static_cast<int32_t>(std::nearbyintf(x[i] * factor));
      to[i % kFields * stride + i / kFields] = static_cast<int8_t>(value);
      sum += value;
    }
    return sum;
  }

 private:
  template <typename Vector, typename Function>
  static Vector map(Function function) {
    Vector result;
    for (int i = 0; i < 16; ++i) result.at[i] = function(i);
    return result;
  }
};

}  // namespace qtool
