// open_cuda_executor of a build without the CUDA executor.
#include "src/execute/open_device.h"

namespace quire {

Result<OpenedExecutor> open_cuda_executor(const EngineConfig&, const ModelSpec&, DeviceKind) {
  return error(Code::kUnavailable,
               "this build has no CUDA executor (device cuda, cuda-host); use device cpu");
}

}  // namespace quire
