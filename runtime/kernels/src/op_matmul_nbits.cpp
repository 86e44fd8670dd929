#include "op_matmul_nbits.h"

namespace qtool {
namespace {

enum Input : size_t { kA, kB, kScales, kZeroPoints, kGroupIndex, kBias };

}  // namespace

int MatMulNBits::input_type(size_t index) {
  return index == kB || index == kZeroPoints ? ort::kUint8 : index == kGroupIndex ? ort::kInt32 : ort::kFloat;
}

MatMulNBits::MatMulNBits(const ort::Api& api, const OrtKernelInfo* info)
    : api_(api),
      functions_(selected_instruction_set().rows),
      product_(read_product(api, info, {kB, kScales, kZeroPoints, kBias})) {
  if (api.constant(info, kGroupIndex)) throw ort::Error("g_idx is given; valid: weights in the order of K");
}

void MatMulNBits::compute(OrtKernelContext* kernel_context) const {
  ort::Context context(api_, kernel_context);
  ort::Tensor x = context.input(kA);
  ProductsProblem problem;
  problem.depth = product_.weights.depth;
  problem.rows = count_rows(x, "A", problem.depth);
  problem.x = x.as<const float>();
  x.shape.back() = product_.weights.columns;
  Product product = product_;
  product.y = context.output(0, x.shape).as<float>();
  if (problem.rows == 0) return;
  multiply(functions_, problem, {product},
           [&](int64_t tasks, const std::function<void(int64_t)>& task) { context.parallel_for(tasks, task); });
}

}  // namespace qtool
