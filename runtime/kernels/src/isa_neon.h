// Arm NEON with the dot product instructions: four registers hold a vector. Functions are described in
// isa_portable.h.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace qtool {

// `Dot` is how bytes are multiplied: a class with kBiased, whether weights of eight bits are read as signed
// numbers, less by 128, `int32x4_t dot(sum, weights, values)`, and a `Tile`.
template <class Dot>
struct Neon {
  struct Bytes {
    uint8x16_t at[4];
  };
  struct Ints {
    int32x4_t at[4];
  };
  struct Floats {
    float32x4_t at[4];
  };

  static constexpr int kRows = 1;
  static constexpr int kTileRows = 2;
  static constexpr int64_t kPrefetch = 4096;
  static constexpr bool kUnsignedWeights = false;

  template <int kBits, int kBlockSize>
  using Tile = typename Dot::template Tile<Neon, kBits, kBlockSize>;

  static Ints zero_ints() { return set(0); }
  static Floats zero_floats() { return set(0.0f); }
  static Ints set(int32_t value) {
    int32x4_t all = vdupq_n_s32(value);
    return {{all, all, all, all}};
  }
  static Floats set(float value) {
    float32x4_t all = vdupq_n_f32(value);
    return {{all, all, all, all}};
  }

  static Bytes load_bytes(const void* from) {
    auto* at = static_cast<const uint8_t*>(from);
    return {{vld1q_u8(at), vld1q_u8(at + 16), vld1q_u8(at + 32), vld1q_u8(at + 48)}};
  }
  static Bytes load_bytes(const void* from, int64_t count) {
    if (count >= 64) return load_bytes(from);
    uint8_t padded[64] = {};
    if (count > 0) std::memcpy(padded, from, count);
    return load_bytes(padded);
  }
  static Bytes load_widened(const void* from) {
    return each<Bytes>([&](int i) {
      uint16x8_t wide = vmovl_u8(vld1_u8(static_cast<const uint8_t*>(from) + 8 * i));
      wide = vandq_u16(vorrq_u16(wide, vshlq_n_u16(wide, 4)), vdupq_n_u16(0x0f0f));
      wide = vandq_u16(vorrq_u16(wide, vshlq_n_u16(wide, 2)), vdupq_n_u16(0x3333));
      return vreinterpretq_u8_u16(wide);
    });
  }
  static void store_bytes(void* to, Bytes a) {
    for (int i = 0; i < 4; ++i) vst1q_u8(static_cast<uint8_t*>(to) + 16 * i, a.at[i]);
  }
  static Ints load_ints(const int32_t* from) {
    return {{vld1q_s32(from), vld1q_s32(from + 4), vld1q_s32(from + 8), vld1q_s32(from + 12)}};
  }
  static void store_ints(int32_t* to, Ints a) {
    for (int i = 0; i < 4; ++i) vst1q_s32(to + 4 * i, a.at[i]);
  }
  static Floats load(const float* from) {
    return {{vld1q_f32(from), vld1q_f32(from + 4), vld1q_f32(from + 8), vld1q_f32(from + 12)}};
  }
  static void store(float* to, Floats a) {
    for (int i = 0; i < 4; ++i) vst1q_f32(to + 4 * i, a.at[i]);
  }
  static void prefetch(const void* from) { __builtin_prefetch(from); }

  static Ints spread(const int32_t* four) {
    return {{vld1q_dup_s32(four), vld1q_dup_s32(four + 1), vld1q_dup_s32(four + 2), vld1q_dup_s32(four + 3)}};
  }
  static Floats spread(const float* four) {
    return {{vld1q_dup_f32(four), vld1q_dup_f32(four + 1), vld1q_dup_f32(four + 2), vld1q_dup_f32(four + 3)}};
  }
  static Bytes repeat_word(const void* four) {
    uint32_t word;
    std::memcpy(&word, four, 4);
    uint8x16_t all = vreinterpretq_u8_u32(vdupq_n_u32(word));
    return {{all, all, all, all}};
  }

