#include "op_weights.h"

namespace qtool {
namespace {

const MatMulKernels* find_kernels(const Weights& w) {
  if (const MatMulKernels* found = find_matmul(selected_instruction_set(), w.bits, w.block_size)) return found;
  std::string valid;
  for (const WeightFormat& format : kWeightFormats) {
    valid += " " + std::to_string(format.bits) + "/" + std::to_string(format.block_size);
  }
  throw ort::Error("bits/block_size is " + std::to_string(w.bits) + "/" + std::to_string(w.block_size) +
                   "; valid:" + valid);
}

}  // namespace

const void* read_constant(const ort::Api& api, const OrtKernelInfo* info, size_t input, const std::string& name,
                          int type, int64_t elements, bool required) {
  ort::Tensor tensor = api.constant(info, input);
  if (!tensor && !required) return nullptr;
  if (!tensor) throw ort::Error(name + " is missing");
  if (tensor.type != type || tensor.elements() != elements) {
    throw ort::Error(name + " has type " + std::to_string(tensor.type) + " and " + std::to_string(tensor.elements()) +
                     " elements; valid: type " + std::to_string(type) + ", " + std::to_string(elements) + " elements");
  }
  return tensor.data;
}

Product read_product(const ort::Api& api, const OrtKernelInfo* info, const WeightInputs& inputs) {
  Product product;
  Weights& w = product.weights;
  w.depth = api.attribute(info, "K", int64_t{0});
  w.columns = api.attribute(info, inputs.columns.c_str(), int64_t{0});
  w.bits = static_cast<int>(api.attribute(info, inputs.bits.c_str(), int64_t{4}));
  w.block_size = static_cast<int>(api.attribute(info, inputs.block_size.c_str(), int64_t{0}));
  product.kernels = find_kernels(w);
  constexpr int64_t kMost = int64_t{1} << 24;
  if (w.depth < 1 || w.columns < 1 || w.depth > kMost || w.columns > kMost) {
    throw ort::Error("K is " + std::to_string(w.depth) + " and " + inputs.columns + " " + std::to_string(w.columns) +
                     "; valid: 1 to " + std::to_string(kMost));
  }
  w.blocks = (w.depth + w.block_size - 1) / w.block_size;
  auto read = [&](size_t input, const char* name, int type, int64_t elements, bool required) {
    return read_constant(api, info, input, name, type, elements, required);
  };
  w.values = static_cast<const uint8_t*>(read(inputs.values, "B", ort::kUint8, w.columns * w.column_bytes(), true));
  w.scales = static_cast<const float*>(read(inputs.scales, "scales", ort::kFloat, w.columns * w.blocks, true));
  w.zero_points = static_cast<const uint8_t*>(
      read(inputs.zero_points, "zero_points", ort::kUint8, w.columns * w.zero_point_bytes(), false));
  w.bias = static_cast<const float*>(read(inputs.bias, "bias", ort::kFloat, w.columns, false));
  return product;
}

int64_t count_rows(const ort::Tensor& x, const char* name, int64_t depth) {
  if (x.shape.empty() || x.shape.back() != depth) {
    throw ort::Error(std::string("the last size of ") + name + " must be K, which is " + std::to_string(depth));
  }
  return x.elements() / depth;
}

}  // namespace qtool
