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

#include "instruction_sets.h"
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

// Close to the exact product, and the same bits for any number of rows and threads.
void test_matmul(const InstructionSet& set, WeightFormat format, std::mt19937& random) {
  const MatMulKernels& kernels = *find_matmul(set, format.bits, format.block_size);
  for (int64_t depth : {format.block_size - 3, 4 * format.block_size, 9 * format.block_size + 1}) {
    Matrix matrix(format, 43, depth, random);
    const Weights& w = matrix.weights;
    constexpr int64_t kRows = 150;
    std::vector<float> x = numbers(kRows * depth, random), y(kRows * w.columns);
    multiply(kernels, w, x.data(), kRows, y.data(), on_threads(3));
    double error = 0, size = 0;
    for (int64_t n = 0; n < w.columns; ++n) {
      error += std::pow(y[n] - exact(w, x.data(), n), 2);
      size += std::pow(exact(w, x.data(), n), 2);
    }
    CHECK(error < 1e-3 * size);  // int8 activations: about one part in 200
    for (int64_t rows : {1, 2, 3, 5, 31, 33}) {
      std::vector<float> fewer(rows * w.columns);
      const float* first = x.data() + (kRows - rows) * depth;
      multiply(kernels, w, first, rows, fewer.data(), on_threads(2));
      CHECK(same_bits(fewer.data(), y.data() + (kRows - rows) * w.columns, fewer.size()));
    }
  }
}

// What is not a number spoils its own row and no other; numbers near the limits do no harm.
void test_extremes(const InstructionSet& set, WeightFormat format, std::mt19937& random) {
  const MatMulKernels& kernels = *find_matmul(set, format.bits, format.block_size);
  Matrix matrix(format, 8, 5 * format.block_size, random);
  const Weights& w = matrix.weights;
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const float values[] = {nan, infinity, -infinity, 0.0f, 1e-45f, 1e-38f, 3e38f, -3e38f};
  std::vector<float> x = numbers(9 * w.depth, random), y(9 * w.columns), alone(w.columns);
  for (int64_t row = 0; row < 8; ++row) x[row * w.depth + 7] = values[row];
  multiply(kernels, w, x.data(), 9, y.data(), on_threads(1));
  for (int64_t n = 0; n < w.columns; ++n) {
    for (int64_t row : {0, 1, 2}) CHECK(std::isnan(y[row * w.columns + n]));
    for (int64_t row : {3, 4, 5}) CHECK(std::isfinite(y[row * w.columns + n]));
  }
  multiply(kernels, w, x.data() + 8 * w.depth, 1, alone.data(), on_threads(1));
  CHECK(same_bits(alone.data(), y.data() + 8 * w.columns, alone.size()));
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

}  // namespace

int main() {
  for (const InstructionSet* set : instruction_sets()) {
    std::mt19937 random(1);
    std::string failure = self_test(*set);
    std::printf("%s: self-test: %s\n", set->name, failure.empty() ? "passed" : failure.c_str());
    CHECK(failure.empty());
    for (WeightFormat format : kWeightFormats) {
      test_matmul(*set, format, random);
      test_extremes(*set, format, random);
    }
    for (int64_t size : {16, 64, 80, 128}) test_attention(*set, size, random);
    std::printf("%s: passed\n", set->name);
  }
  return 0;
}
