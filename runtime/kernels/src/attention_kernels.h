// The kernel of attention.h, written once for all instruction sets; see matmul_kernels.h.
#pragma once

#include <cstring>
#include <initializer_list>

#include "attention.h"

namespace qtool {

template <class Isa>
class Attention {
  using Ints = typename Isa::Ints;
  using Floats = typename Isa::Floats;

 public:
  static constexpr AttentionKernels kernels() { return {attend, rotate}; }

  static void attend(const AttentionTask& task) {
    int64_t keys = task.limits[task.rows - 1];
    for (int64_t key = 0; key < keys; key += kKeysAtOnce) {
      int64_t end = key + kKeysAtOnce < keys ? key + kKeysAtOnce : keys;
      for (int64_t row = 0; row < task.rows; row += 4) score(task, row, {key, end});
    }
    float factors[kMostQueryRows];
    for (int64_t row = 0; row < task.rows; ++row) factors[row] = soften(scores_of(task, row), task.limits[row]);
    for (int64_t begin = 0; begin < task.head_size; begin += 16 * kVectors) {
      int64_t vectors = (task.head_size - begin) / 16;
      for (int64_t row = 0; row < task.rows; row += kSumRows) {
        int64_t rows = task.rows - row < kSumRows ? task.rows - row : kSumRows;
        if (vectors >= kVectors && rows == kSumRows) {
          sum_values<kSumRows, kVectors>(task, row, begin, factors);
        } else {
          for (int64_t m = row; m < row + rows; ++m) sum_row(task, m, begin, vectors, factors);
        }
      }
    }
  }

  static void rotate(const float* head, const float* cosine, const float* sine, int64_t rotary_size, int64_t head_size,
                     float* out) {
    int64_t half = rotary_size / 2;
    for (int64_t i = 0; i < half; ++i) {
      float first = head[i], second = head[half + i];  // read before writing: `out` may be `head`
      out[i] = first * cosine[i] - second * sine[i];
      out[half + i] = second * cosine[i] + first * sine[i];
    }
    for (int64_t i = rotary_size; i < head_size; ++i) out[i] = head[i];
  }

 private:
  // Keys of a few heads stay in the first or second cache while all query rows meet them.
  static constexpr int64_t kKeysAtOnce = 128;

  // Rows and vectors of sums that are held in registers.
  static constexpr int kSumRows = Isa::kRows;
  static constexpr int kVectors = 4;

  static float* scores_of(const AttentionTask& task, int64_t row) {
    return task.scores + row * score_stride(task.limits[task.rows - 1]);
  }

  // Scores of four rows with the keys of the range; rows and keys that are not there repeat the last one.
  static void score(const AttentionTask& task, int64_t row, Range keys) {
    const float* queries[4];
    float* scores[4];
    int64_t rows = task.rows - row < 4 ? task.rows - row : 4;
    for (int64_t m = 0; m < 4; ++m) {
      queries[m] = task.queries + (row + (m < rows ? m : rows - 1)) * task.head_size;
      scores[m] = scores_of(task, row + (m < rows ? m : rows - 1));
    }
    for (int64_t key = keys.begin; key < keys.end; key += 4) {
      const float* four_keys[4];
      for (int64_t j = 0; j < 4; ++j) {
        int64_t index = key + j < keys.end ? key + j : keys.end - 1;
        four_keys[j] = task.keys + index * task.head_size;
      }
      alignas(64) float products[16];
      Isa::store(products, Isa::multiply(multiply_four(queries, four_keys, task.head_size), Isa::set(task.scale)));
      // The row's memory reaches to a multiple of 16 keys: whole groups of four can be written.
      for (int64_t m = 0; m < rows; ++m) std::memcpy(scores[m] + key, products + 4 * m, 4 * sizeof(float));
    }
  }

  // Dot products of four queries (lanes) and four keys (numbers of a lane).
  static Floats multiply_four(const float* const* queries, const float* const* keys, int64_t size) {
    Floats sums[4][4];
    for (int m = 0; m < 4; ++m) {
      for (int j = 0; j < 4; ++j) sums[m][j] = Isa::zero_floats();
    }
    for (int64_t i = 0; i < size; i += 16) {
      Floats key[4];
      for (int j = 0; j < 4; ++j) key[j] = Isa::load(keys[j] + i);
      for (int m = 0; m < 4; ++m) {
        Floats query = Isa::load(queries[m] + i);
        for (int j = 0; j < 4; ++j) sums[m][j] = Isa::multiply_add(sums[m][j], query, key[j]);
      }
    }
    Floats rows[4];
    for (int m = 0; m < 4; ++m) rows[m] = Isa::sum_in_lanes(sums[m][0], sums[m][1], sums[m][2], sums[m][3]);
    return Isa::sum_lanes_of_each(rows[0], rows[1], rows[2], rows[3]);
  }

