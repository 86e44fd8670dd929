// A whole product: rows are quantized, then tasks of columns (and of rows, if there are many) run in parallel.
#pragma once

#include "matmul.h"
#include "parallel.h"

namespace qtool {

// y = x W for `rows` rows of x, each of w.depth numbers, one after the other.
void multiply(const MatMulKernels& kernels, const Weights& w, const float* x, int64_t rows, float* y,
              const ParallelFor& parallel_for);

}  // namespace qtool
