// Quantized weights among the inputs of a node.
#pragma once

#include <string>

#include "instruction_sets.h"
#include "ort.h"
#include "parallel_matmul.h"

namespace qtool {

// Which inputs of a node are the parts of a matrix, and what its attributes are called.
struct WeightInputs {
  size_t values, scales, zero_points, bias;
  std::string columns = "N", bits = "bits", block_size = "block_size";  // K is the depth of all
};

// The product with the node's matrix, its y not yet set.
// Throws ort::Error if there are no kernels for it, or if its parts do not fit each other.
Product read_product(const ort::Api& api, const OrtKernelInfo* info, const WeightInputs& inputs);

// An initializer of the graph, which must have that type and size; null if it is left out and not required.
const void* read_constant(const ort::Api& api, const OrtKernelInfo* info, size_t input, const std::string& name,
                          int type, int64_t elements, bool required);

// Rows of the input x for a product. Throws ort::Error if it does not have `depth` numbers in a row.
int64_t count_rows(const ort::Tensor& x, const char* name, int64_t depth);

}  // namespace qtool
