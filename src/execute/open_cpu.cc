// The CPU behind open_executor.
#include <algorithm>

#include "src/device/copy_stream.h"
#include "src/device/cpu_features.h"
#include "src/execute/cpu_runner.h"
#include "src/execute/memory_plan.h"
#include "src/execute/open_device.h"
#include "src/execute/policy_room.h"
#include "src/execute/resolve_config.h"
#include "src/execute/swap_space.h"
#include "src/execute/tier_setup.h"
#include "src/model/weight_source.h"

namespace quire {
namespace {

constexpr int64_t kMostDefaultCacheBytes = 4ll << 30;
constexpr int64_t kLogitsBufferBytes = 64ll << 20;  // logits are made and sampled in pieces of about this

struct Choices {
  DType activations = DType::kF32, kv = DType::kF32;
};

// f32 for both unless asked. Measured on the six trained models, 13 continuations of 64 greedy ids each,
// against float64: f32 with f32 no id differs and logits stay within 2.4e-5; an f16 cache, no id and 2.1e-2;
// a bf16 cache, 10 of 78 continuations differ, at margins up to 0.02, and logits move by up to 0.14; bf16
// activations, 14 of 78 and 0.18.
Result<Choices> choose_dtypes(EngineConfig& config) {
  const Result<std::optional<DType>> activations = parse_dtype(config.dtype, "dtype");
  if (!activations) return activations.error();
  const Result<std::optional<DType>> kv = parse_dtype(config.kv_cache_dtype, "kv_cache_dtype");
  if (!kv) return kv.error();
  Choices c;
  c.activations = activations->value_or(DType::kF32);
  if (c.activations == DType::kF16)
    return invalid("dtype is `f16`; the CPU computes in f32 or bf16", "dtype");
  c.kv = kv->value_or(c.activations);
  config.dtype = name_of(c.activations);
  config.kv_cache_dtype = name_of(c.kv);
  return c;
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

struct Opening {  // what the steps of opening hand on
  EngineConfig config;
  const ModelSpec& spec;
  Choices dtypes;
  KvLayout layout;
  CpuRunnerParts parts;
  PolicyMemoryLimits policy_memory;
  MemoryPlan plan;
};

Result<MemoryPlan> plan_host_memory(Opening& o, const WeightSource& source) {
  const DeviceFacts& facts = o.parts.device->facts();
  o.policy_memory = policy_memory_limits(o.config, o.spec, o.parts.device->free_bytes());
  return plan_memory(
      {.device = facts.name,
       .free_bytes = o.parts.device->free_bytes(),
       .weights_bytes = weight_bytes(source, o.spec, true),
       .workspace_bytes = ForwardPass::workspace_bytes(*o.parts.kernels, o.spec, forward_limits(o.config)),
       .logits_bytes = o.parts.logits_rows * o.spec.vocab_size * bytes_of(DType::kF32),
       .host_bytes = o.parts.host_memory.bytes(),
       .policy_bytes = o.policy_memory.bytes,
       .block_bytes = o.layout.block_bytes(),
       .block_tokens = o.config.block_tokens,
       .max_context_tokens = o.config.max_context_tokens,
       .kv_cache_bytes = o.config.kv_cache_bytes,
       .default_cache_bytes = std::min(facts.free_bytes / 4, kMostDefaultCacheBytes)});
}

Status open_kernels(Opening& o) {
  o.config.threads = o.config.threads == 0 ? usable_cores() : o.config.threads;
  Result<std::unique_ptr<Device>> device = open_cpu_device(o.config.threads);
  if (!device) return device.error();
  o.parts.device = std::move(*device);
  Result<std::unique_ptr<Kernels>> kernels =
      make_cpu_kernels(*o.parts.device, {.activations = o.dtypes.activations, .threads = o.config.threads});
  if (!kernels) return kernels.error();
  o.parts.kernels = std::move(*kernels);
  return ok();
}

Status fill_memory(Opening& o, WeightSource& source) {
  Device& device = *o.parts.device;
  Result<Weights> weights = load_weights(source, o.spec, *o.parts.kernels);
  if (!weights) return weights.error();
  Result<DeviceBuffer> arena = device.allocate(o.plan.cache_bytes, "cache");
  if (!arena) return arena.error();
  o.parts.arena = std::move(*arena);
  if (Status host = allocate_host_memory(device, o.parts.host_memory); !host) return host;
  Result<DeviceBuffer> logits =
      device.allocate(o.parts.logits_rows * o.spec.vocab_size * bytes_of(DType::kF32), "logits");
  if (!logits) return logits.error();
  o.parts.logits = std::move(*logits);
  Result<std::unique_ptr<ForwardPass>> forward =
      ForwardPass::create(*o.parts.kernels, o.spec, std::move(*weights), forward_limits(o.config), o.layout,
                          o.parts.arena.as<char>());
  if (!forward) return forward.error();
  o.parts.forward = std::move(*forward);
  return ok();
}

Result<OpenedExecutor> finish(Opening& o) {
  o.parts.sampler = make_cpu_sampler();
  o.parts.block_bytes = o.layout.block_bytes();
  o.parts.layout = o.layout;
  o.parts.limits = {.max_rows = o.config.max_step_tokens,
                    .max_sequences = o.config.max_sequences,
                    .max_context_tokens = o.config.max_context_tokens,
                    .block_tokens = o.config.block_tokens,
                    .num_blocks = o.plan.num_blocks,
                    .vocab_size = o.spec.vocab_size};
  OpenedExecutor out;
  out.spec = o.spec;
  out.num_blocks = o.plan.num_blocks;
  out.block_bytes = o.parts.block_bytes;
  out.device = o.parts.device->facts().name;
  out.dtype = o.config.dtype;
  out.kv_dtype = o.dtypes.kv;
  out.memory = o.plan;
  out.swap_bytes = o.parts.host_memory.swap_bytes;
  out.host_bytes = o.parts.host_memory.host_bytes;
  out.policy_memory = o.policy_memory;
  out.preemption_costs = preemption_costs(o.parts.device->facts(), o.spec);
  Result<OpenedTiers> tiers = open_tiers({.config = o.config,
                                          .spec = o.spec,
                                          .kv_dtype = o.dtypes.kv,
                                          .device = DeviceKind::kCpu,
                                          .arena = o.parts.arena.as<char>(),
                                          .host = o.parts.host_memory,
                                          .block_bytes = o.parts.block_bytes,
                                          .make_stream = make_host_copy_stream});
  if (!tiers) return tiers.error();
  out.tiers = std::move(*tiers);
  out.config = o.config;
  out.config.device = "cpu";
  out.config.kv_cache_bytes = o.plan.cache_bytes;
  out.executor = make_threaded_executor(make_cpu_runner(std::move(o.parts)));
  return out;
}

}  // namespace

Result<OpenedExecutor> open_cpu_executor(const EngineConfig& config, const ModelSpec& spec) {
  Opening o{.config = config, .spec = spec};
  const Result<Choices> dtypes = choose_dtypes(o.config);
  if (!dtypes) return dtypes.error();
  o.dtypes = *dtypes;
  o.layout = {.dtype = o.dtypes.kv,
              .num_layers = spec.num_layers,
              .num_kv_heads = spec.num_kv_heads,
              .head_dim = spec.head_dim,
              .block_tokens = config.block_tokens};
  o.parts.logits_rows = logits_rows_of(config, spec);
  if (Status opened = open_kernels(o); !opened) return opened.error();
  Result<std::unique_ptr<WeightSource>> source =
      open_weight_source(config.weights, config.model_dir, spec, o.config.threads);
  if (!source) return source.error();
  Result<HostMemory> host_memory =
      size_host_memory(o.config, DeviceKind::kCpu, o.layout.block_bytes(), o.parts.device->free_bytes());
  if (!host_memory) return host_memory.error();
  o.parts.host_memory = std::move(*host_memory);
  Result<MemoryPlan> plan = plan_host_memory(o, **source);
  if (!plan) return plan.error();
  o.plan = std::move(*plan);
  if (Status filled = fill_memory(o, **source); !filled) return filled.error();
  return finish(o);
}

}  // namespace quire
