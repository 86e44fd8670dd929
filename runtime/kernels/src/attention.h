// Attention of a few query heads over the keys and values of one of their group (grouped-query attention).
//
// For one query row q and the keys 0 to limit - 1 of its sequence:
//
//     score[j] = scale * dot(q, key[j])
//     y        = sum over j of exp(score[j] - max) * value[j] / sum over j of exp(score[j] - max)
//
// Sums over j are taken from key 0 on in a fixed order. So a row's result is the same bits whichever other
// rows are computed with it: one token, drafts to verify, or a prompt.
#pragma once

#include <cstdint>

#include "matmul.h"

namespace qtool {

// Query rows that are worked on together; keys and values are read once for all of them.
constexpr int64_t kMostQueryRows = 16;

// Sizes of heads are multiples of this.
constexpr int64_t kHeadMultiple = 16;

struct AttentionTask {
  int64_t rows = 0;                 // at most kMostQueryRows
  const float* queries = nullptr;   // (rows, head_size)
  const int64_t* limits = nullptr;  // (rows): how many keys each row sees; never falling
  const float* keys = nullptr;      // (limits[rows - 1], head_size)
  const float* values = nullptr;    // likewise
  int64_t head_size = 0;
  float scale = 1;
  float* const* outputs = nullptr;  // (rows): head_size numbers each
  float* scores = nullptr;          // room for rows * score_stride(limits[rows - 1])
};

// Numbers between the scores of one row and those of the next.
constexpr int64_t score_stride(int64_t keys) { return (keys + 15) / 16 * 16; }

// The kernel of one instruction set.
struct AttentionKernels {
  void (*attend)(const AttentionTask& task);

  // Turns `head` by the angles of a position: the first half of `rotary_size` with the second. The rest stays.
  void (*rotate)(const float* head, const float* cosine, const float* sine, int64_t rotary_size, int64_t head_size,
                 float* out);
};

}  // namespace qtool
