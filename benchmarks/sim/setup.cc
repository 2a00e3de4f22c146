#include "benchmarks/sim/setup.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include <nlohmann/json.hpp>

#include "src/base/random.h"
#include "src/base/text_file.h"
#include "src/model/config.h"
#include "src/policy/policy_memory.h"

namespace quire {
namespace {

constexpr int64_t kMostBlocks = 1 << 26;
constexpr int64_t kMostJsonBytes = 1 << 20;
constexpr double kMostSpeed = 1e6;
constexpr double kMostSeconds = 1e6;
constexpr double kLeastCacheBytes = 1e9;      // where nobody says how much
constexpr double kTightEpisodes = 0.2;        // of a random load
constexpr int64_t kMaxShadowSlots = 1 << 22;  // 24 bytes each

struct Card {
  double read_bytes_per_s = 3.0e12, flops_per_s = 6.0e14, overhead_us = 50;
  double memory_bytes = 80e9;
};

// Within these no time overflows: the slowest card takes hours for a step of the largest model.
struct CardField {
  const char* name;
  double Card::* value;
  double least, most;
};
constexpr CardField kCardFields[] = {{"read_bytes_per_s", &Card::read_bytes_per_s, 1e6, 1e18},
                                     {"flops_per_s", &Card::flops_per_s, 1e9, 1e21},
                                     {"overhead_us", &Card::overhead_us, 1e-3, 1e7},
                                     {"memory_bytes", &Card::memory_bytes, 1e6, 1e15}};

Result<Card> read_card(const std::string& name) {
  if (name == "h100") return Card{};
  if (name == "h200") return Card{.read_bytes_per_s = 4.3e12, .memory_bytes = 141e9};
  const Result<std::string> text = read_text_file(name, kMostJsonBytes);
  if (!text)
    return invalid(
        fmt::format("card is `{}`; it must be h100, h200 or a JSON file: {}", name, text.error().message),
        "card");
  const nlohmann::json json = nlohmann::json::parse(*text, nullptr, false);
  if (!json.is_object()) return invalid(fmt::format("{}: not a JSON object", name), "card");
  Card card;
  std::vector<std::string> known;
  for (const CardField& field : kCardFields) known.emplace_back(field.name);
  for (const CardField& field : kCardFields) {
    const auto it = json.find(field.name);
    if (it == json.end())
      return invalid(
          fmt::format("{}: `{}` is missing; a card has {}", name, field.name, fmt::join(known, ", ")),
          "card");
    const double value = it->is_number() ? it->get<double>() : 0;
    if (!(value >= field.least && value <= field.most))
      return invalid(fmt::format("{}: `{}` is {}; it must be a number from {} to {}", name, field.name,
                                 it->dump(), field.least, field.most),
                     "card");
    card.*field.value = value;
  }
  for (const auto& [key, value] : json.items())
    if (std::ranges::find(known, key) == known.end())
      return invalid(fmt::format("{}: unknown field `{}`; known: {}", name, key, fmt::join(known, ", ")),
                     "card");
  return card;
}

ModelSpec llama_8b() {
  ModelSpec spec;
  spec.vocab_size = 128256;
  spec.hidden_size = 4096;
  spec.intermediate_size = 14336;
  spec.num_layers = 32;
  spec.num_q_heads = 32;
  spec.num_kv_heads = 8;
  spec.head_dim = 128;
  spec.max_positions = 131072;
  return spec;
}

Result<ModelSpec> read_shape(const std::string& path) {
  if (path.empty()) return llama_8b();
  const Result<std::string> text = read_text_file(path, kMostJsonBytes);
  if (!text) return invalid(fmt::format("model_shape: {}", text.error().message), "model_shape");
  Result<ModelSpec> spec = parse_model_config(*text);
  if (!spec) return invalid(fmt::format("model_shape {}: {}", path, spec.error().message), "model_shape");
  return spec;
}

std::optional<EvictionOrder> eviction_of(const std::string& name) {
  if (name == "auto") return EvictionOrder::kLru;
  if (name == "oracle") return EvictionOrder::kOracle;
  return parse_eviction_order(name);
}

std::optional<BothEnds> both_ends_of(const std::string& name) {
  if (name == "auto" || name == "spare") return BothEnds::kSpare;
  if (name == "never") return BothEnds::kNever;
  return name == "always" ? std::optional(BothEnds::kAlways) : std::nullopt;
}

// A script says all of this itself.
Status check_script_options(const SimOptions& o) {
  const SimOptions none;
  const auto given = [](const char* field, const auto& value) {
    return invalid(fmt::format("{} is {}, and a script is played, which has its own", field, value), field);
  };
  if (o.seed != none.seed) return given("seed", o.seed);
  if (o.sequences != none.sequences) return given("sequences", o.sequences);
  if (o.kv_bytes != none.kv_bytes) return given("kv_bytes", o.kv_bytes);
  if (o.look_ahead != none.look_ahead) return given("look_ahead", o.look_ahead);
  for (const auto& [field, value] :
       {std::pair("model_shape", &SimOptions::model_shape), std::pair("card", &SimOptions::card),
        std::pair("prefix_rule", &SimOptions::prefix_rule), std::pair("eviction", &SimOptions::eviction),
        std::pair("both_ends", &SimOptions::both_ends)})
    if (o.*value != none.*value) return given(field, o.*value);
  return ok();
}

// What a random load has no use for, so that nobody believes in what was not simulated.
Status check_trace_options(const SimOptions& o) {
  if (!o.trace.empty()) {
    if (!o.script.empty()) return invalid("script and trace are both given; one of them is played", "script");
    if (o.trace_format.empty())
      return invalid("trace_format is missing; with a trace it must be azure, mooncake or servegen",
                     "trace_format");
    return ok();
  }
  const auto unused = [](const char* field, const auto& value, const char* why) {
    return invalid(fmt::format("{} is {}, which needs a trace; {}", field, value, why), field);
  };
  if (!o.trace_format.empty())
    return unused("trace_format", o.trace_format, "without one a random load is drawn");
  if (o.speed != 1) return unused("speed", o.speed, "a random load has no arrivals to replay");
  if (o.max_requests != 0)
    return unused("max_requests", o.max_requests, "a random load ends with steps or seconds");
  if (o.eviction == "oracle") return unused("eviction", o.eviction, "only there the future is known");
  for (const auto& [field, bytes] :
       {std::pair("host_kv_bytes", o.host_kv_bytes), std::pair("disk_kv_bytes", o.disk_kv_bytes)})
    if (bytes != 0) return unused(field, bytes, "a random load draws its tiers");
  return ok();
}

Status check_options(const SimOptions& o) {
  if (o.sequences < 1 || o.sequences > 65536)
    return invalid(fmt::format("sequences is {}; it must be from 1 to 65536", o.sequences), "sequences");
  if (o.steps < 0) return invalid(fmt::format("steps is {}; it must be at least 0", o.steps), "steps");
  if (!(o.seconds >= 0 && o.seconds <= kMostSeconds))  // NaN is neither
    return invalid(fmt::format("seconds is {}; it must be from 0 to {}", o.seconds, kMostSeconds), "seconds");
  if (!(o.speed >= 1 / kMostSpeed && o.speed <= kMostSpeed))
    return invalid(fmt::format("speed is {}; it must be from {} to {}", o.speed, 1 / kMostSpeed, kMostSpeed),
                   "speed");
  for (const auto& [field, value] :
       {std::pair("kv_bytes", o.kv_bytes), std::pair("max_requests", o.max_requests)})
    if (value < 0) return invalid(fmt::format("{} is {}; it must be at least 0", field, value), field);
  if (o.audit_every < 1)
    return invalid(fmt::format("audit_every is {}; it must be at least 1", o.audit_every), "audit_every");
  if (o.look_ahead < -1)
    return invalid(fmt::format("look_ahead is {}; it must be at least 0, or -1", o.look_ahead), "look_ahead");
  if (!(o.slo_ttft_ms > 0) || !(o.slo_tpot_ms > 0))
    return invalid("slo_ttft_ms and slo_tpot_ms must be above 0",
                   o.slo_ttft_ms > 0 ? "slo_tpot_ms" : "slo_ttft_ms");
  if (o.prefix_rule != "token" && o.prefix_rule != "block" && o.prefix_rule != "auto")
    return invalid(fmt::format("prefix_rule is `{}`; it must be token, block or auto", o.prefix_rule),
                   "prefix_rule");
  if (!both_ends_of(o.both_ends))
    return invalid(fmt::format("fronts is `{}`; it must be never, spare, always or auto", o.both_ends),
                   "fronts");
  if (!eviction_of(o.eviction))
    return invalid(fmt::format("eviction is `{}`; it must be lru, pgdsf, oracle or auto", o.eviction),
                   "eviction");
  if (!o.script.empty())
    if (Status none = check_script_options(o); !none) return none;
  return check_trace_options(o);
}

}  // namespace

void set_cache(SimSetup& setup, const GroupSpec& group, int64_t blocks, const BlocksBelow& below) {
  setup.core.cache = uniform_spec(group, static_cast<int32_t>(blocks));
  setup.core.cache.swap_bytes = below.swap * group.block_bytes();
  setup.core.cache.host_bytes = below.host * group.block_bytes();
  setup.core.cache.disk_bytes = below.disk * group.block_bytes();
  setup.tiers.host_blocks = below.swap + below.host;
  setup.tiers.disk_blocks = below.disk;
  setup.model.num_blocks = static_cast<int32_t>(blocks);
  setup.model.block_tokens = group.block_tokens;
  setup.model.check_content = blocks * group.block_tokens <= kMaxShadowSlots;
}

namespace {

// Their links as the scheduler's costs have them.
Status set_tiers(SimSetup& setup, const SimOptions& options, const GroupSpec& group, int64_t blocks) {
  for (const auto& [field, bytes] :
       {std::pair("host_kv_bytes", options.host_kv_bytes), std::pair("disk_kv_bytes", options.disk_kv_bytes)})
    if (bytes < 0 || (bytes > 0 && bytes < group.block_bytes()) || bytes / group.block_bytes() > kMostBlocks)
      return invalid(fmt::format("{} is {}; it must be 0, or from a block's {} bytes to {} blocks' {}", field,
                                 bytes, group.block_bytes(), kMostBlocks, kMostBlocks * group.block_bytes()),
                     field);
  set_cache(setup, group, blocks,
            {.host = options.host_kv_bytes / group.block_bytes(),
             .disk = options.disk_kv_bytes / group.block_bytes()});
  const auto us_per_block = [&](double rate) {
    return 1e6 * static_cast<double>(group.block_bytes()) / rate;
  };
  const PreemptionCosts& costs = setup.core.preemption_costs;
  setup.tiers.host = {costs.transfer_us, us_per_block(costs.link_bytes_per_s)};
  setup.tiers.disk = {costs.transfer_us, us_per_block(costs.disk_bytes_per_s)};
  return ok();
}

}  // namespace

namespace {

// What the simulated card takes, so that the scheduler weighs what there is. Of attention the roofline has the reading alone.
PreemptionCosts costs_of(const Card& card, double flops_per_token) {
  PreemptionCosts costs;
  costs.flops_per_s = card.flops_per_s;
  costs.flops_per_token = flops_per_token;
  costs.flops_per_token_pair = 0;
  costs.step_us = card.overhead_us;
  costs.least_chunk_tokens = static_cast<int32_t>(card.flops_per_s / card.read_bytes_per_s);
  return costs;
}

}  // namespace

Result<SimSetup> make_setup(const SimOptions& options) {
  if (Status s = check_options(options); !s) return s.error();
  const Result<Card> card = read_card(options.card);
  if (!card) return card.error();
  const Result<ModelSpec> spec = read_shape(options.model_shape);
  if (!spec) return spec.error();
  SimSetup setup;
  const GroupSpec group{.num_layers = spec->num_layers,
                        .num_kv_heads = spec->num_kv_heads,
                        .head_dim = spec->head_dim,
                        .dtype = DType::kBF16,
                        .block_tokens = 16};
  const double parameters = static_cast<double>(spec->num_parameters());
  setup.core.preemption_costs = costs_of(*card, 2 * parameters);
  const double left = card->memory_bytes * 0.9 - 2 * parameters;
  if (options.kv_bytes == 0 && left < kLeastCacheBytes)
    return invalid(
        fmt::format(
            "the model's {:.1f} GB of weights leave {:.1f} GB of the card's {:.1f} GB for the cache; it "
            "must be at least {:.1f}, or be given (--kv-bytes)",
            2e-9 * parameters, std::max(0.0, left) * 1e-9, card->memory_bytes * 1e-9,
            kLeastCacheBytes * 1e-9),
        "kv_bytes");
  const int64_t blocks =
      (options.kv_bytes > 0 ? options.kv_bytes : static_cast<int64_t>(left)) / group.block_bytes();
  if (blocks < 2 || blocks > kMostBlocks)
    return invalid(fmt::format("kv_bytes gives {} blocks of {} bytes; from 2 to {}", blocks,
                               group.block_bytes(), kMostBlocks),
                   "kv_bytes");
  if (Status s = set_tiers(setup, options, group, blocks); !s) return s.error();
  setup.model.vocab_size = setup.core.vocab_size = spec->vocab_size;
  setup.roofline.overhead_us = card->overhead_us;
  setup.roofline.weights_us = 1e6 * 2 * parameters / card->read_bytes_per_s;
  setup.roofline.kv_us_per_token = 1e6 * static_cast<double>(group.token_bytes()) / card->read_bytes_per_s;
  setup.roofline.compute_us_per_token = 1e6 * 2 * parameters / card->flops_per_s;
  setup.core.config.max_sequences = options.sequences;
  setup.core.config.max_step_tokens = std::max(8192, options.sequences);
  setup.core.config.max_context_tokens =
      static_cast<int32_t>(std::min<int64_t>(blocks * group.block_tokens, 1 << 20));
  setup.core.config.max_queued_requests = 1 << 20;
  setup.core.config.max_queued_kv_factor = 1e6;  // a trace is replayed, not refused
  setup.core.config.check_invariants = true;
  setup.core.audit_every = options.audit_every;
  setup.core.whole_block_hits = options.prefix_rule == "block";
  setup.core.eviction = *eviction_of(options.eviction);
  if (options.look_ahead >= 0) setup.core.look_ahead = options.look_ahead;
  setup.core.both_ends = *both_ends_of(options.both_ends);
  return setup;
}

namespace {

// Half of the episodes have host memory, some of them little, some a disk, and a cache that is small for their
// load; links from much faster to slower than a step.
void draw_swap(SimSetup& setup, Random& random, bool draws_cache) {
  if (random.chance(0.5)) return;
  const GroupSpec group = setup.core.cache.groups.front();
  const int64_t least = 512 / group.block_tokens;  // one sequence of the longest
  const int64_t blocks =
      draws_cache ? std::max(least, setup.model.num_blocks / random.between(2, 8)) : setup.model.num_blocks;
  // Half of them just hold what one request's sequences have, or do not.
  const int64_t a_request = 2 * (160 / group.block_tokens);
  const int64_t most = random.chance(0.5) ? std::min(a_request, 2 * blocks) : 2 * blocks;
  BlocksBelow below{.swap = random.between(1, most)};
  if (random.chance(0.6)) below.host = random.between(1, 4 * blocks);
  if (random.chance(0.5)) below.disk = random.between(1, 8 * blocks);
  set_cache(setup, group, blocks, below);
  setup.core.reserve = {.least = 0, .rise = 0, .decay = 0};  // over-commit
  setup.core.config.preemption_mode = random.chance(0.5) ? "swap" : "auto";
  setup.tiers.host.us_per_block = std::pow(10.0, static_cast<double>(random.between(0, 4)));
  setup.core.preemption_costs.disk_bytes_per_s = 1e12;  // until it has been measured
  setup.tiers.disk.us_per_block = std::pow(10.0, static_cast<double>(random.between(0, 5)));
}

// What the options leave open.
void draw_rules(SimSetup& setup, const SimOptions& options, Random& random) {
  if (options.eviction == "auto" && random.chance(0.3)) setup.core.eviction = EvictionOrder::kPgdsf;
  if (options.prefix_rule == "auto") setup.core.whole_block_hits = random.chance(0.1);
  if (options.look_ahead < 0 && random.chance(0.3))
    setup.core.look_ahead = static_cast<int32_t>(random.between(0, 4));
  if (random.chance(0.3)) setup.core.config.max_priority_wait_ms = random.between(20, 5000);
}

// In a third of the episodes there is memory for what few requests under policies that go by scores need, or hardly for one
// of several samples.
void draw_policy_memory(SimSetup& setup, Random& random) {
  if (!random.chance(0.35)) return;
  PolicyMemoryLimits& memory = setup.core.policy_memory;
  memory = {.num_layers = 2, .num_kv_heads = 2};
  const PolicySpec ordinary{.kind = RetentionKind::kH2o, .recent = 30, .heavy = 30};
  memory.bytes = policy_request_bytes(ordinary, 120, 200, 1, memory) * random.between(1, 12);
  setup.mix.policy = std::max(setup.mix.policy, 0.3);
  setup.mix.scores = 0.8;
}

// A cache that most of its requests fill alone, or nearly, and the limits they are cut to.
void draw_tight(SimSetup& setup, GroupSpec& group, Random& random) {
  EngineConfig& config = setup.core.config;
  const int64_t longest = config.max_context_tokens / group.block_tokens;
  set_cache(setup, group, random.between(4, longest));
  if (random.chance(0.5))
    config.max_prefill_chunk_tokens =
        static_cast<int32_t>(random.between(1, std::min(32, config.max_step_tokens)));
  const int32_t chunk = config.max_prefill_chunk_tokens;
  setup.mix = {.samples = 0.3, .best_of = 0.1, .beams = 0.05, .policy = 0.6, .scores = 0.3};
  setup.mix.fills = 0.6;
  setup.mix.room = {.blocks = setup.model.num_blocks,
                    .block_tokens = group.block_tokens,
                    .max_chunk_tokens = chunk > 0 ? chunk : config.max_step_tokens,
                    .max_context_tokens = config.max_context_tokens};
}

// How fast what is kept free falls again, where it is kept: so fast that it may within an episode's ordinary wait.
void draw_reserve(SimSetup& setup, Random& random) {
  ReserveRule& reserve = setup.core.reserve;
  if (reserve.rise == 0 || random.chance(0.5)) return;
  reserve.rise = 0.5;
  reserve.decay = 1e-3 * static_cast<double>(random.between(2, 20));
}

}  // namespace

SimSetup draw_episode(const SimSetup& base, const SimOptions& options, uint64_t seed) {
  Random random(seed);
  SimSetup setup = base;
  GroupSpec group = base.core.cache.groups.front();
  group.block_tokens = random.chance(0.5) ? 8 : 16;
  const int64_t a_sequence = 160 / group.block_tokens;  // blocks of an ordinary request
  // Where groups crowd, a few requests fill the cache: their samples find no room for all at once.
  const bool groups = random.chance(0.2);
  if (groups) setup.mix = kGroupLoad;
  const int64_t most = groups ? std::min(6, 2 * options.sequences + 2) : 2 * options.sequences + 2;
  const int64_t drawn = a_sequence * random.between(2, most);
  set_cache(setup, group, options.kv_bytes > 0 ? base.model.num_blocks : drawn);
  setup.model.vocab_size = setup.core.vocab_size = static_cast<int32_t>(random.between(40, 2000));
  setup.core.eos_token_ids = {1};
  EngineConfig& config = setup.core.config;
  config.max_step_tokens = std::max(options.sequences, static_cast<int32_t>(random.between(16, 512)));
  config.max_prefill_chunk_tokens = random.chance(0.3) ? static_cast<int32_t>(random.between(1, 16)) : 0;
  config.max_context_tokens = 512;
  config.max_queued_requests = 4 * options.sequences;
  config.max_queued_kv_factor = 4;
  config.prefix_cache = random.chance(0.9);
  const bool tight = options.kv_bytes == 0 && random.chance(kTightEpisodes);
  if (tight) draw_tight(setup, group, random);
  if (random.chance(0.5)) setup.core.reserve = {.least = 0, .rise = 0, .decay = 0};  // over-commit
  draw_swap(setup, random, options.kv_bytes == 0 && !tight);
  draw_rules(setup, options, random);
  // Most have a link about as fast as a prefill: who has time to spare computes the front of what comes back.
  PreemptionCosts& costs = setup.core.preemption_costs;
  costs.least_chunk_tokens = static_cast<int32_t>(random.between(1, 32));
  if (random.chance(0.5) && options.both_ends == "auto") setup.core.both_ends = BothEnds::kAlways;
  if (random.chance(0.8)) costs.link_bytes_per_s = 1e9 * static_cast<double>(random.between(1, 6));
  if (options.kv_bytes == 0) {
    draw_policy_memory(setup, random);
    draw_reserve(setup, random);
  }
  return setup;
}

}  // namespace quire
