#include "ort.h"

namespace qtool::ort {

int64_t Tensor::elements() const {
  int64_t product = 1;
  for (int64_t size : shape) product *= size;
  return product;
}

void Api::check(OrtStatus* status) const {
  if (status == nullptr) return;
  std::string message = function<const char*(const OrtStatus*)>(Slot::GetErrorMessage)(status);
  function<void(OrtStatus*)>(Slot::ReleaseStatus)(status);
  throw Error(message);
}

Tensor Api::tensor(const OrtValue* value) const {
  Tensor result;
  if (value == nullptr) return result;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  call(Slot::GetTensorTypeAndShape, value, &info);
  size_t rank = 0;
  call(Slot::GetTensorElementType, static_cast<const OrtTensorTypeAndShapeInfo*>(info), &result.type);
  call(Slot::GetDimensionsCount, static_cast<const OrtTensorTypeAndShapeInfo*>(info), &rank);
  result.shape.resize(rank);
  call(Slot::GetDimensions, static_cast<const OrtTensorTypeAndShapeInfo*>(info), result.shape.data(), rank);
  function<void(OrtTensorTypeAndShapeInfo*)>(Slot::ReleaseTensorTypeAndShapeInfo)(info);
  // Reading through the only accessor that there is does not change the value.
  call(Slot::GetTensorMutableData, const_cast<OrtValue*>(value), &result.data);
  return result;
}

int64_t Api::attribute(const OrtKernelInfo* info, const char* name, int64_t otherwise) const {
  int64_t value = 0;
  auto* status = function<OrtStatus*(const OrtKernelInfo*, const char*, int64_t*)>(Slot::KernelInfoGetAttribute_int64)(
      info, name, &value);
  if (status == nullptr) return value;
  function<void(OrtStatus*)>(Slot::ReleaseStatus)(status);
  return otherwise;
}

float Api::attribute(const OrtKernelInfo* info, const char* name, float otherwise) const {
  float value = 0;
  auto* status = function<OrtStatus*(const OrtKernelInfo*, const char*, float*)>(Slot::KernelInfoGetAttribute_float)(
      info, name, &value);
  if (status == nullptr) return value;
  function<void(OrtStatus*)>(Slot::ReleaseStatus)(status);
  return otherwise;
}

Tensor Api::constant(const OrtKernelInfo* info, size_t index) const {
  size_t count = 0;
  call(Slot::KernelInfo_GetInputCount, info, &count);
  if (index >= count) return {};
  size_t size = 0;  // with its final zero: that of an input which is left out has nothing else
  call(Slot::KernelInfo_GetInputName, info, index, static_cast<char*>(nullptr), &size);
  if (size <= 1) return {};
  int is_constant = 0;
  const OrtValue* value = nullptr;
  call(Slot::KernelInfoGetConstantInput_tensor, info, index, &is_constant, &value);
  if (!is_constant) throw Error("input " + std::to_string(index) + " must be an initializer of the graph");
  return tensor(value);
}

Tensor Context::input(size_t index) const {
  size_t count = 0;
  api_.call(Slot::KernelContext_GetInputCount, static_cast<const OrtKernelContext*>(context_), &count);
  if (index >= count) return {};
  const OrtValue* value = nullptr;
  api_.call(Slot::KernelContext_GetInput, static_cast<const OrtKernelContext*>(context_), index, &value);
  return api_.tensor(value);
}

Tensor Context::output(size_t index, const std::vector<int64_t>& shape) const {
  OrtValue* value = nullptr;
  api_.call(Slot::KernelContext_GetOutput, context_, index, shape.data(), shape.size(), &value);
  return api_.tensor(value);
}

size_t Context::outputs() const {
  size_t count = 0;
  api_.call(Slot::KernelContext_GetOutputCount, static_cast<const OrtKernelContext*>(context_), &count);
  return count;
}

void Context::parallel_for(int64_t tasks, const std::function<void(int64_t)>& task) const {
  if (tasks == 1) return task(0);
  auto trampoline = +[](void* user_data, size_t index) {
    (*static_cast<const std::function<void(int64_t)>*>(user_data))(static_cast<int64_t>(index));
  };
  void* user_data = const_cast<std::function<void(int64_t)>*>(&task);
  api_.call(Slot::KernelContext_ParallelFor, static_cast<const OrtKernelContext*>(context_), trampoline,
            static_cast<size_t>(tasks), size_t{0}, user_data);
}

}  // namespace qtool::ort
