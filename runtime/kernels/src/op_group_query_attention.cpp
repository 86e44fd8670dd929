#include "op_group_query_attention.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

namespace qtool {
namespace {

enum Input : size_t { kQuery, kKey, kValue, kPastKey, kPastValue, kLengths, kTotalLength, kCosine, kSine };

// Attributes that change what is computed, and their values without effect.
constexpr std::pair<const char*, int64_t> kFixedIntegers[] = {
    {"local_window_size", -1}, {"rotary_interleaved", 0}, {"smooth_softmax", 0}, {"qk_output", 0}};

void require(bool holds, const std::string& message) {
  if (!holds) throw ort::Error(message);
}

// Tokens that each sequence has already.
std::vector<int64_t> past_lengths(const ort::Tensor& lengths, const ort::Tensor& total, const AttentionProblem& p) {
  require(lengths.elements() == p.sequences && total.elements() == 1,
          "seqlens_k must have an element for each sequence, and total_sequence_length one");
  // As in com.microsoft's operator: a run that brings all tokens is a prompt, whatever the lengths say.
  bool is_prompt = *total.as<const int32_t>() == p.tokens;
  std::vector<int64_t> result(p.sequences);
  for (int64_t i = 0; i < p.sequences; ++i) {
    result[i] = is_prompt ? 0 : lengths.as<const int32_t>()[i] + int64_t{1} - p.tokens;
    require(result[i] >= 0, "seqlens_k[" + std::to_string(i) + "] is too small for the number of new tokens");
  }
  return result;
}

}  // namespace

int GroupQueryAttention::input_type(size_t index) {
  return index == kLengths || index == kTotalLength ? ort::kInt32 : ort::kFloat;
}

bool GroupQueryAttention::input_required(size_t index) {
  return index == kQuery || index == kLengths || index == kTotalLength;
}

GroupQueryAttention::GroupQueryAttention(const ort::Api& api, const OrtKernelInfo* info)
    : api_(api),
      kernels_(selected_instruction_set().attention),
      heads_(api.attribute(info, "num_heads", int64_t{0})),
      kv_heads_(api.attribute(info, "kv_num_heads", int64_t{0})),
      rotary_(api.attribute(info, "do_rotary", int64_t{0}) != 0),
      scale_(api.attribute(info, "scale", 0.0f)) {
  require(kv_heads_ >= 1 && heads_ >= kv_heads_ && heads_ % kv_heads_ == 0 && heads_ <= 1024,
          "num_heads must be a multiple of kv_num_heads, and at most 1024");
  for (auto [name, value] : kFixedIntegers) {
    int64_t given = api.attribute(info, name, value);
    require(given == value, std::string(name) + " is " + std::to_string(given) + "; valid: " + std::to_string(value));
  }
  require(api.attribute(info, "softcap", 0.0f) == 0.0f, "softcap is given; valid: 0");
}

void GroupQueryAttention::compute(OrtKernelContext* kernel_context) const {
  ort::Context context(api_, kernel_context);
  AttentionProblem problem;
  problem.heads = heads_;
  problem.kv_heads = kv_heads_;
  read_queries(context, problem);
  std::vector<int64_t> past = past_lengths(context.input(kLengths), context.input(kTotalLength), problem);
  problem.past = past.data();
  read_cache(context, problem);
  if (rotary_) read_rotation(context, problem);
  problem.scale = scale_ != 0.0f ? scale_ : 1.0f / std::sqrt(static_cast<float>(problem.head_size));
  attend(kernels_, problem,
         [&](int64_t tasks, const std::function<void(int64_t)>& task) { context.parallel_for(tasks, task); });
}

// Queries, keys and values may be three tensors or lie in one, token by token.
void GroupQueryAttention::read_queries(const ort::Context& context, AttentionProblem& p) const {
  ort::Tensor query = context.input(kQuery), key = context.input(kKey), value = context.input(kValue);
  require(query.shape.size() == 3, "query must have three dimensions");
  p.sequences = query.shape[0];
  p.tokens = query.shape[1];
  bool packed = !key;
  require(packed == !value, "key and value must both be given, or none of them");
  int64_t heads = packed ? heads_ + 2 * kv_heads_ : heads_;
  p.head_size = query.shape[2] / heads;
  require(p.head_size * heads == query.shape[2] && p.head_size % kHeadMultiple == 0 && p.head_size > 0,
          "heads must have a multiple of " + std::to_string(kHeadMultiple) + " numbers; query has " +
              std::to_string(query.shape[2]) + " for " + std::to_string(heads) + " heads");
  p.queries = {query.as<const float>(), p.tokens * query.shape[2], query.shape[2]};
  p.keys = p.values = p.queries;
  if (packed) {
    p.keys.data += heads_ * p.head_size;
    p.values.data += (heads_ + kv_heads_) * p.head_size;
  } else {
    std::vector<int64_t> expected{p.sequences, p.tokens, kv_heads_ * p.head_size};
    require(key.shape == expected && value.shape == expected, "key and value do not have the shape of kv_num_heads");
    p.keys = {key.as<const float>(), p.tokens * expected[2], expected[2]};
    p.values = {value.as<const float>(), p.tokens * expected[2], expected[2]};
  }
  std::vector<int64_t> shape{p.sequences, p.tokens, heads_ * p.head_size};
  p.output = context.output(0, shape).as<float>();
}

void GroupQueryAttention::read_cache(const ort::Context& context, AttentionProblem& p) const {
  ort::Tensor past_key = context.input(kPastKey), past_value = context.input(kPastValue);
  int64_t total = *context.input(kTotalLength).as<const int32_t>();
  if (past_key) {
    require(past_key.shape.size() == 4 && past_value && past_key.shape == past_value.shape,
            "past_key and past_value must have the same four dimensions");
    p.past_room = past_key.shape[2];
    require(past_key.shape == std::vector<int64_t>({p.sequences, kv_heads_, p.past_room, p.head_size}),
            "past_key does not have the shape (sequences, kv_num_heads, room, size of a head)");
  }
  p.past_keys = past_key.as<const float>();
  p.past_values = past_value.as<const float>();
  p.present_room = std::max(p.past_room, total);
  for (int64_t i = 0; i < p.sequences; ++i) {
    require(p.past[i] <= p.past_room && p.past[i] + p.tokens <= p.present_room,
            "sequence " + std::to_string(i) + " is longer than its cache");
  }
  std::vector<int64_t> shape{p.sequences, kv_heads_, p.present_room, p.head_size};
  p.present_keys = context.output(1, shape).as<float>();
  p.present_values = context.output(2, shape).as<float>();
  require((p.present_keys == p.past_keys) == (p.present_values == p.past_values),
          "keys and values must both be updated in place, or none of them");
}

void GroupQueryAttention::read_rotation(const ort::Context& context, AttentionProblem& p) const {
  ort::Tensor cosine = context.input(kCosine), sine = context.input(kSine);
  require(cosine && sine && cosine.shape.size() == 2 && cosine.shape == sine.shape,
          "do_rotary needs cos_cache and sin_cache, of the same two dimensions");
  p.cosine = cosine.as<const float>();
  p.sine = sine.as<const float>();
  p.rotary_size = 2 * cosine.shape[1];
  require(p.rotary_size <= p.head_size, "cos_cache has more angles than a head has pairs of numbers");
  for (int64_t i = 0; i < p.sequences; ++i) {
    require(p.past[i] + p.tokens <= cosine.shape[0], "cos_cache has fewer positions than a sequence");
  }
}

}  // namespace qtool
