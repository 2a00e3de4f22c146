// The simulator itself: it runs clean over seeds, gives the same on every run, and notices what it is there
// to notice. Seeds are printed with a failure; replay one with quire bench sim --seed N.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <numeric>
#include <random>

#include "benchmarks/sim/episode.h"
#include "benchmarks/sim/reservoir.h"
#include "benchmarks/sim/setup.h"
#include "src/base/progress.h"
#include "src/request/admission.h"
#include "tests/sim/sim_runs.h"

namespace quire {
namespace {

void expect_clean(const SimReport& r) {
  for (const std::string& v : r.violations) ADD_FAILURE() << "QUIRE_SEED=" << r.seed.value() << " " << v;
  EXPECT_EQ(r.blocks_leaked, 0);
  EXPECT_EQ(r.submitted, r.finished + r.refused + r.cancelled + r.failed);
}

TEST(Simulation, SeedsRunCleanWithFaults) {
  SimOptions o;
  o.steps = 6000;
  o.sequences = 24;
  o.audit_every = 1;
  int64_t preemptions = 0, tail_drops = 0, heads_shortened = 0, swap_outs = 0, faults = 0, copies = 0;
  for (int i = 0; i < 12; ++i) {
    o.seed = first_seed() + static_cast<uint64_t>(i);
    const SimReport r = run(o);
    expect_clean(r);
    preemptions += r.preemptions;
    tail_drops += r.tail_drops;
    heads_shortened += r.heads_shortened;
    swap_outs += r.swap_outs;
    faults += r.faults;
    copies += r.copies_on_write;
  }
  EXPECT_GT(preemptions, 100);
  fmt::print("{} preemptions: {} by dropping the tail ({} heads shortened later), {} by swap\n", preemptions,
             tail_drops, heads_shortened, swap_outs);
  EXPECT_GT(tail_drops, 10);
  EXPECT_GT(heads_shortened, 10);
  EXPECT_GT(swap_outs, 10);
  EXPECT_GT(faults, 1000);
  EXPECT_GT(copies, 1000);
}

TEST(Simulation, SeedsRunCleanWithoutFaultsAndNothingFails) {
  SimOptions o;
  o.steps = 6000;
  o.sequences = 32;
  o.faults = false;
  for (int i = 0; i < 4; ++i) {
    o.seed = first_seed() + 100 + static_cast<uint64_t>(i);
    const SimReport r = run(o);
    expect_clean(r);
    EXPECT_EQ(r.cancelled, 0);
    EXPECT_EQ(r.failed, 0);
    EXPECT_GT(r.hit_rate, 0);
  }
}

// As many steps as were asked for, and those of the drains beside them.
TEST(Simulation, StepsAreCountedUnderLoadAndInDrains) {
  SimOptions o;
  o.steps = 6000;
  o.seed = first_seed() + 3;
  std::vector<int64_t> done;
  set_progress_observer([&](const ProgressReport& r) {
    if (r.what == "simulating" && r.unit == "steps" && r.total == 6000) done.push_back(r.done);
  });
  const SimReport r = run(o);
  set_progress_observer({});
  EXPECT_EQ(r.steps - r.drain_steps, 6000);
  EXPECT_GT(r.drain_steps, 0);
  EXPECT_NE(to_json(r).find(fmt::format("\"drain_steps\":{}", r.drain_steps)), std::string::npos);
  ASSERT_GT(done.size(), 10u) << "progress is told";
  EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));
  EXPECT_EQ(done.back(), 6000);
}

TEST(Simulation, ASeedReplaysExactly) {
  SimOptions o;
  o.steps = 8000;
  o.seed = first_seed() + 7;
  SimReport a = run(o), b = run(o);
  a.steps_per_s = b.steps_per_s = 0;  // of real time
  EXPECT_EQ(to_json(a), to_json(b));
  o.seed += 1;
  SimReport c = run(o);
  c.steps_per_s = 0;
  EXPECT_NE(to_json(a), to_json(c));
}

// New seeds at every run, a minute of them; QUIRE_SEED and QUIRE_SIM_SECONDS choose otherwise.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr double kFreshSeconds = 10;  // on top of those without a sanitizer, which are eight times as fast
#else
constexpr double kFreshSeconds = 60;
#endif

