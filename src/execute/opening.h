// What opening a model is on every device; open_cpu.cc and open_cuda.cc have what differs: types, sizes, kernels, the runner.
#pragma once

#include <functional>

#include "src/execute/memory_ledger.h"
#include "src/execute/model_executor.h"
#include "src/execute/model_parts.h"
#include "src/model/weight_source.h"

namespace quire {

struct ElementTypes {
  DType activations = DType::kF32, kv = DType::kF32;
};
// As the configuration says; activations of type `otherwise` where it says nothing, and the cache as the activations. An Error names the
// field.
Result<ElementTypes> choose_types(const EngineConfig& config, DType otherwise);

// What the steps of opening hand on.
struct Opening {
  EngineConfig config;
  const ModelSpec& spec;
  DeviceKind kind = DeviceKind::kCpu;
  ElementTypes types = {};
  ForwardLimits forward_limits = {};
  PolicyMemoryLimits policy_memory = {};
  MemoryPlan plan = {};

  void set_types(const ElementTypes& chosen);  // in the configuration too, so that it says what runs
  KvLayout layout() const;
  StepLimits step_limits(int32_t num_blocks) const;
  int64_t logits_bytes(const ModelParts& parts) const;
};

// Loads the weights, then allocates what the plan says: cache, host memory, logits, workspace. after_weights: while there is room still.
Status fill_memory(const Opening& o, WeightSource& source, ModelParts& parts, MemoryLedger& ledger,
                   const std::function<void(const Weights&)>& after_weights);

// All but the executor, which takes the parts. The tiers copy through streams of `make_stream`.
Result<OpenedExecutor> describe(const Opening& o, ModelParts& parts, const char* device,
                                const MakeCopyStream& make_stream);

}  // namespace quire
