// Makes an OrtCustomOp of a class: constructor (Api, info), compute(context), and constants for its inputs and outputs.
#pragma once

#include <climits>
#include <exception>

#include "ort.h"

namespace qtool {

template <class Op>
struct CustomOp : OrtCustomOp {
  CustomOp() : OrtCustomOp{} {
    version = ort::kApiVersion;
    GetName = [](const OrtCustomOp*) { return Op::kName; };
    GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return "CPUExecutionProvider"; };
    GetInputTypeCount = [](const OrtCustomOp*) { return Op::kInputs; };
    GetInputType = [](const OrtCustomOp*, size_t index) { return Op::input_type(index); };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t index) { return Op::input_required(index) ? 0 : 1; };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };
    GetOutputTypeCount = [](const OrtCustomOp*) { return Op::kOutputs; };
    GetOutputType = [](const OrtCustomOp*, size_t) { return ort::kFloat; };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t index) { return Op::output_required(index) ? 0 : 1; };
    GetStartVersion = [](const OrtCustomOp*) { return 1; };
    GetEndVersion = [](const OrtCustomOp*) { return INT_MAX; };
    CreateKernelV2 = create;
    KernelComputeV2 = compute;
    KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  }

 private:
  struct Kernel {
    ort::Api api;
    Op op;
  };

  static OrtStatus* create(const OrtCustomOp*, const OrtApi* table, const OrtKernelInfo* info, void** kernel) {
    ort::Api api(table);
    try {
      *kernel = new Kernel{api, Op(api, info)};
      return nullptr;
    } catch (const std::exception& error) {
      return api.status(ort::kInvalidArgument, describe(error).c_str());
    }
  }

  static OrtStatus* compute(void* kernel, OrtKernelContext* context) {
    auto* created = static_cast<Kernel*>(kernel);
    try {
      created->op.compute(context);
      return nullptr;
    } catch (const std::exception& error) {
      return created->api.status(ort::kFail, describe(error).c_str());
    }
  }

  static std::string describe(const std::exception& error) {
    return std::string("qtool.kernels.") + Op::kName + ": " + error.what();
  }
};

}  // namespace qtool
