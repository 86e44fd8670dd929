// The operator MatMulNBits: com.microsoft's, for float32 and the formats that there are kernels for.
#pragma once

#include "op_weights.h"

namespace qtool {

class MatMulNBits {
 public:
  static constexpr const char* kName = "MatMulNBits";
  static constexpr size_t kInputs = 6;  // A, B, scales, zero_points, g_idx, bias
  static constexpr size_t kOutputs = 1;

  static int input_type(size_t index);
  static bool input_required(size_t index) { return index < 3; }
  static bool output_required(size_t) { return true; }

  // Throws ort::Error if the node is not one that the kernels take.
  MatMulNBits(const ort::Api& api, const OrtKernelInfo* info);

  void compute(OrtKernelContext* context) const;

 private:
  ort::Api api_;
  const RowFunctions& functions_;
  Product product_;
};

}  // namespace qtool
