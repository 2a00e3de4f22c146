// Stands in for cuda_device.cc where CUDA was not built.
#include "src/device/stream_device.h"

namespace quire {

Result<std::unique_ptr<StreamDevice>> open_cuda_device() {
  return error(Code::kUnavailable,
               "this build has no CUDA (configure with -DQUIRE_CUDA=ON where a toolkit is installed)");
}

}  // namespace quire
