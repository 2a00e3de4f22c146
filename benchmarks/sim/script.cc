#include "benchmarks/sim/script.h"

#include <fmt/format.h>

#include <array>
#include <fstream>
#include <set>

#include <nlohmann/json.hpp>

#include "src/base/engine_config.h"

namespace quire {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::array<std::string_view, kNumSimEventKinds> kNames = {
    "submit",         "cancel",         "pause",        "resume",    "stop",
    "executor_error", "copy_error",     "copy_delay",   "no_room",   "clock_jump",
    "transfer_error", "transfer_delay", "disk_corrupt", "disk_hang", "sequence_error"};

Json json_of(const SimSetup& setup) {
  const EngineConfig& c = setup.core.config;
  const GroupSpec& g = setup.core.cache.groups.front();
  return {{"layers", g.num_layers},
          {"kv_heads", g.num_kv_heads},
          {"head_dim", g.head_dim},
          {"block_tokens", g.block_tokens},
          {"blocks", setup.model.num_blocks},
          {"swap_blocks", setup.core.cache.swap_bytes / g.block_bytes()},
          {"host_blocks", setup.core.cache.host_bytes / g.block_bytes()},
          {"disk_blocks", setup.core.cache.disk_bytes / g.block_bytes()},
          {"preemption_mode", c.preemption_mode},
          {"link", {setup.tiers.host.transfer_us, setup.tiers.host.us_per_block}},
          {"disk_bytes_per_s", setup.core.preemption_costs.disk_bytes_per_s},
          {"link_bytes_per_s", setup.core.preemption_costs.link_bytes_per_s},
          {"both_ends", static_cast<int>(setup.core.both_ends)},
          {"least_chunk_tokens", setup.core.preemption_costs.least_chunk_tokens},
          {"flops_per_s", setup.core.preemption_costs.flops_per_s},
          {"flops_per_token", setup.core.preemption_costs.flops_per_token},
          {"flops_per_token_pair", setup.core.preemption_costs.flops_per_token_pair},
          {"step_us", setup.core.preemption_costs.step_us},
          {"disk_link", {setup.tiers.disk.transfer_us, setup.tiers.disk.us_per_block}},
          {"vocab", setup.model.vocab_size},
          {"eos", setup.core.eos_token_ids},
          {"max_sequences", c.max_sequences},
          {"max_step_tokens", c.max_step_tokens},
          {"max_prefill_chunk_tokens", c.max_prefill_chunk_tokens},
          {"max_context_tokens", c.max_context_tokens},
          {"max_queued_requests", c.max_queued_requests},
          {"max_queued_kv_factor", c.max_queued_kv_factor},
          {"max_priority_wait_ms", c.max_priority_wait_ms},
          {"look_ahead", setup.core.look_ahead},
          {"prefix_cache", c.prefix_cache},
          {"policy_memory",
           {{"bytes", setup.core.policy_memory.bytes},
            {"layers", setup.core.policy_memory.num_layers},
            {"kv_heads", setup.core.policy_memory.num_kv_heads}}},
          {"reserve", {setup.core.reserve.least, setup.core.reserve.rise, setup.core.reserve.decay}},
          {"eviction", setup.core.eviction == EvictionOrder::kPgdsf ? "pgdsf" : "lru"},
          {"whole_block_hits", setup.core.whole_block_hits},
          {"audit_every", setup.core.audit_every},
          {"roofline",
           {setup.roofline.overhead_us, setup.roofline.weights_us, setup.roofline.kv_us_per_token,
            setup.roofline.compute_us_per_token}}};
}

// Whole, and within its bounds: what a setup asks of the cache it gets, so that a wrong line is an error and no abort.
int64_t count(const Json& j, const char* name, int64_t least, int64_t most) {
  const Json& value = j.at(name);
  if (!value.is_number_integer() || value.get<int64_t>() < least || value.get<int64_t>() > most)
    throw std::runtime_error(
        fmt::format("{} is {}; it must be a whole number from {} to {}", name, value.dump(), least, most));
  return value.get<int64_t>();
}
int64_t count_or_none(const Json& j, const char* name, int64_t most) {
  return j.contains(name) ? count(j, name, 0, most) : 0;
}

SimSetup setup_of(const Json& j) {
  constexpr int64_t kMostBlocks = 1 << 26;
  SimSetup setup;
  GroupSpec group;
  group.num_layers = static_cast<int32_t>(count(j, "layers", 1, 4096));
  group.num_kv_heads = static_cast<int32_t>(count(j, "kv_heads", 1, 4096));
  group.head_dim = static_cast<int32_t>(count(j, "head_dim", 8, 4096));
  group.block_tokens = static_cast<int32_t>(count(j, "block_tokens", 8, 64));
  if ((group.block_tokens & (group.block_tokens - 1)) != 0)
    throw std::runtime_error(
        fmt::format("block_tokens is {}; it must be 8, 16, 32 or 64", group.block_tokens));
  set_cache(setup, group, count(j, "blocks", 2, kMostBlocks),
            {.swap = count_or_none(j, "swap_blocks", kMostBlocks),
             .host = count_or_none(j, "host_blocks", kMostBlocks),
             .disk = count_or_none(j, "disk_blocks", kMostBlocks)});
  setup.model.vocab_size = setup.core.vocab_size = static_cast<int32_t>(count(j, "vocab", 2, 1 << 24));
  setup.core.eos_token_ids = j.at("eos").get<std::vector<TokenId>>();
  EngineConfig& c = setup.core.config;
  c.max_sequences = static_cast<int32_t>(count(j, "max_sequences", 1, 65536));
  c.max_step_tokens = static_cast<int32_t>(count(j, "max_step_tokens", c.max_sequences, 1 << 24));
  c.max_prefill_chunk_tokens = static_cast<int32_t>(count(j, "max_prefill_chunk_tokens", 0, 1 << 24));
  c.max_context_tokens = static_cast<int32_t>(count(j, "max_context_tokens", 1, 1 << 24));
  c.max_queued_requests = static_cast<int32_t>(count(j, "max_queued_requests", 1, 1 << 24));
  c.max_queued_kv_factor = j.at("max_queued_kv_factor");
  c.prefix_cache = j.at("prefix_cache");
  c.max_priority_wait_ms = j.value("max_priority_wait_ms", c.max_priority_wait_ms);
  setup.core.look_ahead = j.value("look_ahead", setup.core.look_ahead);
  c.preemption_mode = j.value("preemption_mode", c.preemption_mode);
  if (j.contains("link")) setup.tiers.host = {j["link"].at(0), j["link"].at(1)};
  setup.core.preemption_costs.disk_bytes_per_s =
      j.value("disk_bytes_per_s", setup.core.preemption_costs.disk_bytes_per_s);
  PreemptionCosts& costs = setup.core.preemption_costs;
  costs.link_bytes_per_s = j.value("link_bytes_per_s", costs.link_bytes_per_s);
  setup.core.both_ends = static_cast<BothEnds>(j.contains("both_ends") ? count(j, "both_ends", 0, 2) : 1);
  costs.least_chunk_tokens = j.value("least_chunk_tokens", costs.least_chunk_tokens);
  costs.flops_per_s = j.value("flops_per_s", costs.flops_per_s);
  costs.flops_per_token = j.value("flops_per_token", costs.flops_per_token);
  costs.flops_per_token_pair = j.value("flops_per_token_pair", costs.flops_per_token_pair);
  costs.step_us = j.value("step_us", costs.step_us);
  if (j.contains("disk_link")) setup.tiers.disk = {j["disk_link"].at(0), j["disk_link"].at(1)};
  c.check_invariants = true;
  if (const Status valid = validate(c); !valid) throw std::runtime_error(valid.error().message);
  setup.core.reserve = {j.at("reserve").at(0), j.at("reserve").at(1), j.at("reserve").at(2)};
  if (j.contains("policy_memory")) {
    const Json& memory = j["policy_memory"];
    setup.core.policy_memory = {.bytes = count(memory, "bytes", 0, int64_t{1} << 40),
                                .num_layers = static_cast<int32_t>(count(memory, "layers", 0, 4096)),
                                .num_kv_heads = static_cast<int32_t>(count(memory, "kv_heads", 0, 4096))};
  }
  setup.core.eviction = j.at("eviction") == "pgdsf" ? EvictionOrder::kPgdsf : EvictionOrder::kLru;
  setup.core.whole_block_hits = j.at("whole_block_hits");
  setup.core.audit_every = static_cast<int32_t>(count(j, "audit_every", 1, 1 << 30));
  const Json& r = j.at("roofline");
  setup.roofline = {r.at(0), r.at(1), r.at(2), r.at(3)};
  return setup;
}

// Defaults are left out: a line says what is unusual about a request.
Json json_of(const CoreRequest& r) {
  const SamplingParams& p = *r.sampling;
  Json j = {{"prompt", r.prompt}, {"max_tokens", p.max_tokens}, {"seed", r.seed}};
  const auto put = [&j](const char* name, const auto& value, const auto& usual) {
    if (value != usual) j[name] = value;
  };
  put("temperature", p.temperature, 0.0);
  put("min_tokens", p.min_tokens, 0);
  put("ignore_eos", p.ignore_eos, false);
  put("n", p.n, 1);
  put("best_of", p.best_of, 0);
  put("beam_width", p.beam_width, 0);
  put("early_stopping", p.early_stopping, false);
  put("prompt_logprobs", p.prompt_logprobs, -1);
  put("tenant", r.tenant, std::string());
  put("salt", r.cache_salt, std::string());
  put("bypass_prefix_cache", r.bypass_prefix_cache, false);
  put("priority", r.priority, 0);
  put("retention_class", r.retention.retention_class, 0);
  if (r.retention.ttl_ms) j["ttl_ms"] = *r.retention.ttl_ms;
  put("cost", r.retention.cost, 1.0);
  if (r.policy.kind != RetentionKind::kKeepAll) j["kv_policy"] = to_string(r.policy);
  put("deadline_us", r.deadline_us, kNoDeadline);
  return j;
}

CoreRequest request_of(const Json& j) {
  CoreRequest r;
  SamplingParams p;
  r.prompt = j.at("prompt").get<std::vector<TokenId>>();
  p.max_tokens = j.at("max_tokens");
  r.seed = j.at("seed");
  p.temperature = j.value("temperature", 0.0);
  p.min_tokens = j.value("min_tokens", 0);
  p.ignore_eos = j.value("ignore_eos", false);
  p.n = j.value("n", 1);
  p.best_of = j.value("best_of", 0);
  p.beam_width = j.value("beam_width", 0);
  p.early_stopping = j.value("early_stopping", false);
  p.prompt_logprobs = j.value("prompt_logprobs", -1);
  r.tenant = j.value("tenant", std::string());
  r.cache_salt = j.value("salt", std::string());
  r.bypass_prefix_cache = j.value("bypass_prefix_cache", false);
  r.priority = j.value("priority", 0);
  r.retention.retention_class = j.value("retention_class", 0);
  if (j.contains("ttl_ms")) r.retention.ttl_ms = j.at("ttl_ms").get<int64_t>();
  r.retention.cost = j.value("cost", 1.0);
  const Result<PolicySpec> policy = parse_policy(j.value("kv_policy", std::string()));
  if (!policy) throw std::runtime_error(policy.error().message);
  r.policy = *policy;
  r.deadline_us = j.value("deadline_us", kNoDeadline);
  r.sampling = std::make_shared<const SamplingParams>(p);
  return r;
}

Json json_of(const SimEvent& e) {
  Json j = {{"tick", e.tick}, {"event", kNames[static_cast<size_t>(e.kind)]}};
  if (e.request != 0) j["request"] = e.request;
  if (e.value != 0) j["value"] = e.value;
  if (e.submit != nullptr) j.update(json_of(*e.submit));
  return j;
}

SimEvent event_of(const Json& j) {
  SimEvent e;
  e.tick = j.at("tick");
  const auto name = std::find(kNames.begin(), kNames.end(), j.at("event").get<std::string>());
  if (name == kNames.end())
    throw std::runtime_error("unknown event `" + j.at("event").get<std::string>() + "`");
  e.kind = static_cast<SimEventKind>(name - kNames.begin());
  // Who is submitted has a place of its own number.
  if (e.kind == SimEventKind::kSubmit || j.contains("request"))
    e.request = static_cast<RequestId>(count(j, "request", 1, 1 << 26));
  e.value = j.value("value", int64_t{0});
  if (e.kind == SimEventKind::kSubmit) e.submit = std::make_shared<const CoreRequest>(request_of(j));
  return e;
}

}  // namespace