  template <int kBits, int kField>
  static Bytes field(Bytes a) {
    if constexpr (kBits == 8) {
      return Dot::kBiased ? each<Bytes>([&](int i) { return veorq_u8(a.at[i], vdupq_n_u8(0x80)); }) : a;
    } else {
      const uint8x16_t mask = vdupq_n_u8((1 << kBits) - 1);
      if constexpr (kField == 0) return each<Bytes>([&](int i) { return vandq_u8(a.at[i], mask); });
      return each<Bytes>([&](int i) { return vandq_u8(vshlq_u8(a.at[i], vdupq_n_s8(-kBits * kField)), mask); });
    }
  }

  static Bytes subtract(Bytes a, Bytes b) {
    return each<Bytes>([&](int i) { return vsubq_u8(a.at[i], b.at[i]); });
  }

  template <int kBits>
  static int32_t stored_zero_point(int32_t zero_point) {
    return kBits == 8 && Dot::kBiased ? zero_point - 128 : zero_point;
  }

  template <int kBits>
  static Ints dot(Ints sum, Bytes weights, Bytes values) {
    return each<Ints>([&](int i) { return Dot::dot(sum.at[i], weights.at[i], vreinterpretq_s8_u8(values.at[i])); });
  }
  static Ints multiply_add(Ints sum, Ints a, Ints b) {
    return each<Ints>([&](int i) { return vmlaq_s32(sum.at[i], a.at[i], b.at[i]); });
  }

