// The CUDA kernels as the seam of kernels/kernels.h, once for each side they are compiled for.
// make_cuda_kernels (make_cuda_kernels.cc) picks the side by the device.
#pragma once

#include <memory>

#include "kernels/cuda/matmul/product.h"
#include "kernels/kernels.h"
#include "src/device/stream_device.h"

namespace quire::cuda {
// `library` multiplies many rows; without one our own tiles do.
Result<std::unique_ptr<Kernels>> make_step_kernels(StreamDevice& device, const KernelOptions& options,
                                                   std::unique_ptr<GemmLibrary> library);
}  // namespace quire::cuda

namespace quire::cuda_host {
Result<std::unique_ptr<Kernels>> make_step_kernels(StreamDevice& device, const KernelOptions& options,
                                                   std::unique_ptr<GemmLibrary> library);
}  // namespace quire::cuda_host
