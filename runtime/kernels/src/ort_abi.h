// The part of ONNX Runtime's C interface that this library uses.
//
// The interface is a table of function pointers that only ever grows at its end, so that a function keeps its
// place ("slot") for good. The slots below are those of `struct OrtApi` in ONNX Runtime's
// include/onnxruntime/core/session/onnxruntime_c_api.h; every one of them exists since API version 17 or
// earlier. `OrtCustomOp` is the struct of the same name there, as of API version 18.
// What is declared here is checked against the running library by tests/kernels and, where it is loaded, by
// the self-test of qtool_kernels: a wrong slot fails there and not in an answer.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

// Opaque: only ever pointed at.
struct OrtStatus;
struct OrtValue;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtTensorTypeAndShapeInfo;
struct OrtShapeInferContext;

// The function table. Which function is in which slot: see `qtool::ort::Slot`.
struct OrtApi {
  void (*slots[1])();  // in truth some hundreds
};

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);  // null if the library is older than `version`
  const char* (*GetVersionString)();
};

// What ONNX Runtime asks of an operator. Fields that stay null are never called for ours.
struct OrtCustomOp {
  uint32_t version;  // API version that the struct was filled for
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t index);  // ONNXTensorElementDataType
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);
  void (*KernelDestroy)(void* kernel);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t index);  // 0 required, 1 optional
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t index);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t index);  // OrtMemType, 0 default
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  size_t (*GetMayInplace)(int** input_index, int** output_index);
  void (*ReleaseMayInplace)(int* input_index, int* output_index);
  size_t (*GetAliasMap)(int** input_index, int** output_index);
  void (*ReleaseAliasMap)(int* input_index, int* output_index);
};

}  // extern "C"

namespace qtool::ort {

// The API version asked for: that of ONNX Runtime 1.23, the oldest one supported.
constexpr uint32_t kApiVersion = 23;

// Places in `struct OrtApi`, with the arguments of the function there.
enum class Slot : size_t {
  CreateStatus = 0,                         // (code, message) -> OrtStatus*
  GetErrorMessage = 2,                      // (const OrtStatus*) -> const char*
  CreateCustomOpDomain = 26,                // (name, OrtCustomOpDomain** out)
  CustomOpDomain_Add = 27,                  // (OrtCustomOpDomain*, const OrtCustomOp*)
  AddCustomOpDomain = 28,                   // (OrtSessionOptions*, OrtCustomOpDomain*)
  GetTensorMutableData = 51,                // (OrtValue*, void** out)
  GetTensorElementType = 60,                // (const OrtTensorTypeAndShapeInfo*, int* out)
  GetDimensionsCount = 61,                  // (const OrtTensorTypeAndShapeInfo*, size_t* out)
  GetDimensions = 62,                       // (const OrtTensorTypeAndShapeInfo*, int64_t* out, count)
  GetTensorTypeAndShape = 65,               // (const OrtValue*, OrtTensorTypeAndShapeInfo** out)
  KernelInfoGetAttribute_float = 85,        // (const OrtKernelInfo*, name, float* out)
  KernelInfoGetAttribute_int64 = 86,        // (const OrtKernelInfo*, name, int64_t* out)
  KernelContext_GetInputCount = 88,         // (const OrtKernelContext*, size_t* out)
  KernelContext_GetOutputCount = 89,        // (const OrtKernelContext*, size_t* out)
  KernelContext_GetInput = 90,              // (const OrtKernelContext*, index, const OrtValue** out)
  KernelContext_GetOutput = 91,             // (OrtKernelContext*, index, dims, count, OrtValue** out)
  ReleaseStatus = 93,                       // (OrtStatus*)
  ReleaseTensorTypeAndShapeInfo = 99,       // (OrtTensorTypeAndShapeInfo*)
  ReleaseCustomOpDomain = 101,              // (OrtCustomOpDomain*)
  KernelInfo_GetInputCount = 230,           // (const OrtKernelInfo*, size_t* out), since API version 14
  KernelInfo_GetInputName = 232,            // (info, index, char* out, size_t* size), since API version 14
  KernelInfoGetConstantInput_tensor = 249,  // (info, index, int* is_constant, const OrtValue** out), since 15
  KernelContext_ParallelFor = 274,          // (context, fn(void*, size_t), total, batches, user_data), since 17
};

// ONNXTensorElementDataType and OrtErrorCode
constexpr int kFloat = 1, kUint8 = 2, kInt32 = 6;
constexpr int kFail = 1, kInvalidArgument = 2;

}  // namespace qtool::ort
