#include "self_test.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "isa.h"
#include "parallel_attention.h"
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

void one_by_one(int64_t tasks, const std::function<void(int64_t)>& task) {
  for (int64_t i = 0; i < tasks; ++i) task(i);
}

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
    ProductsProblem problem;
    problem.rows = rows;
    problem.depth = weights.depth;
    problem.x = x.data();
    Product product{find_matmul(set, weights.bits, weights.block_size), weights, y.data()};
    qtool::multiply(set.rows, problem, {product}, one_by_one);
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

// A fused node: normalized sums, then a gate, or products of different formats.
std::vector<float> fused(const InstructionSet& set, int64_t rows, bool gated) {
  constexpr int64_t kDepth = 277, kColumns = 37;
  constexpr WeightFormat kFormats[] = {{4, 32}, {4, 128}, {8, 32}};
  Random random;
  std::vector<float> skip(rows * kDepth), norm_weight(kDepth), y(rows * (kDepth + 3 * kColumns));
  for (float& value : skip) value = random.number();
  for (float& value : norm_weight) value = random.number();
  std::vector<Problem> matrices;
  std::vector<Product> products;
  for (WeightFormat format : kFormats) matrices.emplace_back(format, rows, kColumns, kDepth, true, false);
  for (size_t i = 0; i < (gated ? 2 : 3); ++i) {
    const Weights& w = matrices[i].weights;
    products.push_back({find_matmul(set, w.bits, w.block_size), w, y.data() + rows * (kDepth + i * kColumns)});
  }
  ProductsProblem problem;
  problem.rows = rows;
  problem.depth = kDepth;
  problem.x = matrices[0].x.data();
  problem.norm_weight = norm_weight.data();
  problem.epsilon = 1e-6f;
  problem.skip = skip.data();
  problem.skip_rows = rows;
  problem.sum = y.data();
  problem.gated = gated;
  qtool::multiply(set.rows, problem, products, one_by_one);
  return y;
}

std::string test_fused(const InstructionSet& set) {
  for (bool gated : {false, true}) {
    for (int64_t rows : {1, 5, 35}) {
      if (!same_bits(fused(set, rows, gated), fused(portable_instruction_set(), rows, gated))) {
        return std::string("FusedMatMulNBits with ") + (gated ? "a gate and " : "") + std::to_string(rows) +
               " rows differs from portable";
      }
    }
  }
  return {};
}

// Three sequences of five new tokens behind 29 cached ones, and a first head that is not a multiple of others.
std::vector<float> attend(const InstructionSet& set) {
  constexpr int64_t kSequences = 3, kTokens = 5, kHeads = 6, kKvHeads = 2, kSize = 80, kPast = 29, kRoom = 40;
  Random random;
  auto numbers = [&](int64_t count) {
    std::vector<float> result(count);
    for (float& value : result) value = random.number();
    return result;
  };
  std::vector<float> queries = numbers(kSequences * kTokens * kHeads * kSize);
  std::vector<float> keys = numbers(kSequences * kTokens * kKvHeads * kSize), values = keys;
  std::vector<float> cached_keys = numbers(kSequences * kKvHeads * kRoom * kSize), cached_values = cached_keys;
  std::vector<float> cosine = numbers(kRoom * kSize / 2), sine = cosine;
  std::vector<float> output(queries.size());
  const int64_t past[] = {kPast, 0, 7};
  AttentionProblem problem;
  problem.sequences = kSequences;
  problem.tokens = kTokens;
  problem.heads = kHeads;
  problem.kv_heads = kKvHeads;
  problem.head_size = kSize;
  problem.scale = 0.1f;
  problem.queries = {queries.data(), kTokens * kHeads * kSize, kHeads * kSize};
  problem.keys = {keys.data(), kTokens * kKvHeads * kSize, kKvHeads * kSize};
  problem.values = {values.data(), kTokens * kKvHeads * kSize, kKvHeads * kSize};
  problem.past = past;
  problem.past_keys = problem.present_keys = cached_keys.data();
  problem.past_values = problem.present_values = cached_values.data();
  problem.past_room = problem.present_room = kRoom;
  problem.cosine = cosine.data();
  problem.sine = sine.data();
  problem.rotary_size = kSize;
  problem.output = output.data();
  qtool::attend(set.attention, problem, one_by_one);
  return output;
}

std::string test_attention(const InstructionSet& set) {
  std::vector<float> output = attend(set), expected = attend(portable_instruction_set());
  for (size_t i = 0; i < output.size(); ++i) {
    if (!(std::fabs(output[i] - expected[i]) <= 1e-5f)) return "GroupQueryAttention differs from portable";
  }
  return {};
}

}  // namespace

std::string self_test(const InstructionSet& set) {
  for (WeightFormat format : kWeightFormats) {
    if (std::string failure = test_matmul(set, format); !failure.empty()) return failure;
  }
  if (std::string failure = test_fused(set); !failure.empty()) return failure;
  return test_attention(set);
}

}  // namespace qtool
