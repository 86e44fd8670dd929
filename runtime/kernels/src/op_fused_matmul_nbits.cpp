#include "op_fused_matmul_nbits.h"

namespace qtool {
namespace {

enum Input : size_t { kA, kSkip, kNormWeight, kFirstProduct };
enum Part : size_t { kB, kScales, kZeroPoints, kBias, kParts };
enum Output : size_t { kSum, kFirstY };

void require(bool holds, const char* message) {
  if (!holds) throw ort::Error(message);
}

WeightInputs inputs_of(size_t product) {
  size_t first = kFirstProduct + kParts * product;
  std::string number = std::to_string(product + 1);
  return {first + kB,   first + kScales, first + kZeroPoints,  first + kBias,
          "N" + number, "bits" + number, "block_size" + number};
}

}  // namespace

int FusedMatMulNBits::input_type(size_t index) {
  if (index < kFirstProduct) return ort::kFloat;
  size_t part = (index - kFirstProduct) % kParts;
  return part == kB || part == kZeroPoints ? ort::kUint8 : ort::kFloat;
}

bool FusedMatMulNBits::input_required(size_t index) {
  return index == kA || index == kFirstProduct + kB || index == kFirstProduct + kScales;
}

FusedMatMulNBits::FusedMatMulNBits(const ort::Api& api, const OrtKernelInfo* info)
    : api_(api),
      functions_(selected_instruction_set().rows),
      epsilon_(api.attribute(info, "epsilon", 0.0f)),
      gated_(api.attribute(info, "gated", int64_t{0}) != 0) {
  for (size_t i = 0; i < kMostProducts; ++i) {
    WeightInputs inputs = inputs_of(i);
    if (i > 0 && api.attribute(info, inputs.columns.c_str(), int64_t{0}) == 0) break;
    products_.push_back(read_product(api, info, inputs));
  }
  require(!gated_ || (products_.size() == 2 && products_[0].weights.columns == products_[1].weights.columns),
          "gated is 1; valid with two products of the same N");
  norm_weight_ = static_cast<const float*>(
      read_constant(api, info, kNormWeight, "norm_weight", ort::kFloat, products_.front().weights.depth, false));
}

void FusedMatMulNBits::compute(OrtKernelContext* kernel_context) const {
  ort::Context context(api_, kernel_context);
  ort::Tensor x = context.input(kA);
  ProductsProblem problem;
  problem.depth = products_.front().weights.depth;
  problem.rows = count_rows(x, "A", problem.depth);
  problem.x = x.as<const float>();
  problem.norm_weight = norm_weight_;
  problem.epsilon = epsilon_;
  problem.gated = gated_;
  read_sum(context, x, problem);
  std::vector<Product> products = products_;
  for (size_t i = 0; i < (gated_ ? 1 : products.size()); ++i) {
    x.shape.back() = products[i].weights.columns;
    products[i].y = context.output(kFirstY + i, x.shape).as<float>();
  }
  if (problem.rows == 0) return;
  multiply(functions_, problem, products,
           [&](int64_t tasks, const std::function<void(int64_t)>& task) { context.parallel_for(tasks, task); });
}

void FusedMatMulNBits::read_sum(const ort::Context& context, const ort::Tensor& x, ProductsProblem& problem) const {
  ort::Tensor skip = context.input(kSkip);
  if (!skip) return;
  problem.skip_rows = count_rows(skip, "skip", problem.depth);
  require(norm_weight_ != nullptr, "skip is given; valid with norm_weight");
  require(problem.rows == 0 || (problem.skip_rows > 0 && problem.rows % problem.skip_rows == 0),
          "skip must have the shape of A, or that of its last dimensions");
  problem.skip = skip.as<const float>();
  problem.sum = context.output(kSum, x.shape).as<float>();
}

}  // namespace qtool
