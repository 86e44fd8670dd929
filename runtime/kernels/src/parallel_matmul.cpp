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

// Rows of x as each product's format has them; products of one format share theirs.
class Inputs {
 public:
  Inputs(const ProductsProblem& problem, const std::vector<Product>& products, Scratch& scratch) : p_(problem) {
    size_t size = 0;
    for (const Product& product : products) {
      auto same = [&](const Format& format) { return format.kernels == product.kernels; };
      auto found = std::find_if(formats_.begin(), formats_.end(), same);
      of_product_.push_back(found - formats_.begin());
      if (found != formats_.end()) continue;
      formats_.push_back({product.kernels, shape(product.weights, problem.rows)});
      size += bytes(formats_.back().rows);
    }
    unsigned char* memory = scratch.reserve(size);
    for (Format& format : formats_) memory = place(format.rows, memory);
  }

  // Adds, normalizes and quantizes a row.
  void prepare(const RowFunctions& functions, int64_t row) const {
    static thread_local Scratch scratch;
    const float* x = p_.x + row * p_.depth;
    if (p_.norm_weight != nullptr) {
      auto* normalized = reinterpret_cast<float*>(scratch.reserve(p_.depth * sizeof(float)));
      const float* skip = p_.skip ? p_.skip + row % p_.skip_rows * p_.depth : nullptr;
      float* sum = p_.sum ? p_.sum + row * p_.depth : normalized;
      functions.normalize(x, skip, p_.norm_weight, p_.epsilon, p_.depth, sum, normalized);
      x = normalized;
    }
    for (const Format& format : formats_) format.kernels->quantize_row(x, p_.depth, format.rows, row);
  }

  const QuantizedRows& of(size_t product) const { return formats_[of_product_[product]].rows; }

 private:
  struct Format {
    const MatMulKernels* kernels;
    QuantizedRows rows;
  };

  static QuantizedRows shape(const Weights& w, int64_t rows) {
    QuantizedRows result;
    result.rows = rows;
    result.groups = w.groups();
    result.group_values = kGroup * w.block_size;
    result.for_many = rows >= kManyRows;
    return result;
  }

  // Rows that there is room for: a tile may reach beyond the last one.
  static int64_t room(const QuantizedRows& x) { return x.rows + (x.for_many ? kMostTileRows - 1 : 0); }
  static size_t value_bytes(const QuantizedRows& x) { return round_up(room(x) * x.groups * x.group_values); }
  static size_t block_bytes(const QuantizedRows& x) { return round_up(room(x) * x.groups * kGroup * sizeof(float)); }
  static size_t bytes(const QuantizedRows& x) { return value_bytes(x) + 2 * block_bytes(x); }

  static unsigned char* place(QuantizedRows& x, unsigned char* memory) {
    x.values = reinterpret_cast<int8_t*>(memory);
    x.scales = reinterpret_cast<float*>(memory + value_bytes(x));
    x.negative_sums = reinterpret_cast<int32_t*>(memory + value_bytes(x) + block_bytes(x));
    // What rows that do not exist give is computed and thrown away.
    for (int64_t row = x.rows; row < room(x); ++row) {
      std::fill_n(x.row_values(row), x.groups * x.group_values, int8_t{0});
      std::fill_n(x.row_scales(row), x.groups * kGroup, 0.0f);
      std::fill_n(x.row_negative_sums(row), x.groups * kGroup, 0);
    }
    return memory + bytes(x);
  }

  const ProductsProblem& p_;
  std::vector<Format> formats_;
  std::vector<size_t> of_product_;
};

// The columns of some matrices, cut into tasks.
class ColumnTasks {
 public:
  void add(int64_t columns, int64_t step) {
    parts_.push_back({columns, step, count_});
    count_ += divide_up(columns, step);
  }

  int64_t count() const { return count_; }

  struct Task {
    size_t matrix;
    Range columns;
  };

  Task operator[](int64_t task) const {
    size_t i = parts_.size() - 1;
    while (parts_[i].first_task > task) --i;
    int64_t begin = (task - parts_[i].first_task) * parts_[i].step;
    return {i, {begin, std::min(parts_[i].columns, begin + parts_[i].step)}};
  }

 private:
  struct Part {
    int64_t columns, step, first_task;
  };
  std::vector<Part> parts_;
  int64_t count_ = 0;
};

