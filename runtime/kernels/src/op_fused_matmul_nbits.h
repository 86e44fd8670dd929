// The operator FusedMatMulNBits: some MatMulNBits of the same rows, with what lies before and behind them.
//
// Inputs, of which all but A, B1 and scales1 may be left out:
//     A, skip, norm_weight, then for each product i B<i>, scales<i>, zero_points<i>, bias<i>
// Outputs, of which all but Y1 may be left out:
//     sum, Y1, Y2, Y3
// Attributes: epsilon, gated (0 or 1), K, and for each product N<i>, bits<i>, block_size<i>; i from 1 on.
//
// With norm_weight, the products are of RMSNorm(A + skip), and A + skip is the output `sum`. With `gated` there
// are two products, and Y1 = SiLU(first) * second.
#pragma once

#include <vector>

#include "op_weights.h"

namespace qtool {

class FusedMatMulNBits {
 public:
  static constexpr size_t kMostProducts = 3;
  static constexpr const char* kName = "FusedMatMulNBits";
  static constexpr size_t kInputs = 3 + 4 * kMostProducts;
  static constexpr size_t kOutputs = 1 + kMostProducts;

  static int input_type(size_t index);
  static bool input_required(size_t index);
  static bool output_required(size_t index) { return index == 1; }

  // Throws ort::Error if the node is not one that the kernels take.
  FusedMatMulNBits(const ort::Api& api, const OrtKernelInfo* info);

  void compute(OrtKernelContext* context) const;

 private:
  void read_sum(const ort::Context& context, const ort::Tensor& x, ProductsProblem& problem) const;

  ort::Api api_;
  const RowFunctions& functions_;
  std::vector<Product> products_;
  const float* norm_weight_ = nullptr;
  float epsilon_;
  bool gated_;
};

}  // namespace qtool