  // Replaces scores by exp(score - largest) and returns the reciprocal of their sum.
  static float soften(float* scores, int64_t count) {
    constexpr float kLowest = -3.402823466e38f;
    int64_t padded = score_stride(count);
    for (int64_t j = count; j < padded; ++j) scores[j] = kLowest;
    Floats largest_of = Isa::load(scores);
    for (int64_t j = 16; j < padded; j += 16) largest_of = Isa::maximum(largest_of, Isa::load(scores + j));
    Floats largest = Isa::set(-Isa::largest(largest_of));
    Floats sum = Isa::zero_floats();
    for (int64_t j = 0; j < padded; j += 16) {
      Floats weights = exponential(Isa::add(Isa::load(scores + j), largest));
      Isa::store(scores + j, weights);
      // Padding stays out of the sum: its exponential is 0 only if the largest score is an ordinary one.
      for (int64_t i = j < count - 16 ? j + 16 : count; i < j + 16; ++i) scores[i] = 0;
      sum = Isa::add(sum, Isa::load(scores + j));
    }
    return 1.0f / Isa::sum(sum);
  }

  // exp(x) for x <= 0, relative error below 1e-6, and 0 below -87. Cody and Waite's reduction to
  // |r| <= log(2) / 2, then the Taylor polynomial of degree 7.
  static Floats exponential(Floats x) {
    Ints power = Isa::round(Isa::multiply(x, Isa::set(1.44269504f)));
    Floats whole = Isa::to_floats(power);
    Floats r = Isa::multiply_add(x, whole, Isa::set(-0.693359375f));
    r = Isa::multiply_add(r, whole, Isa::set(2.12194440e-4f));
    Floats y = Isa::set(1.0f / 5040);
    for (float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
      y = Isa::multiply_add(Isa::set(factor), y, r);
    }
    return Isa::zero_if_less(Isa::multiply(y, Isa::power_of_two(power)), x, -87.0f);
  }

  // y[row] = factor * sum over keys of weight * value, for some rows and vectors of the head.
  template <int kRows, int kCount>
  static void sum_values(const AttentionTask& task, int64_t row, int64_t begin, const float* factors) {
    Floats sums[kRows][kCount];
    for (int m = 0; m < kRows; ++m) {
      for (int v = 0; v < kCount; ++v) sums[m][v] = Isa::zero_floats();
    }
    const float* weights[kRows];
    for (int m = 0; m < kRows; ++m) weights[m] = scores_of(task, row + m);
    const float* value = task.values + begin;
    int64_t common = task.limits[row];
    for (int64_t j = 0; j < common; ++j, value += task.head_size) {
      Floats vectors[kCount];
      for (int v = 0; v < kCount; ++v) vectors[v] = Isa::load(value + 16 * v);
      for (int m = 0; m < kRows; ++m) {
        Floats weight = Isa::set(weights[m][j]);
        for (int v = 0; v < kCount; ++v) sums[m][v] = Isa::multiply_add(sums[m][v], weight, vectors[v]);
      }
    }
    for (int m = 0; m < kRows; ++m) {
      // What only some of the rows see: not even a weight of 0 may meet it, for it may be infinite.
      const float* later = value;
      for (int64_t j = common; j < task.limits[row + m]; ++j, later += task.head_size) {
        Floats weight = Isa::set(weights[m][j]);
        for (int v = 0; v < kCount; ++v) sums[m][v] = Isa::multiply_add(sums[m][v], weight, Isa::load(later + 16 * v));
      }
      Floats factor = Isa::set(factors[row + m]);
      for (int v = 0; v < kCount; ++v) {
        Isa::store(task.outputs[row + m] + begin + 16 * v, Isa::multiply(sums[m][v], factor));
      }
    }
  }

  static void sum_row(const AttentionTask& task, int64_t row, int64_t begin, int64_t vectors, const float* factors) {
    if (vectors >= kVectors) return sum_values<1, kVectors>(task, row, begin, factors);
    for (int64_t v = 0; v < vectors; ++v) sum_values<1, 1>(task, row, begin + 16 * v, factors);
  }
};

}  // namespace qtool
