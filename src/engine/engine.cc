// Engine::open: a model directory becomes an executor, a tokenizer, a cache and two threads.
#include "quire/engine.h"

#include <fmt/format.h>

#include <algorithm>

#include "quire/host_memory.h"
#include "src/base/check.h"
#include "src/base/engine_config.h"
#include "src/base/log.h"
#include "src/engine/threaded_engine.h"
#include "src/execute/model_executor.h"

namespace quire {
namespace {

GroupSpec group_of(const OpenedExecutor& opened) {
  GroupSpec group;
  group.num_layers = opened.spec.num_layers;
  group.num_kv_heads = opened.spec.num_kv_heads;
  group.head_dim = opened.spec.head_dim;
  group.dtype = opened.kv_dtype;
  group.block_tokens = opened.config.block_tokens;
  return group;
}

CoreOptions core_of(const OpenedExecutor& opened) {
  CoreOptions core;
  core.config = opened.config;
  const GroupSpec group = group_of(opened);
  check(group.block_bytes() == opened.block_bytes, "cache and executor agree on a block's bytes");
  core.cache = uniform_spec(group, opened.num_blocks);
  core.cache.swap_bytes = opened.swap_bytes;
  core.cache.host_bytes = opened.host_bytes;
  core.cache.disk_bytes = opened.tiers.disk_bytes;
  core.preemption_costs = opened.preemption_costs;
  core.policy_memory = opened.policy_memory;
  // What the disk keeps must bear another name than the one that a server is given today.
  core.identity.model = opened.tiers.model.empty() ? opened.config.served_model_name : opened.tiers.model;
  core.identity.spec = describe(core.cache);
  core.identity.codec = name_of(opened.kv_dtype);
  core.vocab_size = opened.spec.vocab_size;
  core.eos_token_ids = opened.spec.eos_token_ids;
  return core;
}

// The rope table is a part of the workspace that is filled at the start.
int64_t untouched_bytes_of(const OpenedExecutor& o) {
  if (o.config.device == "cuda") return 0;
  const int64_t rope_bytes = int64_t{o.config.max_context_tokens} * o.spec.head_dim * bytes_of(DType::kF32);
  return o.memory.cache_bytes + o.host_bytes + o.swap_bytes + o.memory.workspace_bytes - rope_bytes +
         o.memory.logits_bytes + o.memory.steps_bytes + o.memory.policy_bytes;
}

ModelCard card_of(const OpenedExecutor& opened, const TextFront& text) {
  ModelCard card;
  card.name = opened.config.served_model_name;
  card.architecture = opened.spec.architecture;
  card.dtype = opened.dtype;
  card.device = opened.device;
  card.num_parameters = opened.spec.num_parameters();
  card.num_layers = opened.spec.num_layers;
  card.vocab_size = opened.spec.vocab_size;
  card.max_context_tokens = opened.config.max_context_tokens;
  card.kv_bytes_per_token = opened.spec.kv_bytes_per_token(opened.kv_dtype);
  card.eos_token_ids = opened.spec.eos_token_ids;
  card.bos_token_id = opened.spec.bos_token_id;
  card.default_sampling = opened.spec.default_sampling;
  card.has_tokenizer = text.has_tokenizer();
  card.has_chat_template = text.has_chat_template();
  return card;
}

PolicySetting setting_of(const ModelSpec& spec) {
  PolicySetting setting;
  setting.model_has_sliding_window =
      std::any_of(spec.window.begin(), spec.window.end(), [](int32_t w) { return w > 0; });
  setting.dynamic_ntk_rope = spec.rope.scaling == RopeScaling::kDynamic;
  for (size_t i = 0; i < spec.kv_source.size(); ++i)
    setting.shares_kv_across_layers =
        setting.shares_kv_across_layers || spec.kv_source[i] != static_cast<int32_t>(i);
  return setting;
}

void log_start(const EngineParts& parts, const OpenedExecutor& opened) {
  log_line(LogLevel::kInfo, "engine_start",
           {{"model", parts.card.name},
            {"architecture", parts.card.architecture},
            {"parameters", parts.card.num_parameters},
            {"device", opened.device},
            {"dtype", opened.dtype},
            {"kv_dtype", name_of(opened.kv_dtype)},
            {"max_context_tokens", opened.config.max_context_tokens},
            {"blocks", opened.num_blocks},
            {"block_tokens", opened.config.block_tokens},
            {"block_bytes", opened.block_bytes},
            {"swap_bytes", opened.swap_bytes},
            {"host_kv_bytes", opened.host_bytes},
            {"disk_kv_bytes", opened.tiers.disk_bytes},
            {"disk_kv_stored_blocks", static_cast<int64_t>(opened.tiers.stored.size())},
            {"weights_bytes", opened.memory.weights_bytes},
            {"workspace_bytes", opened.memory.workspace_bytes},
            {"logits_bytes", opened.memory.logits_bytes},
            {"steps_bytes", opened.memory.steps_bytes},
            {"kv_policy_bytes", opened.memory.policy_bytes},
            {"cache_bytes", opened.memory.cache_bytes},
            {"left_bytes", opened.memory.left_bytes}});
}

}  // namespace

Result<EngineParts> open_parts(const EngineConfig& config) {
  // What is wrong with the configuration alone is told before the model is read.
  if (Status valid = validate(config); !valid) return valid.error();
  if (Result<PolicyDoor> names = PolicyDoor::create(config, {}); !names) return names.error();
  const std::optional<EvictionOrder> eviction = parse_eviction_order(config.eviction);
  if (!eviction)
    return invalid(fmt::format("eviction is '{}'; it must be lru or pgdsf", config.eviction), "eviction");
  Result<OpenedExecutor> opened = open_executor(config);
  if (!opened) return opened.error();
  Result<PolicyDoor> policies = PolicyDoor::create(config, setting_of(opened->spec));
  if (!policies) return policies.error();
  Result<std::unique_ptr<TextFront>> text = open_text_front(config.model_dir, opened->spec.vocab_size);
  if (!text) return text.error();
  EngineParts parts;
  parts.core = core_of(*opened);
  parts.card = card_of(*opened, **text);
  parts.untouched_host_bytes = untouched_bytes_of(*opened);
  log_start(parts, *opened);
  parts.core.stored_blocks = std::move(opened->tiers.stored);
  parts.core.damaged_records = opened->tiers.damaged_records;
  parts.core.disk_kv_state = opened->tiers.disk_state;
  parts.core.eviction = *eviction;
  parts.layer_windows = opened->spec.window;
  parts.layer_windows.resize(opened->spec.num_layers, 0);
  parts.policies = std::move(*policies);
  parts.text = std::move(*text);
  parts.clock = std::make_unique<SteadyClock>();
  parts.executor = std::move(opened->executor);
  parts.mover = std::move(opened->tiers.mover);
  return parts;
}

Result<std::unique_ptr<Engine>> Engine::open(const EngineConfig& config) {
  Result<EngineParts> parts = open_parts(config);
  if (!parts) return parts.error();
  return ThreadedEngine::start(std::move(*parts));
}

int64_t untouched_host_bytes(const Engine& engine) {
  const auto* opened = dynamic_cast<const ThreadedEngine*>(&engine);
  check(opened != nullptr, "untouched_host_bytes: an engine of Engine::open");
  return opened->untouched_host_bytes();
}

}  // namespace quire
