// What happens to a row between products: the residual sum and its normalization, and the gate.
//
//     sum[i]  = x[i] + skip[i]
//     out[i]  = sum[i] * (1 / sqrt(mean of sum[j]^2 over j + epsilon)) * weight[i]
//
//     y[i]    = gate[i] / (1 + exp(-gate[i])) * up[i]
//
// Every product and sum of floats is rounded on its own, and sums over j are taken by 16 lanes and then in a
// fixed order: like the products', these results are the same bits in every kernel.
#pragma once

#include <cstdint>

namespace qtool {

// The kernels of one instruction set.
struct RowFunctions {
  // Writes `size` numbers to `sum` and to `out`, which may be the same memory. Without `skip` (null) the sum
  // is x itself, and is not written.
  void (*normalize)(const float* x, const float* skip, const float* weight, float epsilon, int64_t size, float* sum,
                    float* out);

  // Replaces `count` numbers of `gate` by y.
  void (*gate)(float* gate, const float* up, int64_t count);
};

}  // namespace qtool
