// Tests without ONNX Runtime: to run under sanitizers, and on processors that are emulated.
// Prints what it does, and returns 1 at the first failure.

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "amx_model.h"
#include "instruction_sets.h"
#include "isa.h"
#include "parallel_attention.h"
#include "parallel_matmul.h"
#include "self_test.h"

using namespace qtool;

namespace {

#define CHECK(condition)                                                        \
  do {                                                                          \
    if (!(condition)) {                                                         \
      std::printf("%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                             \
    }                                                                           \
  } while (false)

// Tasks on a number of threads, in whatever order they come to them.
ParallelFor on_threads(int count) {
  return [count](int64_t tasks, const std::function<void(int64_t)>& task) {
    std::atomic<int64_t> next{0};
    auto work = [&] {
      for (int64_t i; (i = next++) < tasks;) task(i);
    };
    std::vector<std::thread> threads;
    for (int i = 1; i < count; ++i) threads.emplace_back(work);
    work();
    for (std::thread& thread : threads) thread.join();
  };
}

// Weights in vectors of just their size, so that a sanitizer sees any byte that is read beyond them.
struct Matrix {
  Weights weights;
  std::vector<uint8_t> values, zero_points;
  std::vector<float> scales, bias;

  Matrix(WeightFormat format, int64_t columns, int64_t depth, std::mt19937& random) {
    Weights& w = weights;
    w.columns = columns;
    w.depth = depth;
    w.bits = format.bits;
    w.block_size = format.block_size;
    w.blocks = divide_up(depth, format.block_size);
    std::uniform_real_distribution<float> number(-1, 1);
    for (int64_t i = 0; i < columns * w.column_bytes(); ++i) values.push_back(static_cast<uint8_t>(random()));
    for (int64_t i = 0; i < columns * w.zero_point_bytes(); ++i) zero_points.push_back(static_cast<uint8_t>(random()));
    for (int64_t i = 0; i < columns * w.blocks; ++i) scales.push_back(number(random));
    for (int64_t i = 0; i < columns; ++i) bias.push_back(number(random));
    w.values = values.data();
    w.scales = scales.data();
    w.zero_points = zero_points.data();
    w.bias = bias.data();
  }
};

std::vector<float> numbers(size_t count, std::mt19937& random) {
  std::normal_distribution<float> number;
  std::vector<float> result(count);
  for (float& value : result) value = number(random);
  return result;
}

bool same_bits(const float* a, const float* b, size_t count) { return std::memcmp(a, b, count * sizeof(float)) == 0; }

// y = x W in doubles, from weights that are unpacked one by one; x is not quantized.
double exact(const Weights& w, const float* x, int64_t column) {
  double sum = w.bias[column];
  for (int64_t k = 0; k < w.depth; ++k) {
    int64_t block = k / w.block_size, bit = k % w.block_size * w.bits, zero_bit = block * w.bits;
    int mask = (1 << w.bits) - 1;
    int value = w.values[column * w.column_bytes() + block * w.block_bytes() + bit / 8] >> (bit % 8) & mask;
    int zero = w.zero_points[column * w.zero_point_bytes() + zero_bit / 8] >> (zero_bit % 8) & mask;
    sum += double{x[k]} * w.scales[column * w.blocks + block] * (value - zero);
  }
  return sum;
}

void multiply(const InstructionSet& set, const Weights& w, const float* x, int64_t rows, float* y,
              const ParallelFor& parallel_for) {
  ProductsProblem problem;
  problem.rows = rows;
  problem.depth = w.depth;
  problem.x = x;
  qtool::multiply(set.rows, problem, {{find_matmul(set, w.bits, w.block_size), w, y}}, parallel_for);
}

// Close to the exact product, and the same bits for any number of rows and threads.
void test_matmul(const InstructionSet& set, WeightFormat format, std::mt19937& random) {
  for (int64_t depth : {format.block_size - 3, 4 * format.block_size, 9 * format.block_size + 1}) {
    Matrix matrix(format, 43, depth, random);
    const Weights& w = matrix.weights;
    constexpr int64_t kRows = kTileRows + 6;  // more than one tile
    std::vector<float> x = numbers(kRows * depth, random), y(kRows * w.columns);
    multiply(set, w, x.data(), kRows, y.data(), on_threads(3));
    double error = 0, size = 0;
    for (int64_t n = 0; n < w.columns; ++n) {
      error += std::pow(y[n] - exact(w, x.data(), n), 2);
      size += std::pow(exact(w, x.data(), n), 2);
    }
    CHECK(error < 1e-3 * size);  // int8 activations: about one part in 200
    for (int64_t rows : {1, 2, 3, 5, 31, 33}) {
      std::vector<float> fewer(rows * w.columns);
      const float* first = x.data() + (kRows - rows) * depth;
      multiply(set, w, first, rows, fewer.data(), on_threads(2));
      CHECK(same_bits(fewer.data(), y.data() + (kRows - rows) * w.columns, fewer.size()));
    }
  }
}

// The same bits as the portable kernels, whatever the shape.
void test_any_shape(const InstructionSet& set, WeightFormat format, std::mt19937& random) {
  auto at_most = [&](int64_t most) { return 1 + static_cast<int64_t>(random() % most); };
  for (int i = 0; i < 12; ++i) {
    Matrix matrix(format, at_most(70), at_most(1500), random);
    Weights w = matrix.weights;
    if (i % 3 == 0) w.zero_points = nullptr;
    int64_t rows = at_most(i % 2 ? 80 : 8);
    std::vector<float> x = numbers(rows * w.depth, random), y(rows * w.columns), expected(y.size());
    multiply(set, w, x.data(), rows, y.data(), on_threads(2));
    multiply(portable_instruction_set(), w, x.data(), rows, expected.data(), on_threads(1));
    CHECK(same_bits(y.data(), expected.data(), y.size()));
  }
}

// What is not a number spoils its own row and no other; numbers near the limits do no harm.
void test_extremes(const InstructionSet& set, WeightFormat format, std::mt19937& random) {
  Matrix matrix(format, 8, 5 * format.block_size, random);
  const Weights& w = matrix.weights;
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const float values[] = {nan, infinity, -infinity, 0.0f, 1e-45f, 1e-38f, 3e38f, -3e38f};
  std::vector<float> x = numbers(9 * w.depth, random), y(9 * w.columns), alone(w.columns);
  for (int64_t row = 0; row < 8; ++row) x[row * w.depth + 7] = values[row];
  multiply(set, w, x.data(), 9, y.data(), on_threads(1));
  for (int64_t n = 0; n < w.columns; ++n) {
    for (int64_t row : {0, 1, 2}) CHECK(std::isnan(y[row * w.columns + n]));
    for (int64_t row : {3, 4, 5}) CHECK(std::isfinite(y[row * w.columns + n]));
  }
  multiply(set, w, x.data() + 8 * w.depth, 1, alone.data(), on_threads(1));
  CHECK(same_bits(alone.data(), y.data() + 8 * w.columns, alone.size()));
}

struct Fused {
  std::vector<float> sum, first, second;
};

// Normalized sums of x and skip, and two products of them, or the gate of both.
Fused multiply_fused(const InstructionSet& set, const Weights& a, const Weights& b, const float* x, const float* skip,
                     const float* norm_weight, int64_t rows, bool gated, const ParallelFor& parallel_for) {
  Fused result{std::vector<float>(rows * a.depth), std::vector<float>(rows * a.columns),
               std::vector<float>(rows * b.columns)};
  ProductsProblem problem;
  problem.rows = rows;
  problem.depth = a.depth;
  problem.x = x;
  problem.norm_weight = norm_weight;
  problem.epsilon = 1e-6f;
  problem.skip = skip;
  problem.skip_rows = rows;
  problem.sum = result.sum.data();
  problem.gated = gated;
  qtool::multiply(set.rows, problem,
                  {{find_matmul(set, a.bits, a.block_size), a, result.first.data()},
                   {find_matmul(set, b.bits, b.block_size), b, gated ? nullptr : result.second.data()}},
                  parallel_for);
  return result;
}

// The same bits as the steps one by one, for any number of rows and threads.
void test_fused(const InstructionSet& set, WeightFormat format, std::mt19937& random) {
  constexpr int64_t kRows = kTileRows + 6;  // more than one tile
  for (int64_t depth : {format.block_size - 3, 5 * format.block_size + 16}) {
    Matrix first(format, 43, depth, random), second({4, 32}, 43, depth, random);
    const Weights &a = first.weights, &b = second.weights;
    std::vector<float> x = numbers(kRows * depth, random), skip = numbers(kRows * depth, random);
    std::vector<float> norm_weight = numbers(depth, random);
    Fused whole = multiply_fused(set, a, b, x.data(), skip.data(), norm_weight.data(), kRows, false, on_threads(3));
    Fused gated = multiply_fused(set, a, b, x.data(), skip.data(), norm_weight.data(), kRows, true, on_threads(3));
    std::vector<float> normalized(depth), sum(depth), y(43), gate(43);
    for (int64_t row = 0; row < kRows; ++row) {
      set.rows.normalize(&x[row * depth], &skip[row * depth], norm_weight.data(), 1e-6f, depth, sum.data(),
                         normalized.data());
      CHECK(same_bits(sum.data(), &whole.sum[row * depth], depth));
      multiply(set, a, normalized.data(), 1, gate.data(), on_threads(1));
      CHECK(same_bits(gate.data(), &whole.first[row * 43], 43));
      multiply(set, b, normalized.data(), 1, y.data(), on_threads(1));
      CHECK(same_bits(y.data(), &whole.second[row * 43], 43));
      set.rows.gate(gate.data(), y.data(), 43);
      CHECK(same_bits(gate.data(), &gated.first[row * 43], 43));
    }
    for (int64_t rows : {1, 2, 5, 31, 33}) {
      int64_t begin = (kRows - rows) * depth;
      Fused last = multiply_fused(set, a, b, &x[begin], &skip[begin], norm_weight.data(), rows, true, on_threads(2));
      CHECK(same_bits(last.first.data(), &gated.first[(kRows - rows) * 43], rows * 43));
    }
  }
}

// Close to what they say, and what is not a number stays one.
void test_row_functions(const InstructionSet& set, std::mt19937& random) {
  for (int64_t size : {1, 15, 16, 100}) {
    std::vector<float> x = numbers(size, random), weight = numbers(size, random), out(size), gate = x;
    double squares = 0;
    for (float value : x) squares += double{value} * value;
    set.rows.normalize(x.data(), nullptr, weight.data(), 1e-6f, size, nullptr, out.data());
    for (int64_t i = 0; i < size; ++i) {
      double expected = x[i] / std::sqrt(squares / size + 1e-6) * weight[i];
      CHECK(std::fabs(out[i] - expected) <= 1e-6 * std::fabs(expected));
    }
    for (float& value : gate) value *= 20;
    x = gate;
    set.rows.gate(gate.data(), weight.data(), size);
    for (int64_t i = 0; i < size; ++i) {
      double expected = x[i] / (1 + std::exp(-double{x[i]})) * weight[i];
      CHECK(std::fabs(gate[i] - expected) <= 2e-6 * std::fabs(expected));
    }
  }
  float gate[] = {1000.0f, -1000.0f, 0.0f, std::numeric_limits<float>::quiet_NaN()};
  const float up[] = {2.0f, 2.0f, 2.0f, 2.0f};
  set.rows.gate(gate, up, 4);
  CHECK(gate[0] == 2000.0f && std::fabs(gate[1]) < 1e-30f && gate[2] == 0.0f && std::isnan(gate[3]));
}

struct Attended {
  std::vector<float> output, keys, values;
};

// The last `tokens` of a sequence of `length`, with those before them in the cache.
Attended attend_last(const InstructionSet& set, int64_t size, int64_t length, int64_t tokens, const Attended& cache,
                     const std::vector<float>& queries, const std::vector<float>& new_keys) {
  constexpr int64_t kHeads = 7, kRoom = 300;
  Attended result{std::vector<float>(tokens * kHeads * size), cache.keys, cache.values};
  int64_t past = length - tokens;
  AttentionProblem p;
  p.sequences = 1;
  p.tokens = tokens;
  p.heads = kHeads;
  p.kv_heads = 1;
  p.head_size = size;
  p.scale = 0.125f;
  p.queries = {queries.data() + past * kHeads * size, 0, kHeads * size};
  p.keys = p.values = {new_keys.data() + past * size, 0, size};
  p.past = &past;
  p.past_keys = p.present_keys = result.keys.data();
  p.past_values = p.present_values = result.values.data();
  p.past_room = p.present_room = kRoom;
  p.output = result.output.data();
  attend(set.attention, p, on_threads(2));
  return result;
}

// A token's attention is the same bits as part of a prompt, of drafts, and alone; the future does not matter.
void test_attention(const InstructionSet& set, int64_t size, std::mt19937& random) {
  constexpr int64_t kLength = 261, kHeads = 7, kRoom = 300;
  std::vector<float> queries = numbers(kLength * kHeads * size, random), keys = numbers(kLength * size, random);
  Attended empty{{}, std::vector<float>(kRoom * size), std::vector<float>(kRoom * size)};
  Attended whole = attend_last(set, size, kLength, kLength, empty, queries, keys);
  for (int64_t tokens : {1, 2, 5, 40}) {
    for (int64_t length : {tokens, int64_t{133}, kLength}) {
      if (length < tokens) continue;
      Attended cache = whole;
      // What lies behind the sequence in its buffer is never read.
      for (size_t i = length * size; i < cache.keys.size(); ++i) {
        cache.keys[i] = cache.values[i] = std::numeric_limits<float>::quiet_NaN();
      }
      Attended last = attend_last(set, size, length, tokens, cache, queries, keys);
      CHECK(same_bits(last.output.data(), whole.output.data() + (length - tokens) * kHeads * size, last.output.size()));
    }
  }
}

// All kernels of an instruction set.
void test(const InstructionSet& set) {
  std::mt19937 random(1);
  std::string failure = self_test(set);
  std::printf("%s: self-test: %s\n", set.name, failure.empty() ? "passed" : failure.c_str());
  CHECK(failure.empty());
  for (WeightFormat format : kWeightFormats) {
    test_matmul(set, format, random);
    test_extremes(set, format, random);
    test_any_shape(set, format, random);
    test_fused(set, format, random);
  }
  test_row_functions(set, random);
  for (int64_t size : {16, 64, 80, 128}) test_attention(set, size, random);
  CHECK(set.repeat_products(2) == 2 * set.repeat_products(1));
  std::printf("%s: passed\n", set.name);
}

}  // namespace

int main() {
  for (const InstructionSet* set : instruction_sets()) test(*set);
  test(amx_model_instruction_set());
  return 0;
}
