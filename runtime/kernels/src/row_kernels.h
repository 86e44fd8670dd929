// The kernels of row_functions.h, written once for all instruction sets; see matmul_kernels.h.
#pragma once

#include <cmath>
#include <cstring>

#include "row_functions.h"

namespace qtool {

template <class Isa>
class Rows {
  using Ints = typename Isa::Ints;
  using Floats = typename Isa::Floats;

 public:
  static constexpr RowFunctions functions() { return {normalize, gate}; }

  static void normalize(const float* x, const float* skip, const float* weight, float epsilon, int64_t size, float* sum,
                        float* out) {
    if (skip != nullptr) {
      for_each(size, [&](int64_t i, int64_t count) {
        store(sum + i, Isa::add(load(x + i, count), load(skip + i, count)), count);
      });
      x = sum;
    }
    Floats squares = Isa::zero_floats();
    for_each(size, [&](int64_t i, int64_t count) {
      Floats value = load(x + i, count);
      squares = Isa::add(squares, Isa::multiply(value, value));
    });
    float lanes[4];
    Isa::sum_lanes(squares, lanes);
    float mean = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) / static_cast<float>(size);
    Floats factor = Isa::set(1.0f / std::sqrt(mean + epsilon));
    for_each(size, [&](int64_t i, int64_t count) {
      store(out + i, Isa::multiply(Isa::multiply(load(x + i, count), factor), load(weight + i, count)), count);
    });
  }

  static void gate(float* gate, const float* up, int64_t count) {
    for_each(count, [&](int64_t i, int64_t part) {
      Floats x = load(gate + i, part);
      Floats silu = Isa::divide(x, Isa::add(Isa::set(1.0f), exponential_of_negative(x)));
      store(gate + i, Isa::multiply(silu, load(up + i, part)), part);
    });
  }

 private:
  // Calls `function` with the place of each 16 numbers, and how many of them there are.
  template <typename Function>
  static void for_each(int64_t size, Function function) {
    int64_t i = 0;
    for (; i + 16 <= size; i += 16) function(i, int64_t{16});
    if (i < size) function(i, size - i);
  }

  static Floats load(const float* from, int64_t count) {
    if (count == 16) return Isa::load(from);
    alignas(64) float padded[16] = {};
    std::memcpy(padded, from, count * sizeof(float));
    return Isa::load(padded);
  }

  static void store(float* to, Floats a, int64_t count) {
    if (count == 16) return Isa::store(to, a);
    alignas(64) float padded[16];
    Isa::store(padded, a);
    std::memcpy(to, padded, count * sizeof(float));
  }

  // exp(-x), relative error below 1e-6 for |x| <= 87; the same as for 87 and -87 beyond. See
  // Attention::exponential: the same steps, but each of them rounded alike in every instruction set.
  static Floats exponential_of_negative(Floats x) {
    const Floats lowest = Isa::set(-87.0f), minus = Isa::set(-1.0f);
    x = Isa::maximum(Isa::multiply(Isa::maximum(x, lowest), minus), lowest);
    Ints power = Isa::round(Isa::multiply(x, Isa::set(1.44269504f)));
    Floats whole = Isa::to_floats(power);
    Floats r = Isa::add(x, Isa::multiply(whole, Isa::set(-0.693359375f)));
    r = Isa::add(r, Isa::multiply(whole, Isa::set(2.12194440e-4f)));
    Floats y = Isa::set(1.0f / 5040);
    for (float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
      y = Isa::add(Isa::set(factor), Isa::multiply(y, r));
    }
    return Isa::multiply(y, Isa::power_of_two(power));
  }
};

}  // namespace qtool
