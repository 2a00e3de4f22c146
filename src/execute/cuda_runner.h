// Steps on a stream device: a card, or the host shim. A step is queued whole (copies, forward pass, sampling, the way back of the
// tokens) and finished later, so that the next one is queued while it runs; ids sampled on the device feed the next step there.
//
// Sampled on the host instead, after a wait for the logits: steps with a sequence that device_sampling.h leaves to it.
#pragma once

#include <memory>

#include "src/device/stream_device.h"
#include "src/execute/device_retention.h"
#include "src/execute/device_step.h"
#include "src/execute/model_parts.h"
#include "src/execute/pipelined_executor.h"
#include "src/execute/prefix_groups.h"

namespace quire {

struct CudaRunnerParts : ModelParts {  // its device is a StreamDevice
  CascadeRule cascade;
  RetentionRoom retention;
  // Steps with prompts are captured up to so many tokens (EngineConfig).
  int32_t max_graph_tokens = 0;
  bool time_idle = false;  // between steps: StepGaps
  // After each step its block tables and lengths come back and are compared with the plan's: tests.
  bool check_tables = false;
};

// Device memory that the runner takes: arrays and tables of steps, sampling, and what its graphs may grow to.
int64_t cuda_runner_bytes(const StepLimits& limits, int64_t sample_space_bytes);
Result<std::unique_ptr<QueueingRunner>> make_cuda_runner(CudaRunnerParts parts);

}  // namespace quire
