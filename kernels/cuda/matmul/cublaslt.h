// cuBLASLt as a GemmLibrary: a plan per shape, and a workspace allocated once. A plan is the heuristic's first, or where tune() was called
// the one of the heuristic's first eight that was fastest for the shape's class of row counts. Within a process a shape is always made the
// same way, so its results are the same bits; which way was fastest may differ from one start to the next, and with it last bits.
#pragma once

#include "kernels/cuda/matmul/product.h"
#include "src/base/clock.h"
#include "src/device/stream_device.h"

namespace quire {

// kUnavailable where the library cannot be opened; then kernels/cuda/matmul/tile.cu does the work.
Result<std::unique_ptr<GemmLibrary>> open_cublaslt(StreamDevice& device, DType activations);

namespace cublaslt {
struct Api;
}
// Over a library that is open: what the above does, and tests with a library of their own.
Result<std::unique_ptr<GemmLibrary>> make_cublaslt(const cublaslt::Api& api, StreamDevice& device,
                                                   DType activations, const Clock& clock);

}  // namespace quire
