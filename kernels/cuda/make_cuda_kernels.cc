// Picks the side: the card's kernels for a card, the host's for the shim.
#include "kernels/cuda/step_kernels.h"
#include "kernels/kernels.h"
#include "src/base/log.h"
#include "src/device/stream_device.h"
#ifdef QUIRE_WITH_CUDA
#include "kernels/cuda/matmul/cublaslt.h"
#endif

namespace quire {
namespace {

Result<std::unique_ptr<Kernels>> make_for_card([[maybe_unused]] StreamDevice& device,
                                               [[maybe_unused]] const KernelOptions& options) {
#ifdef QUIRE_WITH_CUDA
  std::unique_ptr<GemmLibrary> library;
  if (options.activations != DType::kF32) {
    Result<std::unique_ptr<GemmLibrary>> opened = open_cublaslt(device, options.activations);
    if (opened) {
      library = std::move(*opened);
    } else {
      log_line(LogLevel::kWarn, "no_gemm_library",
               {{"why", opened.error().message}, {"instead", "tile_gemm (slower for prefill)"}});
    }
  }
  return cuda::make_step_kernels(device, options, std::move(library));
#else
  return error(Code::kUnavailable, "this build has no CUDA kernels");
#endif
}

}  // namespace

Result<std::unique_ptr<Kernels>> make_cuda_kernels(Device& device, const KernelOptions& options) {
  switch (device.facts().kind) {
    case DeviceKind::kCuda:
      return make_for_card(static_cast<StreamDevice&>(device), options);
    case DeviceKind::kCudaHost:
      return cuda_host::make_step_kernels(static_cast<StreamDevice&>(device), options, nullptr);
    case DeviceKind::kCpu:
      break;
  }
  return error(Code::kUnavailable, "the CUDA kernels do not run on the CPU back end's device");
}

}  // namespace quire
