// Whole products: rows are quantized, then tasks of columns (and of rows, if there are many) run in parallel.
//
// Several products of the same rows are one piece of work, with what lies before and behind them in a model:
// a residual sum and its normalization, and a gate. Nothing of it waits for all threads to meet.
#pragma once

#include <vector>

#include "matmul.h"
#include "parallel.h"
#include "row_functions.h"

namespace qtool {

// One product of the rows.
struct Product {
  const MatMulKernels* kernels = nullptr;
  Weights weights;
  float* y = nullptr;  // (rows, weights.columns)
};

// What is computed of `rows` rows of x, each of `depth` numbers, one after the other.
struct ProductsProblem {
  int64_t rows = 0;
  int64_t depth = 0;
  const float* x = nullptr;

  // With a weight, (depth), the products are of the normalized sums of x and skip.
  const float* norm_weight = nullptr;
  float epsilon = 0;
  const float* skip = nullptr;  // (skip_rows, depth), again and again, or null
  int64_t skip_rows = 0;
  float* sum = nullptr;  // (rows, depth): where the sums of x and skip go, or null

  // Of two products of the same shape, the second one's y is not written: the first one's is y of
  // row_functions.h, with the first product as the gate.
  bool gated = false;
};

void multiply(const RowFunctions& functions, const ProductsProblem& problem, const std::vector<Product>& products,
              const ParallelFor& parallel_for);

}  // namespace qtool
