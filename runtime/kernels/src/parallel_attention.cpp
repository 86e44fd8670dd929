#include "parallel_attention.h"

#include <algorithm>
#include <cstring>

#include "scratch.h"

namespace qtool {
namespace {

// Appends the new keys and values of one head of one sequence.
void append(const AttentionKernels& kernels, const AttentionProblem& p, int64_t sequence, int64_t kv_head) {
  int64_t past = p.past[sequence], size = p.head_size;
  int64_t head = sequence * p.kv_heads + kv_head;
  float* keys = p.present_keys + head * p.present_room * size;
  float* values = p.present_values + head * p.present_room * size;
  if (p.present_keys != p.past_keys && past > 0) {
    std::memcpy(keys, p.past_keys + head * p.past_room * size, past * size * sizeof(float));
    std::memcpy(values, p.past_values + head * p.past_room * size, past * size * sizeof(float));
  }
  for (int64_t token = 0; token < p.tokens; ++token) {
    int64_t position = past + token;
    const float* key = p.keys.data + sequence * p.keys.sequence + token * p.keys.token + kv_head * size;
    const float* value = p.values.data + sequence * p.values.sequence + token * p.values.token + kv_head * size;
    if (p.cosine != nullptr) {
      int64_t angles = position * (p.rotary_size / 2);
      kernels.rotate(key, p.cosine + angles, p.sine + angles, p.rotary_size, size, keys + position * size);
    } else {
      std::memcpy(keys + position * size, key, size * sizeof(float));
    }
    std::memcpy(values + position * size, value, size * sizeof(float));
  }
}

// The query rows `rows` of all those that share a head of keys, in the order of tokens, then of heads.
void attend_rows(const AttentionKernels& kernels, const AttentionProblem& p, int64_t sequence, int64_t kv_head,
                 Range rows) {
  static thread_local Scratch scratch;
  int64_t group = p.heads / p.kv_heads, size = p.head_size, past = p.past[sequence];
  int64_t keys = past + (rows.end - 1) / group + 1;
  int64_t count = rows.size();
  auto* memory =
      reinterpret_cast<float*>(scratch.reserve(sizeof(float) * count * (score_stride(keys) + score_stride(size))));
  float* queries = memory + count * score_stride(keys);
  int64_t limits[kMostQueryRows];
  float* outputs[kMostQueryRows];
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    int64_t token = row / group, head = kv_head * group + row % group, i = row - rows.begin;
    const float* query = p.queries.data + sequence * p.queries.sequence + token * p.queries.token + head * size;
    if (p.cosine != nullptr) {
      int64_t angles = (past + token) * (p.rotary_size / 2);
      kernels.rotate(query, p.cosine + angles, p.sine + angles, p.rotary_size, size, queries + i * size);
    } else {
      std::memcpy(queries + i * size, query, size * sizeof(float));
    }
    limits[i] = past + token + 1;
    outputs[i] = p.output + ((sequence * p.tokens + token) * p.heads + head) * size;
  }
  int64_t cached = (sequence * p.kv_heads + kv_head) * p.present_room * size;
  AttentionTask task;
  task.rows = count;
  task.queries = queries;
  task.limits = limits;
  task.keys = p.present_keys + cached;
  task.values = p.present_values + cached;
  task.head_size = size;
  task.scale = p.scale;
  task.outputs = outputs;
  task.scores = memory;
  kernels.attend(task);
}

}  // namespace

void attend(const AttentionKernels& kernels, const AttentionProblem& p, const ParallelFor& parallel_for) {
  int64_t caches = p.sequences * p.kv_heads;
  int64_t rows = p.tokens * (p.heads / p.kv_heads);
  // One token leaves few rows: fewer of them in a task, so that there are tasks for several threads.
  int64_t task_rows = p.tokens == 1 ? 4 : kMostQueryRows;
  int64_t tasks = divide_up(rows, task_rows);
  for (int64_t i = 0; i < caches && p.tokens == 1; ++i) append(kernels, p, i / p.kv_heads, i % p.kv_heads);
  if (p.tokens > 1) {
    parallel_for(caches, [&](int64_t i) { append(kernels, p, i / p.kv_heads, i % p.kv_heads); });
  }
  parallel_for(caches * tasks, [&](int64_t i) {
    // The rows with most keys first: short tasks at the end leave no thread without work for long.
    int64_t cache = i % caches, first = (tasks - 1 - i / caches) * task_rows;
    attend_rows(kernels, p, cache / p.kv_heads, cache % p.kv_heads, {first, std::min(rows, first + task_rows)});
  });
}

}  // namespace qtool
