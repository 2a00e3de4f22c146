// Random traffic through EngineCore with every invariant checked after every step, and the fake executor's
// check that each list's slots hold exactly its sequence's tokens. The fake model's greedy tokens are a
// function of the prompt alone, so what it gave alone is known without running it alone. Seeds come from
// QUIRE_SEED (default: a fixed one) and are printed with a failure.
#include <cstdlib>

#include "tests/property/engine_harness.h"

namespace quire {
namespace {

uint64_t first_seed() {
  const char* text = std::getenv("QUIRE_SEED");
  return text == nullptr ? 20240917 : std::strtoull(text, nullptr, 10);
}

struct Traffic {
  HarnessOptions options;
  int32_t num_requests = 120, max_tokens = 24;
  bool shared_prefixes = true, samples = true, beams = true, cancels = true, faults = false, policies = false,
       copy_faults = false;
};

// Budgets below, around and above the lengths of this traffic, so that lists slide, are cut, fill up, and are left alone.
PolicySpec random_policy(Random& random, bool by_position_only) {
  const auto tokens = [&random](int32_t least) { return static_cast<int32_t>(random.between(least, 48)); };
  switch (random.below(by_position_only ? 2 : 4)) {
    case 0:
      return {.kind = RetentionKind::kWindow, .window = tokens(1)};
    case 1:
      return {.kind = RetentionKind::kStream, .sinks = tokens(0), .recent = tokens(1)};
    case 2:
      return {.kind = RetentionKind::kTova, .budget = tokens(1)};
    default:
      return {.kind = RetentionKind::kH2o, .recent = tokens(1), .heavy = tokens(0)};
  }
}

SamplingParams random_sampling(Random& random, const Traffic& t) {
  SamplingParams p = Harness::greedy(static_cast<int32_t>(random.between(0, t.max_tokens)));
  if (random.chance(0.3)) p.temperature = 1;
  if (t.samples && random.chance(0.25)) p.n = static_cast<int32_t>(random.between(2, 4));
  if (t.samples && random.chance(0.1)) p.best_of = p.n + 1;
  if (t.beams && random.chance(0.15)) {
    p.best_of = 0;
    p.n = static_cast<int32_t>(random.between(1, 3));
    p.beam_width = static_cast<int32_t>(random.between(p.n, 4));
    p.early_stopping = random.chance(0.5);
    p.max_tokens = std::max(p.max_tokens, 1);
  }
  if (random.chance(0.1)) p.prompt_logprobs = 1;
  if (random.chance(0.2)) p.logprobs = 2;
  return p;
}

// What happened over all seeds of a test: a test in which nothing was preempted has not tested preemption.
struct Coverage {
  int64_t preemptions = 0, copies = 0, cached = 0, evictions = 0, finished = 0, cancelled = 0, failed = 0,
          steps = 0, swap_outs = 0, swap_ins = 0, swap_failures = 0, host_hits = 0, disk_hits = 0;
};

void run_traffic(const Traffic& t, uint64_t seed, Coverage& covered) {
  SCOPED_TRACE("QUIRE_SEED=" + std::to_string(seed));
  Random random(seed);
  Harness h(t.options);
  std::vector<std::vector<TokenId>> prefixes;
  for (int i = 0; i < 4; ++i) prefixes.push_back(h.prompt(random, random.between(3, 40)));
  if (t.faults)
    h.executor().set_fault([&random](const BatchPlan&) {
      return random.chance(0.02) ? Status(error(Code::kInternal, "injected")) : ok();
    });
  if (t.copy_faults) h.mover().set_corruption([&random] { return random.chance(0.1); });
  if (t.copy_faults)
    h.mover().set_fault([&random] {
      return FakeMover::Fault{.fails = random.chance(0.1), .delay_us = random.chance(0.3) ? 50'000 : 0};
    });
  std::vector<RequestId> live;
  for (int32_t i = 0; i < t.num_requests;) {
    if (random.chance(0.4)) {
      std::vector<TokenId> prompt = t.shared_prefixes && random.chance(0.7)
                                        ? prefixes[random.below(prefixes.size())]
                                        : h.prompt(random, 1);
      const std::vector<TokenId> rest = h.prompt(random, random.between(0, 30));
      prompt.insert(prompt.end(), rest.begin(), rest.end());
      CoreRequest more;
      more.bypass_prefix_cache = random.chance(0.1);
      more.priority = static_cast<int32_t>(random.below(3));
      more.tenant = random.chance(0.5) ? "a" : "b";
      more.cache_salt = random.chance(0.2) ? "salt" : "";
      if (random.chance(0.1)) more.deadline_us = h.clock().now_us() + random.between(1, 200000);
      const SamplingParams sampling = random_sampling(random, t);
      if (t.policies && random.chance(0.7)) more.policy = random_policy(random, sampling.beam_width > 0);
      if (const RequestId id = h.submit(prompt, sampling, more)) live.push_back(id);
      ++i;
    }
    if (!live.empty() && t.cancels && random.chance(0.05)) h.abort(live[random.below(live.size())]);
    if (!live.empty() && t.cancels && random.chance(0.1))
      h.core().set_paused(live[random.below(live.size())], random.chance(0.5));
    if (!live.empty() && t.cancels && random.chance(0.03))
      h.core().stop(live[random.below(live.size())], static_cast<int32_t>(random.below(3)));
    if (random.chance(0.8)) h.step();
  }
  for (const RequestId id : live) h.core().set_paused(id, false);
  h.run();
  h.expect_sound();
  h.expect_all_ended();
  for (const auto& [id, r] : h.records())
    for (const auto& [index, s] : r.sequences) {
      const bool failed = s.finish == FinishReason::kFailed;
      EXPECT_TRUE(t.faults || t.copy_faults || !failed) << s.error->message;
    }
  EngineStats s;
  h.core().fill_stats(s);
  covered.preemptions += s.preemptions_total;
  covered.copies += s.copies_on_write_total;
  covered.cached += s.cached_tokens_total;
  covered.evictions += s.evictions_total;
  covered.finished += s.requests_finished_total;
  covered.cancelled += s.requests_cancelled_total;
  covered.failed += s.requests_failed_total;
  covered.steps += s.steps_total;
  covered.swap_outs += s.swap_outs_total;
  covered.swap_ins += s.swap_ins_total;
  covered.host_hits += s.host.hit_tokens_total;
  covered.disk_hits += s.disk.hit_tokens_total;
  covered.swap_failures += s.swap_failures_total;
  for (const RequestId id : live)
    if (h.record(id).sampling->temperature == 0 && h.record(id).sampling->beam_width == 0)
      h.expect_greedy(id);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int32_t kOneSeedOf = 3;  // the same seeds run without a sanitizer too
#else
constexpr int32_t kOneSeedOf = 1;
#endif

// How often at least something happens in the seeds that run, given how often in all of them.
constexpr int64_t at_least(int64_t in_all_seeds) {
  return in_all_seeds / kOneSeedOf;
}

Coverage run_seeds(const Traffic& t, int32_t count) {
  Coverage covered;
  count /= kOneSeedOf;
  for (int32_t i = 0; i < count && !::testing::Test::HasFailure(); ++i)
    run_traffic(t, first_seed() + static_cast<uint64_t>(i), covered);
  const auto record = [](const char* name, int64_t n) {
    ::testing::Test::RecordProperty(name, static_cast<int>(n));
  };
  record("steps", covered.steps);
  record("preemptions", covered.preemptions);
  EXPECT_GT(covered.finished, 0);
  EXPECT_GT(covered.copies, 0);
  if (std::getenv("QUIRE_VERBOSE") != nullptr)
    printf(
        "steps %ld finished %ld cancelled %ld failed %ld preempted %ld copies %ld cached %ld evicted %ld "
        "swapped out "
        "%ld in %ld failed %ld\n",
        covered.steps, covered.finished, covered.cancelled, covered.failed, covered.preemptions,
        covered.copies, covered.cached, covered.evictions, covered.swap_outs, covered.swap_ins,
        covered.swap_failures);
  return covered;
}

TEST(EngineTraffic, EveryInvariantHoldsWithRoomToSpare) {
  Traffic t;
  t.options.num_blocks = 600;
  run_seeds(t, 20);
}

TEST(EngineTraffic, EveryInvariantHoldsUnderPreemption) {
  Traffic t;
  t.options.num_blocks = 40;
  t.options.reserve = {.least = 0, .rise = 0, .decay = 0};
  t.max_tokens = 80;
  const Coverage covered = run_seeds(t, 60);
  EXPECT_GT(covered.preemptions, at_least(100));
  EXPECT_GT(covered.evictions, 0);
  EXPECT_GT(covered.cached, 0);
}

Traffic with_swap(const char* mode) {
  Traffic t;
  t.options.num_blocks = 40;
  t.options.num_swap_blocks = 60;
  t.options.preemption_mode = mode;
  t.options.reserve = {.least = 0, .rise = 0, .decay = 0};
  t.max_tokens = 80;
  return t;
}

TEST(EngineTraffic, EveryInvariantHoldsUnderPreemptionBySwap) {
  for (const char* mode : {"swap", "auto"}) {
    const Coverage covered = run_seeds(with_swap(mode), 40);
    EXPECT_GT(covered.swap_outs, at_least(50));
    EXPECT_GT(covered.swap_ins, at_least(50));
  }
}

TEST(EngineTraffic, EveryInvariantHoldsWithAHostTier) {
  for (const int32_t host_blocks : {3, 30, 400}) {
    Traffic t = with_swap("auto");
    t.options.num_host_blocks = host_blocks;
    t.policies = true;
    const Coverage covered = run_seeds(t, 40);
    EXPECT_GT(covered.host_hits, host_blocks > 3 ? at_least(50) : -1);
    t.copy_faults = t.faults = true;
    run_seeds(t, 20);
  }
}

TEST(EngineTraffic, EveryInvariantHoldsWithADiskTier) {
  for (const int32_t host_blocks : {0, 30}) {
    for (const int32_t disk_blocks : {3, 60, 400}) {
      Traffic t = with_swap("auto");
      t.options.num_host_blocks = host_blocks;
      t.options.num_disk_blocks = disk_blocks;
      t.policies = true;
      const Coverage covered = run_seeds(t, 20);
      EXPECT_GT(covered.disk_hits, disk_blocks > 3 ? at_least(50) : -1);
      t.copy_faults = t.faults = true;
      run_seeds(t, 10);
    }
  }
}

TEST(EngineTraffic, EveryInvariantHoldsWhenTheHostHasRoomForFew) {
  Traffic t = with_swap("swap");
  t.options.num_swap_blocks = 12;
  const Coverage covered = run_seeds(t, 40);
  EXPECT_GT(covered.swap_outs, at_least(20));
  EXPECT_GT(covered.preemptions, covered.swap_outs) << "what the host cannot take is computed again";
}

TEST(EngineTraffic, EveryInvariantHoldsUnderSwapWithoutThePrefixCache) {
  Traffic t = with_swap("swap");
  t.options.prefix_cache = false;
  EXPECT_GT(run_seeds(t, 30).swap_ins, at_least(50));
}

TEST(EngineTraffic, EveryInvariantHoldsUnderPoliciesAndSwap) {
  Traffic t = with_swap("swap");
  t.policies = true;
  t.options.num_blocks = 60;
  EXPECT_GT(run_seeds(t, 60).swap_ins, at_least(20));
}

TEST(EngineTraffic, EveryInvariantHoldsWhenCopiesToAndFromTheHostFail) {
  Traffic t = with_swap("swap");
  t.policies = t.copy_faults = true;
  const Coverage covered = run_seeds(t, 60);
  EXPECT_GT(covered.swap_failures, at_least(10));
  t.faults = true;
  run_seeds(t, 30);
}

TEST(EngineTraffic, EveryInvariantHoldsUnderPoliciesMixedFreely) {
  for (const int32_t chunk : {7, 64}) {
    Traffic t;
    t.policies = true;
    t.options.max_prefill_chunk_tokens = chunk;
    t.options.num_blocks = 600;
    const Coverage covered = run_seeds(t, 20);
    EXPECT_GT(covered.cached, 0);
  }
}

TEST(EngineTraffic, EveryInvariantHoldsUnderPoliciesAndPreemption) {
  Traffic t;
  t.policies = true;
  t.options.num_blocks = 60;
  t.options.reserve = {.least = 0, .rise = 0, .decay = 0};
  t.max_tokens = 80;
  const Coverage covered = run_seeds(t, 60);
  EXPECT_GT(covered.preemptions, at_least(10));
  EXPECT_GT(covered.evictions, 0);
}

TEST(EngineTraffic, EveryInvariantHoldsUnderPoliciesWhenStepsFail) {
  Traffic t;
  t.policies = t.faults = true;
  t.options.num_blocks = 80;
  run_seeds(t, 30);
}

TEST(EngineTraffic, EveryInvariantHoldsWithSmallChunksAndFewSequences) {
  for (const int32_t chunk : {1, 7}) {
    Traffic t;
    t.options.max_prefill_chunk_tokens = chunk;
    t.options.max_sequences = 5;
    t.options.max_step_tokens = 7;
    t.options.num_blocks = 60;
    run_seeds(t, 15);
  }
}

TEST(EngineTraffic, EveryInvariantHoldsWithoutThePrefixCache) {
  Traffic t;
  t.options.prefix_cache = false;
  t.options.reserve = {.least = 0, .rise = 0, .decay = 0};
  t.max_tokens = 80;
  t.options.num_blocks = 40;
  run_seeds(t, 20);
}

TEST(EngineTraffic, EveryInvariantHoldsWhenStepsFail) {
  Traffic t;
  t.faults = true;
  t.options.num_blocks = 60;
  run_seeds(t, 30);
}

TEST(EngineTraffic, EveryInvariantHoldsWhenTokensEndSequences) {
  Traffic t;
  t.options.vocab_size = 30;
  t.options.eos = {3, 4};
  t.options.num_blocks = 50;
  run_seeds(t, 30);
}

TEST(Engine, ARequestThatHasEndedHasNoDeadlineLeft) {
  Harness h;
  CoreRequest late, later;
  late.deadline_us = h.clock().now_us() + 1'000'000'000;
  later.deadline_us = late.deadline_us + 1;
  h.submit({1, 2, 3}, Harness::greedy(2), late);
  const RequestId aborted = h.submit({4, 5, 6}, Harness::greedy(100), later);
  EXPECT_EQ(h.core().next_deadline_us(), late.deadline_us);
  for (int i = 0; i < 6; ++i) h.step();
  EXPECT_EQ(h.core().next_deadline_us(), later.deadline_us) << "the first has its two tokens";
  h.abort(aborted);
  EXPECT_EQ(h.core().next_deadline_us(), kNoDeadline);
  h.run();
  h.expect_all_ended();
}

TEST(Engine, OnlyWhatIsLookedForInThePrefixCacheCountsAsAQuery) {
  for (const bool prefix_cache : {true, false}) {
    HarnessOptions options;
    options.prefix_cache = prefix_cache;
    Harness h(options);
    h.submit({1, 2, 3, 4}, Harness::greedy(2));
    CoreRequest bypass;
    bypass.bypass_prefix_cache = true;
    h.submit({1, 2, 3}, Harness::greedy(2), bypass);
    h.run();
    EngineStats stats;
    h.core().fill_stats(stats);
    EXPECT_EQ(stats.prompt_tokens_total, 7);
    EXPECT_EQ(stats.prefix_queries_tokens_total, prefix_cache ? 4 : 0);
  }
}

}  // namespace
}  // namespace quire
