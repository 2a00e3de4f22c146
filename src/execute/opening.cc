#include "src/execute/opening.h"

#include "src/execute/resolve_config.h"
#include "src/execute/swap_space.h"

namespace quire {

Result<ElementTypes> choose_types(const EngineConfig& config, DType otherwise) {
  const Result<std::optional<DType>> activations = parse_dtype(config.dtype, "dtype");
  if (!activations) return activations.error();
  const Result<std::optional<DType>> kv = parse_dtype(config.kv_cache_dtype, "kv_cache_dtype");
  if (!kv) return kv.error();
  ElementTypes types{.activations = activations->value_or(otherwise)};
  types.kv = kv->value_or(types.activations);
  return types;
}

void Opening::set_types(const ElementTypes& chosen) {
  types = chosen;
  config.dtype = name_of(chosen.activations);
  config.kv_cache_dtype = name_of(chosen.kv);
}

KvLayout Opening::layout() const {
  return {.dtype = types.kv,
          .num_layers = spec.num_layers,
          .num_kv_heads = spec.num_kv_heads,
          .head_dim = spec.head_dim,
          .block_tokens = config.block_tokens};
}

StepLimits Opening::step_limits(int32_t num_blocks) const {
  return {.max_rows = config.max_step_tokens,
          .max_sequences = config.max_sequences,
          .max_context_tokens = config.max_context_tokens,
          .block_tokens = config.block_tokens,
          .num_blocks = num_blocks,
          .vocab_size = spec.vocab_size};
}

int64_t Opening::logits_bytes(const ModelParts& parts) const {
  return parts.logits_rows * spec.vocab_size * bytes_of(DType::kF32);
}

Status fill_memory(const Opening& o, WeightSource& source, ModelParts& parts, MemoryLedger& ledger,
                   const std::function<void(const Weights&)>& after_weights) {
  Device& device = *parts.device;
  Result<Weights> weights = load_weights(source, o.spec, *parts.kernels);
  if (!weights) return weights.error();
  ledger.note("weights", o.plan.weights_bytes);
  if (after_weights) {
    after_weights(*weights);
    ledger.note("product_plans", 0);
  }
  Result<DeviceBuffer> arena = device.allocate(o.plan.cache_bytes, "cache");
  if (!arena) return arena.error();
  parts.arena = std::move(*arena);
  ledger.note("cache", o.plan.cache_bytes);
  if (Status host = allocate_host_memory(device, parts.host_memory); !host) return host;
  ledger.note("host_memory", o.kind == DeviceKind::kCuda ? 0 : parts.host_memory.bytes());
  Result<DeviceBuffer> logits = device.allocate(o.logits_bytes(parts), "logits");
  if (!logits) return logits.error();
  parts.logits = std::move(*logits);
  ledger.note("logits", o.plan.logits_bytes);
  Result<std::unique_ptr<ForwardPass>> forward = ForwardPass::create(
      *parts.kernels, o.spec, std::move(*weights), o.forward_limits, o.layout(), parts.arena.as<char>());
  if (!forward) return forward.error();
  parts.forward = std::move(*forward);
  ledger.note("workspace", o.plan.workspace_bytes);
  return ok();
}

Result<OpenedExecutor> describe(const Opening& o, ModelParts& parts, const char* device,
                                const MakeCopyStream& make_stream) {
  parts.layout = o.layout();
  parts.limits = o.step_limits(o.plan.num_blocks);
  OpenedExecutor out;
  out.spec = o.spec;
  out.num_blocks = o.plan.num_blocks;
  out.block_bytes = parts.layout.block_bytes();
  out.device = parts.device->facts().name;
  out.dtype = o.config.dtype;
  out.kv_dtype = o.types.kv;
  out.memory = o.plan;
  out.swap_bytes = parts.host_memory.swap_bytes;
  out.host_bytes = parts.host_memory.host_bytes;
  out.policy_memory = o.policy_memory;
  out.preemption_costs = preemption_costs(parts.device->facts(), o.spec);
  Result<OpenedTiers> tiers = open_tiers({.config = o.config,
                                          .spec = o.spec,
                                          .kv_dtype = o.types.kv,
                                          .device = parts.device->facts(),
                                          .arena = parts.arena.as<char>(),
                                          .host = parts.host_memory,
                                          .block_bytes = out.block_bytes,
                                          .make_stream = make_stream});
  if (!tiers) return tiers.error();
  out.tiers = std::move(*tiers);
  out.config = o.config;
  out.config.device = device;
  out.config.kv_cache_bytes = o.plan.cache_bytes;
  return out;
}

}  // namespace quire
