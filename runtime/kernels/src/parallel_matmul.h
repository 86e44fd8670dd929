// A whole product: rows are quantized, then tasks of columns (and of rows, if there are many) run in parallel.
#pragma once

#include <functional>

#include "matmul.h"

namespace qtool {

// Calls its argument with 0 to tasks - 1, in any order and on several threads, and waits.
using ParallelFor = std::function<void(int64_t tasks, const std::function<void(int64_t)>& task)>;

// y = x W for `rows` rows of x, each of w.depth numbers, one after the other.
void multiply(const MatMulKernels& kernels, const Weights& w, const float* x, int64_t rows, float* y,
              const ParallelFor& parallel_for);

}  // namespace qtool
