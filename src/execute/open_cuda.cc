// A card, or the host shim that runs its kernels, behind open_executor.
#include <algorithm>

#include "kernels/cuda/host_device.h"
#include "kernels/cuda/limits.h"
#include "src/device/cpu_features.h"
#include "src/device/host_memory.h"
#include "src/execute/cuda_runner.h"
#include "src/execute/memory_plan.h"
#include "src/execute/open_device.h"
#include "src/execute/policy_room.h"
#include "src/execute/resolve_config.h"
#include "src/execute/swap_space.h"
#include "src/execute/tier_setup.h"
#include "src/model/weight_source.h"

namespace quire {
namespace {

// What a card needs beside the items of the memory plan: the library's workspace, what the driver keeps.
constexpr int64_t kReservedBytes = 512ll << 20;
constexpr int64_t kHostShimCacheBytes = 256ll << 20;
constexpr int64_t kHostShimMemory = 4ll << 30;
constexpr int64_t kMostLogitsBytes = 512ll << 20;

struct Choices {
  DType activations = DType::kBF16, kv = DType::kBF16;
};

// Activations of the checkpoint's type unless asked otherwise; the cache holds them as they are.
Result<Choices> choose_dtypes(EngineConfig& config, const ModelSpec& spec) {
  const Result<std::optional<DType>> activations = parse_dtype(config.dtype, "dtype");
  if (!activations) return activations.error();
  const Result<std::optional<DType>> kv = parse_dtype(config.kv_cache_dtype, "kv_cache_dtype");
  if (!kv) return kv.error();
  Choices c;
  c.activations = activations->value_or(spec.checkpoint_dtype);
  c.kv = kv->value_or(c.activations);
  if (c.kv != c.activations)
    return invalid("kv_cache_dtype is `" + std::string(name_of(c.kv)) + "` and dtype `" +
                       std::string(name_of(c.activations)) + "`; on device cuda both must be the same",
                   "kv_cache_dtype");
  config.dtype = name_of(c.activations);
  config.kv_cache_dtype = name_of(c.kv);
  return c;
}

Result<std::unique_ptr<StreamDevice>> open_stream_device(DeviceKind kind) {
  if (kind == DeviceKind::kCudaHost) return open_cuda_host_device();
  return open_cuda_device();
}

struct Opening {
  EngineConfig config;
  const ModelSpec& spec;
  DeviceKind kind;
  Choices dtypes;
  KvLayout layout;
  CudaRunnerParts parts;
  PolicyMemoryLimits policy_memory;
  MemoryPlan plan;
};

// Decode steps are padded, at most to the next multiple of 256 sequences.
int64_t padded_sequences(const EngineConfig& c) {
  return (int64_t{c.max_sequences} + 255) / 256 * 256;
}

ForwardLimits forward_limits(const EngineConfig& c) {
  const int64_t rows = std::max<int64_t>(c.max_step_tokens, padded_sequences(c));
  return {.max_rows = rows,
          .max_logits_rows = rows,
          .max_sequences = static_cast<int32_t>(padded_sequences(c)),
          .max_context_tokens = c.max_context_tokens};
}

StepLimits step_limits(const Opening& o, int32_t num_blocks) {
  return {.max_rows = o.config.max_step_tokens,
          .max_sequences = o.config.max_sequences,
          .max_context_tokens = o.config.max_context_tokens,
          .block_tokens = o.config.block_tokens,
          .num_blocks = num_blocks,
          .vocab_size = o.spec.vocab_size};
}

RetentionRoom retention_room(const Opening& o, int64_t blocks) {
  if (!may_go_by_scores(o.config)) return {};
  const int64_t most = int64_t{o.config.max_sequences} * o.config.max_context_tokens;
  return {.rows = forward_limits(o.config).max_rows,
          .slots = std::min(blocks * o.config.block_tokens, most),
          .state_bytes = o.policy_memory.bytes};
}

int64_t beside_block_bytes(const Opening& o) {
  return may_go_by_scores(o.config)
             ? o.config.block_tokens * DeviceRetention::bytes_of_slot(o.spec.num_q_heads)
             : 0;
}

// For as many blocks as there might be at most: each costs a pair's eight bytes.
int64_t steps_bytes(const Opening& o, int64_t free_bytes) {
  const int64_t blocks = std::clamp<int64_t>(free_bytes / o.layout.block_bytes(), 1, INT32_MAX);
  return cuda_runner_bytes(step_limits(o, static_cast<int32_t>(blocks)),
                           o.parts.kernels->sample_space_bytes()) +
         DeviceRetention::reserved_bytes(retention_room(o, 0), o.layout, o.spec.num_q_heads);
}

Result<MemoryPlan> plan_device_memory(Opening& o, const WeightSource& source) {
  const DeviceFacts& facts = o.parts.device->facts();
  const bool shim = o.kind == DeviceKind::kCudaHost;
  const auto usable =
      static_cast<int64_t>(static_cast<double>(facts.memory_bytes) * o.config.gpu_memory_utilization) -
      kReservedBytes;
  const int64_t free_bytes =
      std::min(o.parts.device->free_bytes() - (shim ? 0 : kReservedBytes), shim ? kHostShimMemory : usable);
  o.policy_memory = policy_memory_limits(o.config, o.spec, free_bytes);
  return plan_memory(
      {.device = facts.name,
       .free_bytes = free_bytes,
       .weights_bytes = weight_bytes(source, o.spec, false),
       .workspace_bytes = ForwardPass::workspace_bytes(*o.parts.kernels, o.spec, forward_limits(o.config)),
       .logits_bytes = o.parts.logits_rows * o.spec.vocab_size * bytes_of(DType::kF32),
       .steps_bytes = steps_bytes(o, free_bytes),
       .policy_bytes = o.policy_memory.bytes,
       .block_bytes = o.layout.block_bytes(),
       .beside_block_bytes = beside_block_bytes(o),
       .block_tokens = o.config.block_tokens,
       .max_context_tokens = o.config.max_context_tokens,
       .kv_cache_bytes = o.config.kv_cache_bytes,
       .default_cache_bytes = shim ? kHostShimCacheBytes : free_bytes});
}

void tune_products(const Opening& o, const Weights& weights) {
  std::vector<const MatmulWeight*> products;
  for (const LayerWeights& layer : weights.layers)
    for (const auto* weight : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down})
      products.push_back(weight->get());
  o.parts.kernels->tune({.weights = products,
                         .output = weights.lm_head.get(),
                         .max_rows = forward_limits(o.config).max_rows,
                         .max_output_rows = o.parts.logits_rows,
                         .budget_ms = o.config.gemm_tuning_ms});
}

Status fill_memory(Opening& o, WeightSource& source) {
  StreamDevice& device = *o.parts.device;
  Result<Weights> weights = load_weights(source, o.spec, *o.parts.kernels);
  if (!weights) return weights.error();
  tune_products(o, *weights);  // while there is room
  Result<DeviceBuffer> arena = device.allocate(o.plan.cache_bytes, "cache");
  if (!arena) return arena.error();
  o.parts.arena = std::move(*arena);
  if (Status host = allocate_host_memory(device, o.parts.host_memory); !host) return host;
  device.set_zero(o.parts.arena.data(),
                  o.parts.arena.bytes());  // padding rows read block 0: it must hold numbers
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
  o.parts.layout = o.layout;
  // Layers with a window of their own read every list alone; where all have one there is nothing to find.
  const bool sees_all =
      std::any_of(o.spec.window.begin(), o.spec.window.end(), [](int32_t window) { return window == 0; });
  o.parts.cascade = {.block_tokens = o.config.block_tokens,
                     .token_bytes = o.layout.layer_stride() / o.config.block_tokens,
                     .least_saved_bytes = sees_all ? o.config.cascade_min_saved_bytes : -1};
  o.parts.limits = step_limits(o, o.plan.num_blocks);
  o.parts.retention = retention_room(o, o.plan.num_blocks);
  o.parts.max_graph_tokens = o.config.max_graph_tokens;
  o.parts.check_tables = o.config.check_invariants;
  OpenedExecutor out;
  out.spec = o.spec;
  out.num_blocks = o.plan.num_blocks;
  out.block_bytes = o.layout.block_bytes();
  out.device = o.parts.device->facts().name;
  out.dtype = o.config.dtype;
  out.kv_dtype = o.dtypes.kv;
  out.memory = o.plan;
  out.swap_bytes = o.parts.host_memory.swap_bytes;
  out.host_bytes = o.parts.host_memory.host_bytes;
  out.policy_memory = o.policy_memory;
  out.preemption_costs = preemption_costs(o.parts.device->facts(), o.spec);
  Result<OpenedTiers> tiers =
      open_tiers({.config = o.config,
                  .spec = o.spec,
                  .kv_dtype = o.dtypes.kv,
                  .device = o.kind,
                  .arena = o.parts.arena.as<char>(),
                  .host = o.parts.host_memory,
                  .block_bytes = o.layout.block_bytes(),
                  .make_stream = [&o] { return o.parts.device->make_copy_stream(); }});
  if (!tiers) return tiers.error();
  out.tiers = std::move(*tiers);
  out.config = o.config;
  out.config.device = o.kind == DeviceKind::kCuda ? "cuda" : "cuda-host";
  out.config.kv_cache_bytes = o.plan.cache_bytes;
  Result<std::unique_ptr<QueueingRunner>> runner = make_cuda_runner(std::move(o.parts));
  if (!runner) return runner.error();
  out.executor = make_pipelined_executor(std::move(*runner));
  return out;
}

}  // namespace

