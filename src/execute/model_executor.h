// Opens a model on a device: reads the checkpoint, plans memory, packs weights, starts the executor thread.
// open_executor runs on the caller's thread and returns once the executor is ready for its first plan.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "quire/config.h"
#include "quire/result.h"
#include "src/base/dtype.h"
#include "src/execute/executor.h"
#include "src/execute/memory_plan.h"
#include "src/execute/tier_setup.h"
#include "src/model/model_spec.h"
#include "src/policy/policy_memory.h"
#include "src/schedule/preemption_cost.h"

namespace quire {

struct OpenedExecutor {
  std::unique_ptr<Executor> executor;
  OpenedTiers tiers;       // its mover goes before the executor, whose memory it uses
  int64_t host_bytes = 0;  // for the prefix cache's host tier, whole blocks
  int64_t swap_bytes = 0;  // of whole blocks
  PreemptionCosts preemption_costs;
  PolicyMemoryLimits policy_memory;
  ModelSpec spec;
  int32_t num_blocks = 0;   // of the cache; a plan names blocks [0, num_blocks)
  int64_t block_bytes = 0;  // all layers, K and V
  EngineConfig config;      // every 0 / "auto" resolved
  std::string device;       // "AMD EPYC ... (2 threads, avx512bf16)", "NVIDIA H100 80GB HBM3"
  std::string dtype;        // of the activations: "f32", "bf16", "f16"
  DType kv_dtype = DType::kF32;
  MemoryPlan memory;  // of the device
};

// Errors: a bad model directory (file, tensor or field named), an unknown device, an option out of range, or
// no room for the weights, the workspace and a cache that holds one sequence of max_context_tokens (the sum
// is in the message).
Result<OpenedExecutor> open_executor(const EngineConfig& config);

}  // namespace quire
