// One function per kind of device behind open_executor. Each gets a resolved configuration, opens its device,
// plans and fills its memory and starts the executor thread.
#pragma once

#include "src/device/device.h"
#include "src/execute/model_executor.h"

namespace quire {

Result<OpenedExecutor> open_cpu_executor(const EngineConfig& config, const ModelSpec& spec);

// kind: kCuda, or kCudaHost (the CUDA kernels on the host shim). kUnavailable, with one clear line, where the
// build has no CUDA executor or the machine no usable card.
Result<OpenedExecutor> open_cuda_executor(const EngineConfig& config, const ModelSpec& spec, DeviceKind kind);

}  // namespace quire