Result<OpenedExecutor> open_cuda_executor(const EngineConfig& config, const ModelSpec& spec,
                                          DeviceKind kind) {
  Opening o{.config = config, .spec = spec, .kind = kind};
  Result<std::unique_ptr<StreamDevice>> device = open_stream_device(kind);
  if (!device) return device.error();
  o.parts.device = std::move(*device);
  if (Status fits = check_cuda_limits({.hidden_size = spec.hidden_size, .vocab_size = spec.vocab_size});
      !fits)
    return fits.error();
  const Result<Choices> dtypes = choose_dtypes(o.config, spec);
  if (!dtypes) return dtypes.error();
  o.dtypes = *dtypes;
  o.layout = {.dtype = o.dtypes.kv,
              .num_layers = spec.num_layers,
              .num_kv_heads = spec.num_kv_heads,
              .head_dim = spec.head_dim,
              .block_tokens = config.block_tokens};
  o.parts.logits_rows =
      std::clamp<int64_t>(kMostLogitsBytes / (int64_t{spec.vocab_size} * 4), 1, padded_sequences(config));
  o.config.threads = o.config.threads == 0 ? usable_cores() : o.config.threads;
  Result<std::unique_ptr<Kernels>> kernels =
      make_cuda_kernels(*o.parts.device, {.activations = o.dtypes.activations, .threads = o.config.threads});
  if (!kernels) return kernels.error();
  o.parts.kernels = std::move(*kernels);
  Result<std::unique_ptr<WeightSource>> source =
      open_weight_source(config.weights, config.model_dir, spec, o.config.threads);
  if (!source) return source.error();
  Result<HostMemory> host_memory =
      size_host_memory(o.config, o.kind, o.layout.block_bytes(), available_host_bytes());
  if (!host_memory) return host_memory.error();
  o.parts.host_memory = std::move(*host_memory);
  Result<MemoryPlan> plan = plan_device_memory(o, **source);
  if (!plan) return plan.error();
  o.plan = std::move(*plan);
  if (Status filled = fill_memory(o, **source); !filled) return filled.error();
  return finish(o);
}

}  // namespace quire