TEST(Simulation, FreshSeedsRunClean) {
  const char* seconds = std::getenv("QUIRE_SIM_SECONDS");
  SimOptions o;
  o.seed = std::getenv("QUIRE_SEED") != nullptr ? first_seed() : std::random_device()();
  o.seconds = seconds == nullptr ? kFreshSeconds : std::atof(seconds);
  o.script_out = std::filesystem::temp_directory_path() / fmt::format("quire-sim-{}.jsonl", o.seed);
  const SimReport r = run(o);
  expect_clean(r);
  if (!r.script.empty()) ADD_FAILURE() << "shrunk: quire bench sim --script " << r.script;
  fmt::print("seed {}: {} steps, {} faults\n", r.seed.value(), r.steps, r.faults);
}

// Whether a request may need all of the cache that it is drawn for, but for a few blocks.
bool fills(const CoreRequest& r, const CacheRoom& room) {
  AdmissionLimits limits;
  limits.vocab_size = 1 << 20;
  limits.max_context_tokens = room.max_context_tokens;
  limits.max_sequences = 64;
  limits.block_tokens = room.block_tokens;
  limits.max_chunk_tokens = room.max_chunk_tokens;
  limits.num_blocks = static_cast<int32_t>(room.blocks);
  if (!check_request(*r.sampling, r.prompt, limits, r.policy)) return false;
  limits.num_blocks -= 5;
  return !check_request(*r.sampling, r.prompt, limits, r.policy);
}

// Bugs of a list's bound show where there is no block beside it (124c11f, ad58223).
TEST(Simulation, InAFifthOfTheEpisodesMostRequestsFillTheCacheUnderEveryPolicy) {
  const SimOptions o;
  const SimSetup base = *make_setup(o);
  int num_tight = 0, num_requests = 0, num_filling = 0;
  std::map<std::pair<RetentionKind, bool>, int> of_kind;  // and of several sequences
  constexpr int kEpisodes = 500;
  for (uint64_t seed = first_seed(); seed < first_seed() + kEpisodes; ++seed) {
    const SimSetup setup = draw_episode(base, o, seed);
    if (setup.mix.fills == 0) continue;
    ++num_tight;
    const std::unique_ptr<Workload> load =
        make_random_workload(seed, o.sequences, setup.core.vocab_size, false, setup.mix);
    for (int i = 0; i < 200; ++i) {
      const std::optional<CoreRequest> r = load->next(0, 0);
      if (!r) continue;
      ++num_requests;
      if (!fills(*r, setup.mix.room)) continue;
      ++num_filling;
      ++of_kind[{r->policy.kind, r->sampling->num_sequences() > 1}];
    }
  }
  EXPECT_NEAR(num_tight, kEpisodes / 5, 4 * std::sqrt(kEpisodes * 0.2 * 0.8)) << "four deviations";
  EXPECT_GT(num_filling, num_requests / 3);
  for (const RetentionKind kind : {RetentionKind::kKeepAll, RetentionKind::kWindow, RetentionKind::kStream,
                                   RetentionKind::kTova, RetentionKind::kH2o})
    for (const bool several : {false, true})
      EXPECT_GT((of_kind[{kind, several}]), num_filling / 100) << static_cast<int>(kind) << ", " << several;
}

TEST(Simulation, EveryKindOfFaultHappens) {
  SimOptions o;
  o.steps = 400'000;
  o.seed = first_seed() + 50;
  const SimReport r = run(o);
  expect_clean(r);
  int64_t sum = 0;
  for (size_t i = 0; i < kNumSimFaults; ++i) {
    EXPECT_GT(r.faults_by_kind[i], 0) << "fault " << i;
    sum += r.faults_by_kind[i];
  }
  EXPECT_EQ(sum, r.faults);
  EXPECT_GT(100 * r.faults, r.steps);
}

