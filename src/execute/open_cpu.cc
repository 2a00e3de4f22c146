// The CPU behind open_executor.
#include <algorithm>

#include "src/device/copy_stream.h"
#include "src/device/cpu_features.h"
#include "src/execute/cpu_runner.h"
#include "src/execute/memory_plan.h"
#include "src/execute/open_device.h"
#include "src/execute/opening.h"
#include "src/execute/policy_room.h"

namespace quire {
namespace {

constexpr int64_t kMostDefaultCacheBytes = 4ll << 30;
constexpr int64_t kLogitsBufferBytes = 64ll << 20;  // logits are made and sampled in pieces of about this

// f32 for both unless asked. Measured on the six trained models, 13 continuations of 64 greedy ids each,
// against float64: f32 with f32 no id differs and logits stay within 2.4e-5; an f16 cache, no id and 2.1e-2;
// a bf16 cache, 10 of 78 continuations differ, at margins up to 0.02, and logits move by up to 0.14; bf16
// activations, 14 of 78 and 0.18.
Status choose_types(Opening& o) {
  const Result<ElementTypes> types = choose_types(o.config, DType::kF32);
  if (!types) return types.error();
  if (types->activations == DType::kF16)
    return invalid("dtype is `f16`; the CPU computes in f32 or bf16", "dtype");
  o.set_types(*types);
  return ok();
}

ForwardLimits forward_limits(const EngineConfig& c) {
  return {.max_rows = c.max_step_tokens,
          .max_logits_rows = c.max_step_tokens,
          .max_sequences = c.max_sequences,
          .max_context_tokens = c.max_context_tokens};
}

int64_t logits_rows_of(const EngineConfig& c, const ModelSpec& spec) {
  const int64_t fitting = kLogitsBufferBytes / (int64_t{spec.vocab_size} * bytes_of(DType::kF32));
  return std::clamp<int64_t>(fitting, 1, std::max(c.max_sequences, 1));
}

Result<MemoryPlan> plan_host_memory(const Opening& o, const ModelParts& parts, const WeightSource& source) {
  const DeviceFacts& facts = parts.device->facts();
  return plan_memory(
      {.device = facts.name,
       .reckoning = "what is free",
       .free_bytes = parts.device->free_bytes(),
       .weights_bytes = weight_bytes(source, o.spec, true),
       .workspace_bytes = ForwardPass::workspace_bytes(*parts.kernels, o.spec, o.forward_limits),
       .logits_bytes = o.logits_bytes(parts),
       .host_bytes = parts.host_memory.bytes(),
       .policy_bytes = o.policy_memory.bytes,
       .block_bytes = o.layout().block_bytes(),
       .block_tokens = o.config.block_tokens,
       .max_context_tokens = o.config.max_context_tokens,
       .kv_cache_bytes = o.config.kv_cache_bytes,
       .default_cache_bytes = std::min(facts.free_bytes / 4, kMostDefaultCacheBytes)});
}

Status open_kernels(Opening& o, ModelParts& parts) {
  o.config.threads = o.config.threads == 0 ? usable_cores() : o.config.threads;
  Result<std::unique_ptr<Device>> device = open_cpu_device(o.config.threads);
  if (!device) return device.error();
  parts.device = std::move(*device);
  Result<std::unique_ptr<Kernels>> kernels =
      make_cpu_kernels(*parts.device, {.activations = o.types.activations, .threads = o.config.threads});
  if (!kernels) return kernels.error();
  parts.kernels = std::move(*kernels);
  return ok();
}

}  // namespace

Result<OpenedExecutor> open_cpu_executor(const EngineConfig& config, const ModelSpec& spec) {
  Opening o{.config = config, .spec = spec, .kind = DeviceKind::kCpu};
  ModelParts parts;
  if (Status chosen = choose_types(o); !chosen) return chosen.error();
  o.forward_limits = forward_limits(o.config);
  parts.logits_rows = logits_rows_of(config, spec);
  if (Status opened = open_kernels(o, parts); !opened) return opened.error();
  Result<std::unique_ptr<WeightSource>> source =
      open_weight_source(config.weights, config.model_dir, spec, o.config.threads);
  if (!source) return source.error();
  Result<HostMemory> host_memory =
      size_host_memory(o.config, o.kind, o.layout().block_bytes(), parts.device->free_bytes());
  if (!host_memory) return host_memory.error();
  parts.host_memory = std::move(*host_memory);
  o.policy_memory = policy_memory_limits(o.config, spec, parts.device->free_bytes());
  Result<MemoryPlan> plan = plan_host_memory(o, parts, **source);
  if (!plan) return plan.error();
  o.plan = std::move(*plan);
  MemoryLedger ledger(*parts.device);
  if (Status filled = fill_memory(o, **source, parts, ledger, {}); !filled) return filled.error();
  Result<OpenedExecutor> out = describe(o, parts, "cpu", make_host_copy_stream);
  if (!out) return out;
  ledger.log();
  Result<std::unique_ptr<Executor>> executor = make_threaded_executor(make_cpu_runner(std::move(parts)));
  if (!executor) return executor.error();
  out->executor = std::move(*executor);
  return out;
}

}  // namespace quire
