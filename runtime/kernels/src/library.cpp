// What the shared library exports: ONNX Runtime's entry point, and functions for the Python package.

#include <initializer_list>

#include "custom_op.h"
#include "instruction_sets.h"
#include "op_fused_matmul_nbits.h"
#include "op_group_query_attention.h"
#include "op_matmul_nbits.h"
#include "self_test.h"

#if defined(_WIN32)
#define QTOOL_EXPORT extern "C" __declspec(dllexport)
#else
#define QTOOL_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

constexpr const char* kDomain = "qtool.kernels";

// Copies a message, cut to the room that there is.
void copy_message(const std::string& message, char* out, size_t size) {
  if (size > 0) out[message.copy(out, size - 1)] = '\0';
}

}  // namespace

// Adds the operators to a session's options. The options own nothing: the operators are static, and ONNX
// Runtime never releases a domain that a library has registered.
QTOOL_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  static const qtool::CustomOp<qtool::MatMulNBits> matmul_nbits;
  static const qtool::CustomOp<qtool::FusedMatMulNBits> fused_matmul_nbits;
  static const qtool::CustomOp<qtool::GroupQueryAttention> group_query_attention;
  const OrtApi* table = base->GetApi(qtool::ort::kApiVersion);
  if (table == nullptr) {
    // Every version has the first function, which is all that an error needs.
    return qtool::ort::Api(base->GetApi(1)).status(qtool::ort::kFail, "qtool.kernels needs ONNX Runtime 1.23 or newer");
  }
  qtool::ort::Api api(table);
  try {
    static OrtCustomOpDomain* domain = [&] {
      OrtCustomOpDomain* created = nullptr;
      api.call(qtool::ort::Slot::CreateCustomOpDomain, kDomain, &created);
      for (const OrtCustomOp* op :
           std::initializer_list<const OrtCustomOp*>{&matmul_nbits, &fused_matmul_nbits, &group_query_attention}) {
        api.call(qtool::ort::Slot::CustomOpDomain_Add, created, op);
      }
      return created;
    }();
    api.call(qtool::ort::Slot::AddCustomOpDomain, options, domain);
    return nullptr;
  } catch (const std::exception& error) {
    return api.status(qtool::ort::kFail, error.what());
  }
}

// The name of the index-th instruction set that can run here, best first, or null.
QTOOL_EXPORT const char* qtool_kernels_instruction_set(size_t index) {
  const auto& sets = qtool::instruction_sets();
  return index < sets.size() ? sets[index]->name : nullptr;
}

// Returns 0, or 1 if there is no such instruction set.
QTOOL_EXPORT int qtool_kernels_select(const char* name) {
  const qtool::InstructionSet* found = qtool::find_instruction_set(name);
  if (found == nullptr) return 1;
  qtool::select_instruction_set(*found);
  return 0;
}

// Returns 0, 1 if there is no such instruction set, or 2 and a message if a kernel of it is wrong.
QTOOL_EXPORT int qtool_kernels_self_test(const char* name, char* message, size_t size) {
  const qtool::InstructionSet* found = qtool::find_instruction_set(name);
  if (found == nullptr) return 1;
  std::string failure = qtool::self_test(*found);
  copy_message(failure, message, size);
  return failure.empty() ? 0 : 2;
}

// Multiplies bytes as fast as the instruction set can, on this thread, and returns how many operations that were; or
// 0 if there is no such instruction set. For benchmarks.
QTOOL_EXPORT int64_t qtool_kernels_repeat_products(const char* name, int64_t rounds) {
  const qtool::InstructionSet* found = qtool::find_instruction_set(name);
  return found == nullptr ? 0 : found->repeat_products(rounds);
}

// Returns 1 if there are kernels for weights of that many bits in blocks of that size, else 0.
QTOOL_EXPORT int qtool_kernels_takes_weights(int64_t bits, int64_t block_size) {
  for (const qtool::WeightFormat& format : qtool::kWeightFormats) {
    if (format.bits == bits && format.block_size == block_size) return 1;
  }
  return 0;
}
