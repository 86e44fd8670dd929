// ONNX Runtime's C interface as C++: failures are exceptions, tensors are spans with a shape.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort_abi.h"

namespace qtool::ort {

// A call into ONNX Runtime failed, or a node is not what its operator takes.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A tensor that ONNX Runtime owns. `data` is null where an optional input is left out.
struct Tensor {
  void* data = nullptr;
  int type = 0;
  std::vector<int64_t> shape;

  explicit operator bool() const { return data != nullptr; }

  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }

  // Product of the sizes; 1 for a scalar.
  int64_t elements() const;
};

// The function table of the ONNX Runtime that loaded this library.
class Api {
 public:
  explicit Api(const OrtApi* table) : table_(table) {}

  template <typename... Arguments>
  void call(Slot slot, Arguments... arguments) const {
    check(function<OrtStatus*(Arguments...)>(slot)(arguments...));
  }

  OrtStatus* status(int code, const char* message) const {
    return function<OrtStatus*(int, const char*)>(Slot::CreateStatus)(code, message);
  }

  // The shape and the memory of a value; an empty one for null.
  Tensor tensor(const OrtValue* value) const;

  int64_t attribute(const OrtKernelInfo* info, const char* name, int64_t otherwise) const;
  float attribute(const OrtKernelInfo* info, const char* name, float otherwise) const;

  // An initializer of the graph; empty if the input is left out.
  // Throws Error if the input is computed by the graph.
  Tensor constant(const OrtKernelInfo* info, size_t index) const;

 private:
  template <typename Signature>
  Signature* function(Slot slot) const {
    return reinterpret_cast<Signature*>(table_->slots[static_cast<size_t>(slot)]);
  }

  // Throws what the status says and releases it.
  void check(OrtStatus* status) const;

  const OrtApi* table_;
};

// One run of a node.
class Context {
 public:
  Context(const Api& api, OrtKernelContext* context) : api_(api), context_(context) {}

  // An empty tensor if the input is left out.
  Tensor input(size_t index) const;

  // Allocates the output, or takes the memory that is bound to it.
  Tensor output(size_t index, const std::vector<int64_t>& shape) const;

  // Whether the node has that many outputs.
  size_t outputs() const;

  // Calls `task(0)` to `task(tasks - 1)` on ONNX Runtime's threads, this one included, and waits.
  void parallel_for(int64_t tasks, const std::function<void(int64_t)>& task) const;

 private:
  const Api& api_;
  OrtKernelContext* context_;
};

}  // namespace qtool::ort
