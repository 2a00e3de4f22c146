// cuBLASLt as a GemmLibrary: a plan per shape, chosen by its heuristic, and a workspace allocated once.
#pragma once

#include "kernels/cuda/matmul/product.h"
#include "src/device/stream_device.h"

namespace quire {

// kUnavailable where the library cannot be opened; then kernels/cuda/matmul/tile.cu does the work.
Result<std::unique_ptr<GemmLibrary>> open_cublaslt(StreamDevice& device, DType activations);

}  // namespace quire
