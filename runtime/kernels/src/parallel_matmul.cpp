#include "parallel_matmul.h"

#include <algorithm>
#include <memory>

#include "scratch.h"

namespace qtool {
namespace {

// From this number of rows on, unpacking the weights first is faster than streaming through them.
constexpr int64_t kManyRows = 32;

// Bytes of weights in a task of few rows: some microseconds of reading, so that threads end together.
constexpr int64_t kTaskBytes = 64 << 10;

constexpr size_t round_up(size_t size) { return (size + kVectorBytes - 1) / kVectorBytes * kVectorBytes; }

QuantizedRows reserve_rows(Scratch& scratch, const Weights& w, int64_t rows) {
  QuantizedRows result;
  result.rows = rows;
  result.groups = w.groups();
  result.group_values = kGroup * w.block_size;
  size_t values = round_up(rows * result.groups * result.group_values);
  size_t blocks = round_up(rows * result.groups * kGroup * sizeof(float));
  unsigned char* memory = scratch.reserve(values + 2 * blocks);
  result.values = reinterpret_cast<int8_t*>(memory);
  result.scales = reinterpret_cast<float*>(memory + values);
  result.negative_sums = reinterpret_cast<int32_t*>(memory + values + blocks);
  return result;
}

void multiply_few(const MatMulKernels& kernels, const Weights& w, const QuantizedRows& x, Output y,
                  const ParallelFor& parallel_for) {
  int64_t columns = std::max<int64_t>(4, kTaskBytes / w.column_bytes() / 4 * 4);
  parallel_for(divide_up(w.columns, columns), [&](int64_t task) {
    Range range{task * columns, std::min(w.columns, (task + 1) * columns)};
    kernels.few_rows(w, x, range, y);
  });
}

void multiply_many(const MatMulKernels& kernels, const Weights& w, const QuantizedRows& x, Output y,
                   const ParallelFor& parallel_for) {
  int64_t column_tasks = divide_up(w.columns, kTileColumns);
  int64_t row_tasks = divide_up(x.rows, kTileRows);
  parallel_for(column_tasks * row_tasks, [&](int64_t task) {
    static thread_local std::unique_ptr<TileBuffer> buffer;
    if (!buffer) buffer = std::make_unique<TileBuffer>();
    int64_t row = task / column_tasks * kTileRows, column = task % column_tasks * kTileColumns;
    kernels.many_rows(w, x, {row, std::min(x.rows, row + kTileRows)},
                      {column, std::min(w.columns, column + kTileColumns)}, y, *buffer);
  });
}

}  // namespace

void multiply(const MatMulKernels& kernels, const Weights& w, const float* x, int64_t rows, float* y,
              const ParallelFor& parallel_for) {
  static thread_local Scratch scratch;
  QuantizedRows quantized = reserve_rows(scratch, w, rows);
  if (rows < kManyRows) {
    for (int64_t row = 0; row < rows; ++row) kernels.quantize_row(x + row * w.depth, w.depth, quantized, row);
    multiply_few(kernels, w, quantized, {y, w.columns}, parallel_for);
  } else {
    parallel_for(divide_up(rows, 8), [&](int64_t task) {
      for (int64_t row = 8 * task; row < std::min(rows, 8 * task + 8); ++row) {
        kernels.quantize_row(x + row * w.depth, w.depth, quantized, row);
      }
    });
    multiply_many(kernels, w, quantized, {y, w.columns}, parallel_for);
  }
}

}  // namespace qtool
