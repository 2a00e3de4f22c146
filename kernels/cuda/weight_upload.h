// Weights to the device: rows of the parts one under another, or of two parts in alternate groups of
// `gate_group`, in the activation type, each row padded with zeros. Load time only; one thread.
#pragma once

#include <memory>
#include <span>

#include "kernels/cuda/matmul/product.h"
#include "src/device/stream_device.h"

namespace quire {

Result<std::unique_ptr<MatmulWeight>> upload_weight(StreamDevice& device, DType dtype,
                                                    std::span<const HostMatrix> parts, int32_t gate_group);

}  // namespace quire