  static Floats to_floats(Ints a) {
    return each<Floats>([&](int i) { return vcvtq_f32_s32(a.at[i]); });
  }
  static Floats add(Floats a, Floats b) {
    return each<Floats>([&](int i) { return vaddq_f32(a.at[i], b.at[i]); });
  }
  static Floats multiply(Floats a, Floats b) {
    return each<Floats>([&](int i) { return vmulq_f32(a.at[i], b.at[i]); });
  }
  static Floats divide(Floats a, Floats b) {
    return each<Floats>([&](int i) { return vdivq_f32(a.at[i], b.at[i]); });
  }
  static Floats multiply_add(Floats sum, Floats a, Floats b) {
    return each<Floats>([&](int i) { return vfmaq_f32(sum.at[i], a.at[i], b.at[i]); });
  }
  static Floats maximum(Floats a, Floats b) {
    return each<Floats>([&](int i) { return vmaxq_f32(a.at[i], b.at[i]); });
  }
  static Ints round(Floats a) {
    return each<Ints>([&](int i) { return vcvtnq_s32_f32(a.at[i]); });
  }
  static Floats power_of_two(Ints a) {
    return each<Floats>(
        [&](int i) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(a.at[i], vdupq_n_s32(127)), 23)); });
  }
  static Floats zero_if_less(Floats a, Floats x, float bound) {
    return each<Floats>(
        [&](int i) { return vbslq_f32(vcltq_f32(x.at[i], vdupq_n_f32(bound)), vdupq_n_f32(0), a.at[i]); });
  }
  static float largest(Floats a) {
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.at[0], a.at[1]), vmaxq_f32(a.at[2], a.at[3])));
  }
  static float sum(Floats a) { return vaddvq_f32(vaddq_f32(vaddq_f32(a.at[0], a.at[1]), vaddq_f32(a.at[2], a.at[3]))); }

  static Ints sum_in_lanes(Ints a, Ints b, Ints c, Ints d) {
    return each<Ints>([&](int i) { return vpaddq_s32(vpaddq_s32(a.at[i], b.at[i]), vpaddq_s32(c.at[i], d.at[i])); });
  }
  static Ints sum_small_in_lanes(Ints a, Ints b, Ints c, Ints d) { return sum_in_lanes(a, b, c, d); }
  static Floats sum_in_lanes(Floats a, Floats b, Floats c, Floats d) {
    return each<Floats>([&](int i) { return vpaddq_f32(vpaddq_f32(a.at[i], b.at[i]), vpaddq_f32(c.at[i], d.at[i])); });
  }
  static Ints sum_lane_pairs(Ints a, Ints b) {
    return {{vaddq_s32(a.at[0], a.at[1]), vaddq_s32(a.at[2], a.at[3]), vaddq_s32(b.at[0], b.at[1]),
             vaddq_s32(b.at[2], b.at[3])}};
  }
  static Ints sum_lanes_of_each(Ints a, Ints b, Ints c, Ints d) { return {{four(a), four(b), four(c), four(d)}}; }
  static Floats sum_lanes_of_each(Floats a, Floats b, Floats c, Floats d) {
    return {{four(a), four(b), four(c), four(d)}};
  }
  static void sum_lanes(Floats a, float* out) { vst1q_f32(out, four(a)); }

  static Floats transpose_scales(const float* a, const float* b, const float* c, const float* d, int64_t count) {
    const float* of[] = {a, b, c, d};
    float lanes[16] = {};
    for (int64_t i = 0; i < 4; ++i) {
      for (int64_t j = 0; j < count; ++j) lanes[4 * j + i] = of[i][j];
    }
    return load(lanes);
  }

  template <int kBits>
  static Ints unpack_zero_points(const uint32_t* packed) {
    const uint32x4_t four_columns = vld1q_u32(packed), mask = vdupq_n_u32((1u << kBits) - 1);
    return each<Ints>([&](int i) {
      uint32x4_t shifted = vshlq_u32(four_columns, vdupq_n_s32(-kBits * i));
      int32x4_t zero_points = vreinterpretq_s32_u32(vandq_u32(shifted, mask));
      return vaddq_s32(zero_points, vdupq_n_s32(stored_zero_point<kBits>(0)));
    });
  }

  static void transpose_words(Bytes* vectors) {
    uint32_t words[16][16];
    for (int i = 0; i < 16; ++i) store_bytes(words[i], vectors[i]);
    for (int j = 0; j < 16; ++j) {
      uint32_t column[16];
      for (int i = 0; i < 16; ++i) column[i] = words[i][j];
      vectors[j] = load_bytes(column);
    }
  }

  template <int kCount>
  static float largest_magnitude(const float* x) {
    uint32x4_t largest_bits = vdupq_n_u32(0);
    for (int i = 0; i < kCount; i += 4) {
      uint32x4_t bits = vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(x + i)));
      largest_bits = vmaxq_u32(largest_bits, bits);
    }
    uint32_t bits = vmaxvq_u32(largest_bits);
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
  }

  template <int kCount, int kFields>
  static int32_t quantize(const float* x, float factor, int8_t* to, int64_t stride) {
    int32x4_t sum_of = vdupq_n_s32(0);
    for (int i = 0; i < kCount; i += 16) {
      Ints values = round(multiply(load(x + i), set(factor)));
      for (int32x4_t part : values.at) sum_of = vaddq_s32(sum_of, part);
      int16x8_t low = vcombine_s16(vmovn_s32(values.at[0]), vmovn_s32(values.at[1]));
      int16x8_t high = vcombine_s16(vmovn_s32(values.at[2]), vmovn_s32(values.at[3]));
      int8_t bytes[16];
      vst1q_s8(bytes, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
      for (int j = 0; j < 16; ++j) to[j % kFields * stride + (i + j) / kFields] = bytes[j];
    }
    return vaddvq_s32(sum_of);
  }

 private:
  template <typename Vector, typename Function>
  static Vector each(Function function) {
    return {{function(0), function(1), function(2), function(3)}};
  }
  static int32x4_t four(Ints a) { return vaddq_s32(vaddq_s32(a.at[0], a.at[1]), vaddq_s32(a.at[2], a.at[3])); }
  static float32x4_t four(Floats a) { return vaddq_f32(vaddq_f32(a.at[0], a.at[1]), vaddq_f32(a.at[2], a.at[3])); }
};

// What the processor has, where the system tells: bits of getauxval on Linux.
#if defined(__linux__)
}  // namespace qtool
#include <sys/auxv.h>
namespace qtool {
inline bool has_dotprod() { return getauxval(AT_HWCAP) >> 20 & 1; }
inline bool has_i8mm() { return getauxval(AT_HWCAP2) >> 13 & 1; }
#elif defined(__APPLE__)
inline bool has_dotprod() { return true; }  // every Apple processor that runs macOS on Arm
inline bool has_i8mm() { return false; }    // since the M2; not asked for yet
#else
inline bool has_dotprod() { return false; }
inline bool has_i8mm() { return false; }
#endif

}  // namespace qtool