// Two kinds at once are found where both are frequent; and what one kind hides, where it is off.
TEST(Simulation, EpisodesDifferInTheKindsOfFaultsTheyHave) {
  constexpr int kEpisodes = 3000;
  int even = 0, stop_off = 0, stop_frequent = 0, both_frequent = 0;
  for (uint64_t seed = first_seed(); seed < first_seed() + kEpisodes; ++seed) {
    const FaultRates rates = draw_faults(seed);
    EXPECT_EQ(rates, draw_faults(seed));
    even += rates == kAllFaults ? 1 : 0;
    stop_off += rates.stop == 0 ? 1 : 0;
    const bool stops = rates.stop > 3 * kAllFaults.stop;
    stop_frequent += stops ? 1 : 0;
    both_frequent += stops && rates.sequence_error > 3 * kAllFaults.sequence_error ? 1 : 0;
  }
  EXPECT_NEAR(even, kEpisodes / 3, kEpisodes / 30);
  EXPECT_NEAR(stop_off, kEpisodes / 3, kEpisodes / 30);
  EXPECT_GT(stop_frequent, kEpisodes / 20);
  EXPECT_GT(both_frequent, kEpisodes / 200);
}

// What the scheduler weighs is what the simulated card takes.
TEST(Simulation, TheSchedulersCostsAreTheCards) {
  for (const char* card : {"h100", "h200"}) {
    SimOptions o;
    o.card = card;
    const Result<SimSetup> setup = make_setup(o);
    ASSERT_TRUE(setup.has_value());
    for (const int64_t tokens : {1000, 30'000}) {
      const double computed_us = recompute_cost_us(setup->core.preemption_costs, tokens);
      EXPECT_NEAR(setup->roofline.step_us(tokens, 0) / computed_us, 1, 0.01) << card << ", " << tokens;
    }
    const int32_t least = setup->core.preemption_costs.least_chunk_tokens;
    EXPECT_NEAR(setup->roofline.compute_us_per_token * least / setup->roofline.weights_us, 1, 0.01);
  }
}

TEST(Simulation, OptionsOutOfRangeAreNamed) {
  const auto field = [](SimOptions o) {
    const Result<SimReport> r = run_sim(o);
    return r ? "" : r.error().field;
  };
  EXPECT_EQ(field({.sequences = 0}), "sequences");
  EXPECT_EQ(field({.speed = 0}), "speed");
  EXPECT_EQ(field({.card = "abacus"}), "card");
  EXPECT_EQ(field({.prefix_rule = "guess"}), "prefix_rule");
  EXPECT_EQ(field({.eviction = "whim"}), "eviction");
  EXPECT_EQ(field({.eviction = "oracle"}), "eviction");  // without a trace there is no future to know
  EXPECT_EQ(field({.kv_bytes = 1}), "kv_bytes");
  EXPECT_EQ(field({.kv_bytes = -5}), "kv_bytes");
  EXPECT_EQ(field({.max_requests = -3}), "max_requests");
  EXPECT_EQ(field({.speed = 1e-300}), "speed");
  EXPECT_EQ(field({.both_ends = "sometimes"}), "fronts");
  EXPECT_EQ(field({.host_kv_bytes = 1 << 30}), "host_kv_bytes");  // a random load draws its own
  EXPECT_EQ(field({.model_shape = "nowhere/config.json"}), "model_shape");
  for (const double seconds :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(), -1.0, 1e300})
    EXPECT_EQ(field({.seconds = seconds}), "seconds") << seconds;
}

