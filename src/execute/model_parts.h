// Everything that a runner keeps alive, on whatever device, in the order in which it is made; let go in the reverse order.
#pragma once

#include <memory>

#include "kernels/kernels.h"
#include "src/device/device.h"
#include "src/execute/host_step.h"
#include "src/execute/swap_space.h"
#include "src/model/forward.h"

namespace quire {

struct ModelParts {
  std::unique_ptr<Device> device;
  std::unique_ptr<Kernels> kernels;
  DeviceBuffer arena;
  HostMemory host_memory;  // the mover's, kept alive here
  std::unique_ptr<ForwardPass> forward;
  DeviceBuffer logits;  // [logits_rows, vocab] f32
  int64_t logits_rows = 0;
  StepLimits limits;
  KvLayout layout;  // of all layers
};

}  // namespace quire
