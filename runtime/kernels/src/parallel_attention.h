// Attention of a whole layer: rotation, the KV cache, and all heads of all sequences in parallel.
#pragma once

#include "attention.h"
#include "parallel.h"

namespace qtool {

// A tensor of rows of heads: head h of token s of sequence b is at data[b * sequence + s * token + h * head_size].
struct Heads {
  const float* data = nullptr;
  int64_t sequence = 0;
  int64_t token = 0;
};

// One layer's attention; sizes in numbers, not bytes.
struct AttentionProblem {
  int64_t sequences = 0;
  int64_t tokens = 0;  // new ones of each sequence
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_size = 0;
  float scale = 1;

  Heads queries, keys, values;  // of the new tokens

  const int64_t* past = nullptr;     // (sequences): tokens that each sequence has already
  const float* past_keys = nullptr;  // (sequences, kv_heads, past_room, head_size)
  const float* past_values = nullptr;
  int64_t past_room = 0;
  float* present_keys = nullptr;  // (sequences, kv_heads, present_room, head_size); may be the past ones
  float* present_values = nullptr;
  int64_t present_room = 0;

  // Angles of positions, (positions, rotary_size / 2); null: heads are not rotated.
  const float* cosine = nullptr;
  const float* sine = nullptr;
  int64_t rotary_size = 0;

  float* output = nullptr;  // (sequences, tokens, heads, head_size)
};

// Appends the new keys and values to the cache, and attends.
void attend(const AttentionKernels& kernels, const AttentionProblem& problem, const ParallelFor& parallel_for);

}  // namespace qtool
