// A card, or the host shim that runs its kernels, behind open_executor.
#include <algorithm>
#include <utility>

#include "kernels/cuda/host_device.h"
#include "kernels/cuda/limits.h"
#include "src/base/clock.h"
#include "src/base/log.h"
#include "src/device/cpu_features.h"
#include "src/device/host_memory.h"
#include "src/execute/card_memory.h"
#include "src/execute/cuda_runner.h"
#include "src/execute/memory_plan.h"
#include "src/execute/open_device.h"
#include "src/execute/opening.h"
#include "src/execute/policy_room.h"
#include "src/execute/step_graphs.h"

namespace quire {
namespace {

// How long the parts of a start take, one after another.
class Laps {
 public:
  int64_t lap_ms() {
    const int64_t before = std::exchange(last_us_, clock_.now_us());
    return (last_us_ - before) / 1000;
  }

 private:
  SteadyClock clock_;
  int64_t last_us_ = clock_.now_us();
};

// What a card needs beside the items of the memory plan: the library's workspace, what the driver keeps.
constexpr int64_t kReservedBytes = 512ll << 20;
constexpr int64_t kHostShimCacheBytes = 256ll << 20;
constexpr int64_t kHostShimMemory = 4ll << 30;
constexpr int64_t kMostLogitsBytes = 512ll << 20;

// Activations of the checkpoint's type unless asked otherwise; the cache holds them as they are.
Status choose_types(Opening& o) {
  const Result<ElementTypes> types = choose_types(o.config, o.spec.checkpoint_dtype);
  if (!types) return types.error();
  if (types->kv != types->activations)
    return invalid("kv_cache_dtype is `" + std::string(name_of(types->kv)) + "` and dtype `" +
                       std::string(name_of(types->activations)) + "`; on device cuda both must be the same",
                   "kv_cache_dtype");
  o.set_types(*types);
  return ok();
}

Result<std::unique_ptr<StreamDevice>> open_stream_device(DeviceKind kind) {
  if (kind == DeviceKind::kCudaHost) return open_cuda_host_device({.late = true});
  return open_cuda_device();
}

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

RetentionRoom retention_room(const Opening& o, int64_t blocks) {
  if (!may_go_by_scores(o.config)) return {};
  const int64_t most = int64_t{o.config.max_sequences} * o.config.max_context_tokens;
  return {.rows = o.forward_limits.max_rows,
          .slots = std::min(blocks * o.config.block_tokens, most),
          .state_bytes = o.policy_memory.bytes};
}

int64_t beside_block_bytes(const Opening& o) {
  return may_go_by_scores(o.config)
             ? o.config.block_tokens * DeviceRetention::bytes_of_slot(o.spec.num_q_heads)
             : 0;
}

// For as many blocks as there might be at most: each costs a pair's eight bytes.
int64_t steps_bytes(const Opening& o, const Kernels& kernels, int64_t free_bytes) {
  const int64_t blocks = std::clamp<int64_t>(free_bytes / o.layout().block_bytes(), 1, INT32_MAX);
  return cuda_runner_bytes(o.step_limits(static_cast<int32_t>(blocks)), kernels.sample_space_bytes()) +
         DeviceRetention::reserved_bytes(retention_room(o, 0), o.layout(), o.spec.num_q_heads);
}

// The host's memory is not for the shim alone.
CardMemory card_memory(const Opening& o, const Device& device) {
  const bool card = o.kind == DeviceKind::kCuda;
  const int64_t memory = device.facts().memory_bytes;
  return {.memory_bytes = card ? memory : std::min(memory, kHostShimMemory),
          .free_bytes = device.free_bytes(),
          .utilization = o.config.gpu_memory_utilization,
          .reserved_bytes = card ? kReservedBytes : 0};
}

Result<MemoryPlan> plan_device_memory(const Opening& o, const ModelParts& parts, const WeightSource& source,
                                      const CardMemory& card) {
  const int64_t free_bytes = usable_bytes(card);
  return plan_memory(
      {.device = parts.device->facts().name,
       .reckoning = reckoning_of(card),
       .free_bytes = free_bytes,
       .most_bytes = most_usable_bytes(card),
       .weights_bytes = weight_bytes(source, o.spec, false),
       .workspace_bytes = ForwardPass::workspace_bytes(*parts.kernels, o.spec, o.forward_limits),
       .logits_bytes = o.logits_bytes(parts),
       .steps_bytes = steps_bytes(o, *parts.kernels, free_bytes),
       .policy_bytes = o.policy_memory.bytes,
       .block_bytes = o.layout().block_bytes(),
       .beside_block_bytes = beside_block_bytes(o),
       .block_tokens = o.config.block_tokens,
       .max_context_tokens = o.config.max_context_tokens,
       .kv_cache_bytes = o.config.kv_cache_bytes,
       .default_cache_bytes = o.kind == DeviceKind::kCudaHost ? kHostShimCacheBytes : free_bytes});
}

// For as many rows as decode steps have: steps with prompts gain nothing (8192 tokens on an H100 217 to 219 ms timed or not),
// and their shapes are two thirds of all.
void tune_products(const Opening& o, const ModelParts& parts, const Weights& weights) {
  std::vector<const MatmulWeight*> products;
  for (const LayerWeights& layer : weights.layers)
    for (const auto* weight : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down})
      products.push_back(weight->get());
  parts.kernels->tune({.weights = products,
                       .output = weights.lm_head.get(),
                       .max_rows = padded_sequences(o.config),
                       .max_output_rows = parts.logits_rows,
                       .budget_ms = o.config.gemm_tuning_ms});
}

// Layers with a window of their own read every list alone; where all have one there is nothing to find.
CascadeRule cascade_rule(const Opening& o) {
  const std::vector<int32_t>& windows = o.spec.window;
  const bool sees_all =
      std::any_of(windows.begin(), windows.end(), [](int32_t window) { return window == 0; });
  return {.block_tokens = o.config.block_tokens,
          .token_bytes = o.layout().layer_stride() / o.config.block_tokens,
          .least_saved_bytes = sees_all ? o.config.cascade_min_saved_bytes : -1};
}

Status open_kernels(Opening& o, StreamDevice& device, ModelParts& parts) {
  o.config.threads = o.config.threads == 0 ? usable_cores() : o.config.threads;
  Result<std::unique_ptr<Kernels>> kernels =
      make_cuda_kernels(device, {.activations = o.types.activations, .threads = o.config.threads});
  if (!kernels) return kernels.error();
  parts.kernels = std::move(*kernels);
  return ok();
}

// Behind what fill_memory noted. On the shim pinned memory is the device's too, which no plan has.
void note_the_rest(const Opening& o, MemoryLedger& ledger) {
  ledger.note("steps_and_policies", o.plan.steps_bytes - GraphLimits{}.bytes + o.plan.policy_bytes +
                                        o.plan.num_blocks * beside_block_bytes(o));
  ledger.keep("graphs", GraphLimits{}.bytes);  // captured when a step first needs them
  if (o.kind == DeviceKind::kCuda) ledger.keep("reserve", kReservedBytes);
}

Result<OpenedExecutor> finish(const Opening& o, StreamDevice& device, CudaRunnerParts& parts) {
  device.set_zero(parts.arena.data(),
                  parts.arena.bytes());  // padding rows read block 0: it must hold numbers
  parts.cascade = cascade_rule(o);
  parts.retention = retention_room(o, o.plan.num_blocks);
  parts.max_graph_tokens = o.config.max_graph_tokens;
  parts.check_tables = o.config.check_invariants;
  parts.time_idle = o.config.time_device_idle;
  Result<OpenedExecutor> out = describe(o, parts, o.kind == DeviceKind::kCuda ? "cuda" : "cuda-host",
                                        [&device] { return device.make_copy_stream(); });
  if (!out) return out;
  Result<std::unique_ptr<QueueingRunner>> runner = make_cuda_runner(std::move(parts));
  if (!runner) return runner.error();
  Result<std::unique_ptr<Executor>> executor = make_pipelined_executor(std::move(*runner));
  if (!executor) return executor.error();
  out->executor = std::move(*executor);
  return out;
}

}  // namespace

