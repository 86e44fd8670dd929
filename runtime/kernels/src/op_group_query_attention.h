// The operator GroupQueryAttention: com.microsoft's, for float32 and causal attention without extras.
#pragma once

#include "instruction_sets.h"
#include "ort.h"
#include "parallel_attention.h"

namespace qtool {

class GroupQueryAttention {
 public:
  static constexpr const char* kName = "GroupQueryAttention";
  // query, key, value, past_key, past_value, seqlens_k, total_sequence_length, cos_cache, sin_cache
  static constexpr size_t kInputs = 9;
  static constexpr size_t kOutputs = 3;  // output, present_key, present_value

  static int input_type(size_t index);
  static bool input_required(size_t index);
  static bool output_required(size_t) { return true; }

  // Throws ort::Error if the node asks for what the kernels do not do.
  GroupQueryAttention(const ort::Api& api, const OrtKernelInfo* info);

  void compute(OrtKernelContext* context) const;

 private:
  void read_queries(const ort::Context& context, AttentionProblem& problem) const;
  void read_cache(const ort::Context& context, AttentionProblem& problem) const;
  void read_rotation(const ort::Context& context, AttentionProblem& problem) const;

  ort::Api api_;
  AttentionKernels kernels_;
  int64_t heads_;
  int64_t kv_heads_;
  bool rotary_;
  float scale_;  // 0: one by the root of the heads' size
};

}  // namespace qtool
