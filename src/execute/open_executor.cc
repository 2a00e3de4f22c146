// open_executor: reads the configuration of the model, resolves the engine's, chooses the device.
#include <fmt/format.h>

#include "src/base/log.h"
#include "src/device/stream_device.h"
#include "src/execute/open_device.h"
#include "src/execute/resolve_config.h"
#include "src/model/config.h"

namespace quire {
namespace {

// "auto": a usable card, else the CPU, saying why. Whatever fails once there is a card is an error, not a reason for the CPU.
Result<OpenedExecutor> open_best(const EngineConfig& config, const ModelSpec& spec) {
  const Result<std::unique_ptr<StreamDevice>> card = open_cuda_device();
  if (card) return open_cuda_executor(config, spec, DeviceKind::kCuda);
  if (card.error().code != Code::kUnavailable) return card.error();
  log_line(LogLevel::kInfo, "device_auto", {{"chosen", "cpu"}, {"no_cuda", card.error().message}});
  return open_cpu_executor(config, spec);
}

}  // namespace

Result<OpenedExecutor> open_executor(const EngineConfig& config) {
  const Result<ModelSpec> spec = read_model_config(config.model_dir);
  if (!spec) return spec.error();
  const Result<EngineConfig> resolved = resolve_config(config, *spec);
  if (!resolved) return resolved.error();
  if (config.device == "auto") return open_best(*resolved, *spec);
  if (config.device == "cpu") return open_cpu_executor(*resolved, *spec);
  if (config.device == "cuda") return open_cuda_executor(*resolved, *spec, DeviceKind::kCuda);
  if (config.device == "cuda-host") return open_cuda_executor(*resolved, *spec, DeviceKind::kCudaHost);
  return invalid(fmt::format("device is `{}`; it must be auto, cpu, cuda or cuda-host", config.device),
                 "device");
}

}  // namespace quire