Result<OpenedExecutor> open_cuda_executor(const EngineConfig& config, const ModelSpec& spec,
                                          DeviceKind kind) {
  Laps laps;
  Opening o{.config = config, .spec = spec, .kind = kind};
  Result<std::unique_ptr<StreamDevice>> opened = open_stream_device(kind);
  if (!opened) return opened.error();
  StreamDevice& device = **opened;
  CudaRunnerParts parts;
  parts.device = std::move(*opened);
  if (Status fits = check_cuda_limits({.hidden_size = spec.hidden_size, .vocab_size = spec.vocab_size});
      !fits)
    return fits.error();
  if (Status chosen = choose_types(o); !chosen) return chosen.error();
  o.forward_limits = forward_limits(o.config);
  parts.logits_rows =
      std::clamp<int64_t>(kMostLogitsBytes / (int64_t{spec.vocab_size} * 4), 1, padded_sequences(config));
  if (Status made = open_kernels(o, device, parts); !made) return made.error();
  Result<std::unique_ptr<WeightSource>> source =
      open_weight_source(config.weights, config.model_dir, spec, o.config.threads);
  if (!source) return source.error();
  Result<HostMemory> host_memory =
      size_host_memory(o.config, o.kind, o.layout().block_bytes(), available_host_bytes());
  if (!host_memory) return host_memory.error();
  parts.host_memory = std::move(*host_memory);
  MemoryLedger ledger(device);
  const CardMemory card = card_memory(o, device);
  o.policy_memory = policy_memory_limits(o.config, spec, usable_bytes(card));
  Result<MemoryPlan> plan = plan_device_memory(o, parts, **source, card);
  if (!plan) return plan.error();
  o.plan = std::move(*plan);
  const int64_t device_ms = laps.lap_ms();
  int64_t weights_ms = 0, tuning_ms = 0;
  const auto tune = [&](const Weights& weights) {
    weights_ms = laps.lap_ms();
    tune_products(o, parts, weights);
    tuning_ms = laps.lap_ms();
  };
  if (Status filled = fill_memory(o, **source, parts, ledger, tune); !filled) return filled.error();
  const int64_t memory_ms = laps.lap_ms();
  Result<OpenedExecutor> out = finish(o, device, parts);
  if (!out) return out;
  note_the_rest(o, ledger);
  ledger.log();
  log_line(LogLevel::kInfo, "executor_opened",
           {{"device_ms", device_ms},
            {"weights_ms", weights_ms},
            {"tuning_ms", tuning_ms},
            {"memory_ms", memory_ms},
            {"runner_ms", laps.lap_ms()}});
  return out;
}

}  // namespace quire