// A problem's products as tasks. Its parts are the products, or, where they make a gate, both together.
class Work {
 public:
  Work(const RowFunctions& functions, const ProductsProblem& problem, const std::vector<Product>& products)
      : functions_(functions), p_(problem), products_(products), inputs_(problem, products, scratch()) {}

  void few_rows(const ParallelFor& parallel_for) const {
    for (int64_t row = 0; row < p_.rows; ++row) inputs_.prepare(functions_, row);
    ColumnTasks tasks;
    for_parts([&](size_t i, int64_t column_bytes) {
      tasks.add(columns(i), std::max<int64_t>(4, kTaskBytes / column_bytes / 4 * 4));
    });
    parallel_for(tasks.count(), [&](int64_t task) {
      static thread_local Scratch scratch;
      ColumnTasks::Task part = tasks[task];
      Output y = output(part.matrix, 0, part.columns);
      few_rows(part.matrix, part.columns, y);
      if (!p_.gated) return;
      size_t bytes = p_.rows * part.columns.size() * sizeof(float);
      Output up{reinterpret_cast<float*>(scratch.reserve(bytes)), part.columns.size()};
      few_rows(1, part.columns, up);
      gate(y, up, p_.rows, part.columns.size());
    });
  }

  void many_rows(const ParallelFor& parallel_for) const {
    parallel_for(divide_up(p_.rows, 8), [&](int64_t task) {
      for (int64_t row = 8 * task; row < std::min(p_.rows, 8 * task + 8); ++row) inputs_.prepare(functions_, row);
    });
    ColumnTasks tasks;
    for_parts([&](size_t i, int64_t) { tasks.add(columns(i), kTileColumns); });
    parallel_for(tasks.count() * divide_up(p_.rows, kTileRows), [&](int64_t task) {
      static thread_local std::unique_ptr<TileBuffer> buffer;
      if (!buffer) buffer = std::make_unique<TileBuffer>();
      ColumnTasks::Task part = tasks[task % tasks.count()];
      int64_t row = task / tasks.count() * kTileRows;
      Range rows{row, std::min(p_.rows, row + kTileRows)};
      Output y = output(part.matrix, row, part.columns);
      many_rows(part.matrix, rows, part.columns, y, *buffer);
      if (!p_.gated) return;
      Output up{buffer->up, kTileColumns};
      many_rows(1, rows, part.columns, up, *buffer);
      gate(y, up, rows.size(), part.columns.size());
    });
  }

 private:
  // Memory of the thread that multiplies, for the whole of a problem.
  static Scratch& scratch() {
    static thread_local Scratch scratch;
    return scratch;
  }

  int64_t columns(size_t i) const { return products_[i].weights.columns; }
  Output output(size_t i, int64_t row, Range range) const {
    return {products_[i].y + row * columns(i) + range.begin, columns(i)};
  }

  void few_rows(size_t i, Range range, Output y) const {
    products_[i].kernels->few_rows(products_[i].weights, inputs_.of(i), range, y);
  }
  void many_rows(size_t i, Range rows, Range range, Output y, TileBuffer& buffer) const {
    products_[i].kernels->many_rows(products_[i].weights, inputs_.of(i), rows, range, y, buffer);
  }

  void gate(Output y, Output up, int64_t rows, int64_t count) const {
    for (int64_t row = 0; row < rows; ++row) {
      functions_.gate(y.data + row * y.stride, up.data + row * up.stride, count);
    }
  }

  // Calls `function` with the first product of each part, and the bytes of a column of the part.
  template <typename Function>
  void for_parts(Function function) const {
    for (size_t i = 0; i < (p_.gated ? 1 : products_.size()); ++i) {
      int64_t column_bytes = 0;
      for (size_t j = i; j < (p_.gated ? 2 : i + 1); ++j) column_bytes += products_[j].weights.column_bytes();
      function(i, column_bytes);
    }
  }

  const RowFunctions& functions_;
  const ProductsProblem& p_;
  const std::vector<Product>& products_;
  Inputs inputs_;
};

}  // namespace

void multiply(const RowFunctions& functions, const ProductsProblem& problem, const std::vector<Product>& products,
              const ParallelFor& parallel_for) {
  Work work(functions, problem, products);
  if (problem.rows < kManyRows) {
    work.few_rows(parallel_for);
  } else {
    work.many_rows(parallel_for);
  }
}

}  // namespace qtool