TEST(Simulation, AModelThatDoesNotFitTheCardNeedsACacheSize) {
  const std::string path = std::filesystem::temp_directory_path() / "quire_sim_small_card.json";
  std::ofstream(path)
      << R"({"memory_bytes": 16e9, "read_bytes_per_s": 3e12, "flops_per_s": 6e14, "overhead_us": 50})";
  const Result<SimReport> refused = run_sim({.steps = 1, .card = path});
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message,
            "the model's 16.1 GB of weights leave 0.0 GB of the card's 16.0 GB for the cache; it must be at "
            "least 1.0, "
            "or be given (--kv-bytes)");
  EXPECT_TRUE(run_sim({.steps = 1, .kv_bytes = 1'000'000'000, .card = path}));
  std::filesystem::remove(path);
}

// It would be taken for an H100's, unsaid.
TEST(Simulation, AFieldThatACardLacksIsNamed) {
  const std::string path = std::filesystem::temp_directory_path() / "quire_sim_half_a_card.json";
  const std::pair<const char*, const char*> cases[] = {
      {"{}", "read_bytes_per_s"},
      {R"({"read_bytes_per_s": 1e12, "memory_bytes": 16e9, "overhead_us": 50})", "flops_per_s"}};
  for (const auto& [text, lacks] : cases) {
    std::ofstream(path) << text;
    const Result<SimReport> refused = run_sim({.steps = 1, .card = path});
    ASSERT_FALSE(refused) << text;
    EXPECT_EQ(refused.error().message,
              path + ": `" + lacks +
                  "` is missing; a card has read_bytes_per_s, flops_per_s, overhead_us, memory_bytes");
  }
  std::filesystem::remove(path);
}

TEST(Simulation, ACardsFieldOutOfRangeIsNamedWithItsLimits) {
  const std::string path = std::filesystem::temp_directory_path() / "quire_sim_odd_card.json";
  const auto with = [&](const char* reads) {
    std::ofstream(path)
        << R"({"memory_bytes": 80e9, "flops_per_s": 6e14, "overhead_us": 50, "read_bytes_per_s": )" << reads
        << "}";
    return run_sim({.steps = 1, .card = path}).error().message;
  };
  for (const char* reads : {"1e-300", "1e300", "0", "-1"})
    EXPECT_TRUE(with(reads).ends_with("; it must be a number from 1000000 to 1e+18")) << with(reads);
  EXPECT_TRUE(with("\"fast\"").starts_with(path + ": `read_bytes_per_s` is \"fast\"; it must be a number"));
  std::filesystem::remove(path);
}

TEST(Simulation, AFileThatCannotBeReadIsNamed) {
  const std::string directory = std::filesystem::temp_directory_path();
  for (const SimOptions& o :
       {SimOptions{.steps = 1, .card = directory}, SimOptions{.steps = 1, .model_shape = directory}}) {
    const Result<SimReport> refused = run_sim(o);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message.find(directory), std::string::npos) << refused.error().message;
  }
  const std::string path = std::filesystem::temp_directory_path() / "quire_sim_shape.json";
  std::ofstream(path) << R"({"architectures": ["WhoForCausalLM"]})";
  const std::string said = run_sim({.steps = 1, .model_shape = path}).error().message;
  EXPECT_TRUE(said.starts_with("model_shape " + path + ": ")) << said;
  std::filesystem::remove(path);
}

TEST(Simulation, PercentilesAreOfAllRequestsOrOfAnEvenChoiceOfThem) {
  std::vector<float> values(100'000);
  std::iota(values.begin(), values.end(), 0.0f);
  Reservoir all(values.size()), some(1000);
  for (size_t i = 0; i < values.size(); i += 100) {
    all.add(std::span(values).subspan(i, 100));
    some.add(std::span(values).subspan(i, 100));
  }
  EXPECT_EQ(all.kept(), values);
  ASSERT_EQ(some.kept().size(), 1000u);
  EXPECT_EQ(some.seen(), values.size());
  const double mean = std::accumulate(some.kept().begin(), some.kept().end(), 0.0) / 1000;
  EXPECT_NEAR(mean, 50'000, 4 * 100'000 / std::sqrt(12.0 * 1000)) << "four deviations of such a mean";
  const SimReport r = run({.steps = 2000});
  EXPECT_GT(r.ttft_ms.count, 0);
  EXPECT_EQ(r.ttft_ms.sampled, r.ttft_ms.count);
}

// They would be ignored, and a random load's figures taken for a trace's.
TEST(Simulation, WhatBelongsToATraceIsRefusedWithoutOne) {
  const auto refused = [](SimOptions o) {
    o.steps = 1;
    const Result<SimReport> r = run_sim(o);
    return r ? "accepted" : r.error().field + ": " + r.error().message;
  };
  EXPECT_EQ(
      refused({.trace_format = "mooncake"}),
      "trace_format: trace_format is mooncake, which needs a trace; without one a random load is drawn");
  EXPECT_EQ(refused({.speed = 2}).find("speed: speed is 2, which needs a trace"), 0u);
  EXPECT_EQ(refused({.max_requests = 7}).find("max_requests: max_requests is 7, which needs a trace"), 0u);
  EXPECT_EQ(refused({.trace = "a.csv"}).find("trace_format: trace_format is missing"), 0u);
  EXPECT_EQ(refused({.script = "a.jsonl", .trace = "a.csv", .trace_format = "azure"}).find("script: "), 0u);
  EXPECT_EQ(refused({.script = "a.jsonl", .eviction = "pgdsf"}),
            "eviction: eviction is pgdsf, and a script is played, which has its own");
  EXPECT_EQ(refused({.sequences = 7, .script = "a.jsonl"}),
            "sequences: sequences is 7, and a script is played, which has its own");
}

// Five prefixes in turn and room for some: least recently used is always the one that comes next.
TEST(Simulation, TheOracleKeepsWhatComesSoonest) {
  const std::string path = std::filesystem::temp_directory_path() / "quire_sim_oracle.jsonl";
  {
    std::ofstream file(path);
    for (int i = 0; i < 60; ++i)
      file << R"({"timestamp": )" << i * 2000
           << R"(, "input_length": 1024, "output_length": 2, "hash_ids": [)" << i % 5 + 1 << ", "
           << i % 5 + 11 << "]}\n";
  }
  SimOptions o;
  o.trace = path;
  o.trace_format = "mooncake";
  o.faults = false;
  o.kv_bytes = 220ll * 16 * 131072;  // three prompts and a half
  const SimReport lru = run(o);
  o.eviction = "oracle";
  const SimReport oracle = run(o);
  std::filesystem::remove(path);
  expect_clean(oracle);
  EXPECT_LT(lru.hit_rate, 0.1);
  EXPECT_GT(oracle.hit_rate, 0.4);
}

// One request at a time, each of eight prompts of 16,384 tokens that the device has lost when they are asked again: over
// a link from the disk that is about as fast as computing (44 and 27 us a token) the median first token comes in 0.6
// of the time.
TEST(Simulation, APrefixThatComesFromBothEndsIsThereSooner) {
  const std::string path = std::filesystem::temp_directory_path() / "quire_sim_both_ends.jsonl";
  {
    std::ofstream file(path);
    for (int i = 0; i < 64; ++i) {
      file << R"({"timestamp": )" << i * 3000
           << R"(, "input_length": 16500, "output_length": 10, "hash_ids": [)";
      for (int k = 0; k < 32; ++k) file << (i * 3 % 8) * 100 + k << ", ";
      file << 10000 + i << "]}\n";
    }
  }
  SimOptions o;
  o.trace = path;
  o.trace_format = "mooncake";
  o.faults = false;
  o.kv_bytes = 3 * 16640ll * 131072;
  o.disk_kv_bytes = 20 * 16640ll * 131072;
  o.both_ends = "never";
  const SimReport whole = run(o);
  o.both_ends = "auto";
  const SimReport both = run(o);
  std::filesystem::remove(path);
  expect_clean(whole);
  expect_clean(both);
  EXPECT_GT(both.tier_fronts_computed, 40);
  EXPECT_EQ(whole.tier_fronts_computed, 0);
  EXPECT_LT(both.ttft_ms.p50, 0.65 * whole.ttft_ms.p50);
  EXPECT_LE(both.ttft_ms.p99, 1.05 * whole.ttft_ms.p99) << "of the first time that it is asked";
}

TEST(Simulation, ReplaysATraceAndWholeBlocksHitNoMoreThanTokens) {
  const std::string path = std::filesystem::temp_directory_path() / "quire_sim_trace.jsonl";
  {
    std::ofstream file(path);
    for (int i = 0; i < 60; ++i)
      file << R"({"timestamp": )" << i * 200
           << R"(, "input_length": 700, "output_length": 20, "hash_ids": [0, )" << i % 5 + 1 << "]}\n";
  }
  SimOptions o;
  o.trace = path;
  o.trace_format = "mooncake";
  o.faults = false;
  const SimReport token = run(o);
  o.prefix_rule = "block";
  const SimReport block = run(o);
  std::filesystem::remove(path);
  for (const SimReport& r : {token, block}) {
    expect_clean(r);
    EXPECT_EQ(r.finished, 60);
  }
  EXPECT_GT(block.hit_rate, 0.5);
  EXPECT_GE(token.hit_rate, block.hit_rate);
}

}  // namespace
}  // namespace quire
