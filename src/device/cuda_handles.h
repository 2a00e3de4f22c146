// Move-only owners of CUDA handles. Their destructors log a failure and never throw; creation reports it.
// cuda_runtime.h is included by files of src/device, kernels/cuda and benchmarks/cuda only.
#pragma once

#include <cuda_runtime_api.h>

#include <string>
#include <utility>

#include "src/base/check.h"
#include "src/base/log.h"

namespace quire {

inline std::string text_of(cudaError_t e) {
  return std::string(cudaGetErrorName(e)) + " (" + std::to_string(static_cast<int>(e)) +
         "): " + cudaGetErrorString(e);
}

// For calls that cannot fail unless we misused them or the card is gone: a CUDA fault after start ends the
// process, so that a supervisor restarts it, and no wrong token leaves.
inline void check_cuda_call(cudaError_t e, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (e != cudaSuccess) [[unlikely]]
    check_failed("CUDA call failed: " + text_of(e), file, line);
}

template <class Handle, cudaError_t (*destroy)(Handle)>
class CudaHandle {
 public:
  CudaHandle() = default;
  explicit CudaHandle(Handle handle) : handle_(handle) {}
  CudaHandle(CudaHandle&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  CudaHandle& operator=(CudaHandle&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~CudaHandle() {
    if (handle_ == nullptr) return;
    const cudaError_t e = destroy(handle_);
    if (e != cudaSuccess) log_line(LogLevel::kWarn, "cuda_destroy_failed", {{"error", text_of(e)}});
  }
  Handle get() const { return handle_; }

 private:
  Handle handle_ = nullptr;
};

using CudaStream = CudaHandle<cudaStream_t, cudaStreamDestroy>;
using CudaEvent = CudaHandle<cudaEvent_t, cudaEventDestroy>;
using CudaGraph = CudaHandle<cudaGraph_t, cudaGraphDestroy>;
using CudaGraphExec = CudaHandle<cudaGraphExec_t, cudaGraphExecDestroy>;

}  // namespace quire