std::string_view name_of(SimEventKind kind) {
  return kNames[static_cast<size_t>(kind)];
}

std::string to_json_lines(const SimScript& script) {
  Json first = {{"ticks", script.num_ticks}};
  if (script.seed) first["seed"] = *script.seed;
  first.update(json_of(script.setup));
  std::string text = first.dump() + "\n";
  for (const SimEvent& e : script.events) text += json_of(e).dump() + "\n";
  return text;
}

Result<SimScript> read_script(const std::string& path) {
  std::ifstream file(path);
  if (!file) return invalid(fmt::format("script: {} cannot be read", path), "script");
  SimScript script;
  std::set<RequestId> submitted;
  std::string line;
  for (int64_t number = 1; std::getline(file, line); ++number) {
    // The library reports by exceptions what a line lacks or has of another type.
    try {
      const Json json = Json::parse(line);
      if (number == 1) {
        script.setup = setup_of(json);
        script.num_ticks = json.at("ticks");
        if (json.contains("seed")) script.seed = json["seed"].get<uint64_t>();
      } else {
        SimEvent event = event_of(json);
        if (event.kind == SimEventKind::kSubmit && !submitted.insert(event.request).second)
          throw std::runtime_error(fmt::format("request {} is submitted twice", event.request));
        script.events.push_back(std::move(event));
      }
    } catch (const std::exception& e) {
      return invalid(fmt::format("{}:{}: {}", path, number, e.what()), "script");
    }
  }
  if (script.num_ticks == 0)
    return invalid(fmt::format("{}: the first line must be the setup", path), "script");
  return script;
}

Status write_script(const SimScript& script, const std::string& path) {
  std::ofstream file(path);
  file << to_json_lines(script);
  file.flush();
  if (!file) return error(Code::kUnavailable, fmt::format("script: {} cannot be written", path));
  return ok();
}

}  // namespace quire
