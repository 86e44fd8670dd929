#include "self_test.h"

#include <cstring>
#include <limits>
#include <vector>

#include "isa.h"
#include "parallel_matmul.h"

namespace qtool {
namespace {

// A small linear congruential generator (Knuth's constants): the same data on every machine.
class Random {
 public:
  uint8_t byte() {
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<uint8_t>(state_ >> 56);
  }
  float number() { return (byte() - 127.5f) / 64.0f; }

 private:
  uint64_t state_ = 1;
};

struct Problem {
  Weights weights;
  std::vector<uint8_t> values, zero_points;
  std::vector<float> scales, bias, x;

  Problem(WeightFormat format, int64_t rows, int64_t columns, int64_t depth, bool with_zero_points, bool with_bias) {
    Random random;
    Weights& w = weights;
    w.columns = columns;
    w.depth = depth;
    w.bits = format.bits;
    w.block_size = format.block_size;
    w.blocks = (depth + format.block_size - 1) / format.block_size;
    values.resize(columns * w.column_bytes());
    zero_points.resize(columns * w.zero_point_bytes());
    scales.resize(columns * w.blocks);
    bias.resize(columns);
    x.resize(rows * depth);
    for (uint8_t& value : values) value = random.byte();
    for (uint8_t& value : zero_points) value = random.byte();
    for (float& value : scales) value = random.number();
    for (float& value : bias) value = random.number();
    for (float& value : x) value = random.number();
    w.values = values.data();
    w.scales = scales.data();
    w.zero_points = with_zero_points ? zero_points.data() : nullptr;
    w.bias = with_bias ? bias.data() : nullptr;
  }

  std::vector<float> multiply(const InstructionSet& set, int64_t rows) const {
    std::vector<float> y(rows * weights.columns);
    qtool::multiply(*find_matmul(set, weights.bits, weights.block_size), weights, x.data(), rows, y.data(),
                    [](int64_t tasks, const std::function<void(int64_t)>& task) {
                      for (int64_t i = 0; i < tasks; ++i) task(i);
                    });
    return y;
  }
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::string test_matmul(const InstructionSet& set, WeightFormat format) {
  for (bool with_zero_points : {false, true}) {
    for (int64_t rows : {1, 5, 35}) {
      // Columns and blocks that leave a rest everywhere, and a last block that is not full.
      Problem problem(format, rows, 37, 6 * format.block_size + 5, with_zero_points, rows == 5);
      if (!same_bits(problem.multiply(set, rows), problem.multiply(portable_instruction_set(), rows))) {
        return std::string("MatMulNBits with ") + std::to_string(format.bits) + " bits, blocks of " +
               std::to_string(format.block_size) + " and " + std::to_string(rows) + " rows differs from portable";
      }
    }
  }
  return {};
}

}  // namespace

std::string self_test(const InstructionSet& set) {
  for (WeightFormat format : kWeightFormats) {
    if (std::string failure = test_matmul(set, format); !failure.empty()) return failure;
  }
  return {};
}

}  // namespace qtool
