#include "op_matmul_nbits.h"

#include <string>

#include "parallel_matmul.h"

namespace qtool {
namespace {

enum Input : size_t { kA, kB, kScales, kZeroPoints, kGroupIndex, kBias };

const MatMulKernels* find_kernels(const Weights& w) {
  if (const MatMulKernels* found = find_matmul(selected_instruction_set(), w.bits, w.block_size)) return found;
  std::string valid;
  for (const WeightFormat& format : kWeightFormats) {
    valid += " " + std::to_string(format.bits) + "/" + std::to_string(format.block_size);
  }
  throw ort::Error("bits/block_size is " + std::to_string(w.bits) + "/" + std::to_string(w.block_size) +
                   "; valid:" + valid);
}

template <typename T>
const T* constant(const ort::Api& api, const OrtKernelInfo* info, Input input, const char* name, int type,
                  int64_t elements, bool required) {
  ort::Tensor tensor = api.constant(info, input);
  if (!tensor && !required) return nullptr;
  if (!tensor) throw ort::Error(std::string(name) + " is missing");
  if (tensor.type != type || tensor.elements() != elements) {
    throw ort::Error(std::string(name) + " has type " + std::to_string(tensor.type) + " and " +
                     std::to_string(tensor.elements()) + " elements; valid: type " + std::to_string(type) + ", " +
                     std::to_string(elements) + " elements");
  }
  return tensor.as<const T>();
}

}  // namespace

int MatMulNBits::input_type(size_t index) {
  return index == kB || index == kZeroPoints ? ort::kUint8 : index == kGroupIndex ? ort::kInt32 : ort::kFloat;
}

MatMulNBits::MatMulNBits(const ort::Api& api, const OrtKernelInfo* info) : api_(api) {
  Weights& w = weights_;
  w.depth = api.attribute(info, "K", int64_t{0});
  w.columns = api.attribute(info, "N", int64_t{0});
  w.bits = static_cast<int>(api.attribute(info, "bits", int64_t{4}));
  w.block_size = static_cast<int>(api.attribute(info, "block_size", int64_t{0}));
  kernels_ = find_kernels(w);
  constexpr int64_t kMost = int64_t{1} << 24;
  if (w.depth < 1 || w.columns < 1 || w.depth > kMost || w.columns > kMost) {
    throw ort::Error("K is " + std::to_string(w.depth) + " and N " + std::to_string(w.columns) + "; valid: 1 to " +
                     std::to_string(kMost));
  }
  w.blocks = (w.depth + w.block_size - 1) / w.block_size;
  if (api.constant(info, kGroupIndex)) throw ort::Error("g_idx is given; valid: weights in the order of K");
  w.values = constant<uint8_t>(api, info, kB, "B", ort::kUint8, w.columns * w.column_bytes(), true);
  w.scales = constant<float>(api, info, kScales, "scales", ort::kFloat, w.columns * w.blocks, true);
  w.zero_points =
      constant<uint8_t>(api, info, kZeroPoints, "zero_points", ort::kUint8, w.columns * w.zero_point_bytes(), false);
  w.bias = constant<float>(api, info, kBias, "bias", ort::kFloat, w.columns, false);
}

void MatMulNBits::compute(OrtKernelContext* kernel_context) const {
  ort::Context context(api_, kernel_context);
  ort::Tensor x = context.input(kA);
  if (x.shape.empty() || x.shape.back() != weights_.depth) {
    throw ort::Error("the last size of A must be K, which is " + std::to_string(weights_.depth));
  }
  std::vector<int64_t> shape = x.shape;
  shape.back() = weights_.columns;
  ort::Tensor y = context.output(0, shape);
  int64_t rows = x.elements() / weights_.depth;
  if (rows == 0) return;
  multiply(*kernels_, weights_, x.as<float>(), rows, y.as<float>(),
           [&](int64_t tasks, const std::function<void(int64_t)>& task) { context.parallel_for(tasks, task); });
}

}  // namespace qtool
