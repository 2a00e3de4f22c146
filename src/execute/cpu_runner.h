// Steps on the CPU: host memory is device memory, so the step's arrays are used where they were built.
#pragma once

#include <memory>

#include "src/execute/executor_thread.h"
#include "src/execute/host_step.h"
#include "src/execute/retention_runner.h"
#include "src/execute/swap_space.h"
#include "src/model/forward.h"
#include "src/sample/sampler.h"

namespace quire {

// Everything a runner keeps alive, in the order in which it is made; let go in the reverse order.
struct CpuRunnerParts {
  std::unique_ptr<Device> device;
  std::unique_ptr<Kernels> kernels;
  DeviceBuffer arena;
  HostMemory host_memory;  // the mover's, kept alive here
  std::unique_ptr<ForwardPass> forward;
  DeviceBuffer logits;  // [logits_rows, vocab] f32
  int64_t logits_rows = 0;
  std::unique_ptr<Sampler> sampler;
  StepLimits limits;
  int64_t block_bytes = 0;
  KvLayout layout;  // of all layers
};

std::unique_ptr<StepRunner> make_cpu_runner(CpuRunnerParts parts);

}  // namespace quire
