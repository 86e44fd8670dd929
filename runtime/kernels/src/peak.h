// Dot products that wait for nothing: as many as a processor can do, which kernels are held against.
#pragma once

#include <cstdint>
#include <utility>

namespace qtool {

// Does `rounds` dot products of vectors with each of some sums, and returns how many multiplications and additions
// these were. Operands are read again in each round, and differ, so that nothing is done once for all.
template <class Isa, int... kSums>
int64_t repeat_dot_products(int64_t rounds, std::integer_sequence<int, kSums...>) {
  constexpr int kCount = sizeof...(kSums), kRows = 2;
  alignas(64) uint8_t bytes[(kRows + kCount) * 64] = {1};
  typename Isa::Ints sums[] = {(static_cast<void>(kSums), Isa::zero_ints())...};
  for (int64_t round = 0; round < rounds; ++round) {
    asm volatile("" ::"r"(bytes) : "memory");
    ((sums[kSums] = Isa::template dot<4>(sums[kSums], Isa::load_bytes(bytes + kSums % kRows * 64),
                                         Isa::load_bytes(bytes + (kRows + kSums / kRows) * 64))),
     ...);
  }
  alignas(64) int32_t result[16];
  ((Isa::store_ints(result, sums[kSums]), [&] { asm volatile("" ::"r"(result) : "memory"); }()), ...);
  return rounds * kCount * 64 * 2;
}

template <class Isa, int kSums>
int64_t repeat_dot_products(int64_t rounds) {
  return repeat_dot_products<Isa>(rounds, std::make_integer_sequence<int, kSums>());
}

}  // namespace qtool
