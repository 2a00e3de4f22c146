// Plans to arrays, copies to groups, memory to blocks, configurations to numbers: the parts of src/execute
// that need no model.
#include <gtest/gtest.h>
#include <unistd.h>

#include "src/execute/card_memory.h"
#include "src/execute/executor_thread.h"
#include "src/execute/host_step.h"
#include "src/execute/memory_plan.h"
#include "src/execute/resolve_config.h"
#include "src/execute/row_logprobs.h"
#include "src/execute/sampler_steps.h"
#include "src/execute/swap_space.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace quire {
namespace {

constexpr StepLimits kLimits{.max_rows = 16,
                             .max_sequences = 3,
                             .max_context_tokens = 40,
                             .block_tokens = 8,
                             .num_blocks = 9,
                             .vocab_size = 50};

PlannedSequence sequence(uint64_t id, int32_t first, std::vector<TokenId> tokens, std::vector<int32_t> blocks,
                         bool sampled) {
  PlannedSequence s{.sequence = SequenceId{id},
                    .first_position = first,
                    .tokens = std::move(tokens),
                    .list_length_before = first};
  for (const int32_t b : blocks) s.block_table.push_back(BlockId{b});
  if (sampled)
    s.samples.push_back({.sequence = s.sequence, .position = first + static_cast<int32_t>(s.tokens.size())});
  return s;
}
template <class T>
std::vector<T> values(const T* data, int64_t count) {
  return {data, data + count};
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(HostStep, LaysOutAMixedStep) {
  HostStep step(kLimits);
  BatchPlan plan;
  plan.sequences = {sequence(1, 7, {3, 4}, {5, 2}, true), sequence(2, 0, {9, 8, 7}, {4}, false),
                    sequence(3, 17, {kSampledLastStep}, {0, 1, 8}, true)};
  ASSERT_TRUE(step.build(plan));
  step.set_id(5, 33);
  const StepArrays a = step.arrays();
  EXPECT_EQ(a.rows, 6);
  EXPECT_EQ(values(a.ids, 6), (std::vector<int32_t>{3, 4, 9, 8, 7, 33}));
  EXPECT_EQ(values(a.positions, 6), (std::vector<int32_t>{7, 8, 0, 1, 2, 17}));
  EXPECT_EQ(values(a.slots, 6), (std::vector<int64_t>{5 * 8 + 7, 2 * 8, 32, 33, 34, 8 * 8 + 1}));
  EXPECT_EQ(values(a.query_start, 4), (std::vector<int32_t>{0, 2, 5, 6}));
  EXPECT_EQ(values(a.lengths, 3), (std::vector<int32_t>{9, 3, 18}));
  EXPECT_EQ(a.table_stride, 3);
  EXPECT_EQ(values(a.block_table, 9), (std::vector<int32_t>{5, 2, 0, 4, 0, 0, 0, 1, 8}));
  EXPECT_EQ(values(a.logits_rows, a.num_logits_rows), (std::vector<int32_t>{1, 5}));
  EXPECT_EQ(a.max_rows, 3);
  EXPECT_EQ(a.max_length, 18);
  EXPECT_FALSE(a.all_rows_have_logits);
  ASSERT_EQ(step.sampled_rows().size(), 1u);
  EXPECT_EQ(step.sampled_rows()[0].row, 5);
}

TEST(HostStep, WritesWhereTheListIsWhenPolicyAndPositionDiffer) {
  HostStep step(kLimits);
  BatchPlan plan;
  plan.sequences = {sequence(1, 30, {3}, {5, 2}, true)};
  plan.sequences[0].list_length_before = 9;
  ASSERT_TRUE(step.build(plan));
  EXPECT_EQ(step.arrays().positions[0], 30);
  EXPECT_EQ(step.arrays().slots[0], 2 * 8 + 1);
  EXPECT_EQ(step.arrays().lengths[0], 10);
  EXPECT_TRUE(step.arrays().all_rows_have_logits);
}

TEST(HostStep, WantsEveryRowForPromptLogprobsAndTheLastForSamples) {
  HostStep step(kLimits);
  BatchPlan plan;
  plan.sequences = {sequence(1, 0, {3, 4, 5}, {5}, false), sequence(2, 0, {9, 8}, {4}, true)};
  plan.sequences[0].prompt_logprobs = 0;
  ASSERT_TRUE(step.build(plan));
  ASSERT_EQ(step.wanted_logits().size(), 2u);
  EXPECT_EQ(step.wanted_logits()[0].count, 3);
  EXPECT_EQ(step.wanted_logits()[1].first, 3);
  EXPECT_EQ(values(step.arrays().logits_rows, 4), (std::vector<int32_t>{0, 1, 2, 4}));
}

TEST(HostStep, RefusesPlansThatBreakALimit) {
  HostStep step(kLimits);
  const auto fault = [&](std::vector<PlannedSequence> sequences) {
    BatchPlan plan;
    plan.sequences = std::move(sequences);
    const Status built = step.build(plan);
    return built ? std::string("accepted") : built.error().message;
  };
  const std::vector<TokenId> many(17, 1);
  EXPECT_TRUE(contains(fault({sequence(1, 0, many, {1, 2, 3}, true)}), "plan of 17 tokens; a step takes 16"));
  const PlannedSequence one = sequence(1, 0, {1}, {1}, true);
  EXPECT_TRUE(contains(fault({one, one, one, one}), "plan of 4 sequences; a step takes 3"));
  EXPECT_TRUE(contains(fault({sequence(7, 0, {}, {1}, true)}), "sequence 7: no tokens"));
  EXPECT_TRUE(contains(fault({sequence(1, 39, {1, 2}, {1, 2, 3, 4, 5, 6}, true)}),
                       "ends at position 41; the limit is 40"));
  EXPECT_TRUE(contains(fault({sequence(1, 0, {50}, {1}, true)}), "token id 50; the vocabulary has 50"));
  EXPECT_TRUE(contains(fault({sequence(1, 0, {-2}, {1}, true)}), "token id -2"));
  EXPECT_TRUE(contains(fault({sequence(1, 0, {kSampledLastStep, 1}, {1}, true)}), "token id -1"));
  EXPECT_TRUE(contains(fault({sequence(1, 8, {1}, {1}, true)}), "9 slots need 2 blocks; its table has 1"));
  PlannedSequence cut = one;
  cut.cut_source = {BlockId{3}, BlockId{9}};
  EXPECT_TRUE(contains(fault({cut}), "a cut from block 9; the cache has 9"));
  cut.cut_source = {BlockId{-1}};
  EXPECT_TRUE(contains(fault({cut}), "a cut from block -1"));
  cut.cut_source = {BlockId{8}};
  EXPECT_EQ(fault({cut}), "accepted");
  EXPECT_TRUE(contains(fault({sequence(1, 0, {1}, {9}, true)}), "block 9; the cache has 9"));
  EXPECT_TRUE(contains(fault({sequence(1, 0, {1}, {-1}, true)}), "block -1"));
  EXPECT_TRUE(contains(fault({sequence(1, -1, {1}, {1}, true)}), "first position -1"));
  EXPECT_EQ(fault({one}), "accepted");
}

TEST(CopyGroups, SplitsCopiesThatDependOnOneAnother) {
  CopyGroups groups(10);
  const auto copy = [](int a, int b) { return BlockCopy{.source = BlockId{a}, .target = BlockId{b}}; };
  ASSERT_TRUE(groups.build(std::vector{copy(0, 1), copy(0, 2), copy(3, 4)}));
  EXPECT_EQ(std::vector<int64_t>(groups.ends().begin(), groups.ends().end()), std::vector<int64_t>{3});
  ASSERT_TRUE(groups.build(std::vector{copy(0, 1), copy(1, 2)}));  // reads what was written
  EXPECT_EQ(groups.ends().size(), 2u);
  ASSERT_TRUE(groups.build(std::vector{copy(0, 1), copy(2, 0)}));  // writes what was read
  EXPECT_EQ(groups.ends().size(), 2u);
  ASSERT_TRUE(groups.build(std::vector{copy(0, 1), copy(2, 1)}));  // writes twice
  EXPECT_EQ(groups.ends().size(), 2u);
  ASSERT_TRUE(groups.build(std::vector<BlockCopy>{}));
  EXPECT_TRUE(groups.ends().empty());
  EXPECT_FALSE(groups.build(std::vector{copy(0, 10)}));
  EXPECT_FALSE(groups.build(std::vector{copy(-1, 1)}));
}

MemoryRequest request() {
  return {.device = "box",
          .reckoning = "what is free",
          .free_bytes = 10'000,
          .weights_bytes = 1'000,
          .workspace_bytes = 500,
          .logits_bytes = 300,
          .steps_bytes = 200,
          .block_bytes = 100,
          .block_tokens = 16,
          .max_context_tokens = 320,
          .default_cache_bytes = 4'000};
}

TEST(MemoryPlan, GivesTheDefaultButAtLeastOneContextAndAtMostWhatIsLeft) {
  MemoryRequest r = request();
  EXPECT_EQ(plan_memory(r)->num_blocks, 40);
  r.default_cache_bytes = 0;
  EXPECT_EQ(plan_memory(r)->num_blocks, 20);
  r.default_cache_bytes = 1'000'000;
  EXPECT_EQ(plan_memory(r)->num_blocks, 80);
  EXPECT_EQ(plan_memory(r)->cache_bytes, 8'000);
  r.kv_cache_bytes = 7'500;
  EXPECT_EQ(plan_memory(r)->left_bytes, 500);
  EXPECT_EQ(plan_memory(r)->weights_bytes, 1'000);
}

TEST(MemoryPlan, WhatABlockAsksForBesideItIsReckonedWith) {
  MemoryRequest r = request();
  r.beside_block_bytes = 25;
  r.default_cache_bytes = 1'000'000;
  EXPECT_EQ(plan_memory(r)->num_blocks, 64);
  EXPECT_EQ(plan_memory(r)->cache_bytes, 6'400);
  EXPECT_EQ(plan_memory(r)->left_bytes, 0);
  r.kv_cache_bytes = 6'500;
  EXPECT_EQ(plan_memory(r).error().code, Code::kResourceExhausted);
}

TEST(MemoryPlan, RefusesWithTheSum) {
  MemoryRequest r = request();
  r.free_bytes = 3'999;
  const Result<MemoryPlan> plan = plan_memory(r);
  ASSERT_FALSE(plan);
  EXPECT_EQ(plan.error().code, Code::kResourceExhausted);
  EXPECT_EQ(
      plan.error().message,
      "box has 0 MiB to take (what is free); weights 1 + workspace 1 + logits 1 + host memory 0 + KV "
      "policies 0 + steps 1 + cache 1 = 5 MiB are needed, 5 more (lower max_context_tokens: the cache must "
      "hold one sequence of so many)");
  r.free_bytes = 4'000;
  EXPECT_TRUE(plan_memory(r));
  r.weights_bytes = 1'000'000;
  for (const int64_t asked : {0, 5'000}) {
    r.kv_cache_bytes = asked;
    const Result<MemoryPlan> without_cache = plan_memory(r);
    ASSERT_FALSE(without_cache);
    EXPECT_TRUE(contains(without_cache.error().message, "do not fit even without a cache"))
        << "no cache is small enough";
  }
}

constexpr int64_t kMiB = 1 << 20;

// One byte too many, of sizes that are no whole MiB: what is needed is never said to be what is there.
TEST(MemoryPlan, TheSumOfARefusalAddsUpAndIsMoreThanThereIs) {
  MemoryRequest r = request();
  r.weights_bytes = 15'317 * kMiB + 1, r.workspace_bytes = 3 * kMiB + kMiB / 2, r.policy_bytes = 7 * kMiB;
  r.block_bytes = 2 * kMiB;
  r.free_bytes = r.weights_bytes + r.workspace_bytes + r.logits_bytes + r.steps_bytes + r.policy_bytes +
                 20 * r.block_bytes - 1;
  EXPECT_TRUE(
      contains(plan_memory(r).error().message,
               "box has 15367 MiB to take (what is free); weights 15318 + workspace 4 + logits 1 + host "
               "memory 0 + KV policies 7 + steps 1 + cache 40 = 15371 MiB are needed, 4 more ("));
  ++r.free_bytes;
  EXPECT_TRUE(plan_memory(r));
}

TEST(MemoryPlan, AdvisesAHigherUtilizationOnlyWhereThatWouldDo) {
  MemoryRequest r = request();
  r.free_bytes = 3'999;
  r.most_bytes = 4'000;
  EXPECT_TRUE(
      contains(plan_memory(r).error().message, "(raise gpu_memory_utilization, or lower max_context_tokens"));
  r.most_bytes = 3'999;
  EXPECT_TRUE(contains(plan_memory(r).error().message, "(lower max_context_tokens"));
  r.free_bytes = 0, r.most_bytes = 4'000;
  EXPECT_TRUE(
      contains(plan_memory(r).error().message, "(raise gpu_memory_utilization, or take a smaller model"));
}

TEST(CardMemory, GivesTheShareOfTheWholeCardThatIsFreeLessTheReserve) {
  const CardMemory card{
      .memory_bytes = 80'000, .free_bytes = 79'000, .utilization = 0.75, .reserved_bytes = 500};
  EXPECT_EQ(usable_bytes(card), 59'500);
  CardMemory c = card;
  c.utilization = 1;
  EXPECT_EQ(usable_bytes(c), 78'500) << "no more than is free";
  EXPECT_EQ(most_usable_bytes(card), 78'500);
  c = card, c.free_bytes = 60'001;
  EXPECT_EQ(usable_bytes(c), 59'500) << "others' memory counts only where it leaves less than the share";
  c.free_bytes = 59'999;
  EXPECT_EQ(usable_bytes(c), 59'499);
  c = card, c.reserved_bytes = 0;
  EXPECT_EQ(usable_bytes(c), 60'000);
}

TEST(CardMemory, IsNeverLessThanNothing) {
  CardMemory c{.memory_bytes = 80'000, .free_bytes = 499, .utilization = 0.75, .reserved_bytes = 500};
  EXPECT_EQ(usable_bytes(c), 0);
  EXPECT_EQ(most_usable_bytes(c), 0);
  c.free_bytes = 80'000, c.utilization = 0.005;
  EXPECT_EQ(usable_bytes(c), 0);
}

TEST(CardMemory, ItsReckoningIsInNumbersThatAddUp) {
  const CardMemory card{.memory_bytes = 81'559 * kMiB,
                        .free_bytes = 81'008 * kMiB + 5,
                        .utilization = 0.92,
                        .reserved_bytes = 512 * kMiB};
  EXPECT_EQ(reckoning_of(card),
            "the lesser of 81008 free and 75034, which is gpu_memory_utilization 0.92 of 81559, less a "
            "reserve of 512");
  EXPECT_EQ(usable_bytes(card) / kMiB, 75'034 - 512);
  CardMemory whole = card;
  whole.reserved_bytes = 0;
  EXPECT_FALSE(contains(reckoning_of(whole), "reserve"));
}

TEST(MemoryPlan, RefusesBytesWhoseSumWithTheRestIsNoNumber) {
  MemoryRequest r = request();
  r.kv_cache_bytes = INT64_MAX;
  const Result<MemoryPlan> plan = plan_memory(r);
  ASSERT_FALSE(plan);
  EXPECT_EQ(plan.error().code, Code::kResourceExhausted);
}

TEST(MemoryPlan, CountsHostMemoryWhereTheDeviceIsTheHost) {
  MemoryRequest r = request();
  r.kv_cache_bytes = 7'500;
  r.host_bytes = 500;
  EXPECT_EQ(plan_memory(r)->left_bytes, 0);
  r.host_bytes = 501;
  EXPECT_TRUE(contains(plan_memory(r).error().message, "host memory 1 + "));
}

TEST(HostMemory, IsWholeBlocksAndNoMoreThanTheHostHasFree) {
  const auto size = [](int64_t swap, int64_t host) {
    EngineConfig c;
    c.swap_space_bytes = swap, c.host_kv_bytes = host;
    return size_host_memory(c, DeviceKind::kCpu, 100, 10'000);
  };
  EXPECT_EQ(size(0, 0)->bytes(), 0);
  EXPECT_EQ(size(250, 399)->swap_bytes, 200);
  EXPECT_EQ(size(250, 399)->bytes(), 500);
  EXPECT_EQ(size(99, 0).error().field, "swap_space_bytes");
  EXPECT_EQ(size(0, 99).error().field, "host_kv_bytes");
  EXPECT_EQ(size(4'000, 6'000)->bytes(), 10'000);
  EXPECT_TRUE(contains(size(4'100, 6'000).error().message,
                       "swap_space_bytes 4100 and host_kv_bytes 6000 are asked for; the host has 10000"));
  EXPECT_EQ(size(INT64_MAX, INT64_MAX).error().code, Code::kResourceExhausted);
}

TEST(MemoryPlan, TakesTheAskedBytesWhole) {
  MemoryRequest r = request();
  r.kv_cache_bytes = 350;
  EXPECT_EQ(plan_memory(r)->num_blocks, 3);
  r.kv_cache_bytes = 99;
  EXPECT_EQ(plan_memory(r).error().field, "kv_cache_bytes");
  r.kv_cache_bytes = 8'100;
  EXPECT_EQ(plan_memory(r).error().code, Code::kResourceExhausted);
}

// In a process of its own, whose working directory is gone.
TEST(ResolveConfigDeathTest, ARelativeDirectoryOfNowhereIsAnError) {
  const auto resolve = [] {
    char name[] = "/tmp/quire-gone-XXXXXX";
    if (mkdtemp(name) == nullptr || chdir(name) != 0 || rmdir(name) != 0) _exit(2);
    ModelSpec spec;
    spec.max_positions = 4096;
    spec.vocab_size = 77;
    const Result<EngineConfig> resolved = resolve_config({.model_dir = "demo"}, spec);
    if (resolved) _exit(3);
    std::fprintf(stderr, "%s\n", resolved.error().message.c_str());
    _exit(0);
  };
  EXPECT_EXIT(resolve(), testing::ExitedWithCode(0),
              "served_model_name is not set, and model `demo` gives none: No such file or directory");
}

TEST(ResolveConfig, FillsInAndNamesWhatIsOutOfRange) {
  ModelSpec spec;
  spec.max_positions = 4096;
  spec.vocab_size = 77;
  EngineConfig c{.model_dir = "models/demo/"};
  const Result<EngineConfig> resolved = resolve_config(c, spec);
  ASSERT_TRUE(resolved);
  EXPECT_EQ(resolved->served_model_name, "demo");
  EXPECT_EQ(resolved->max_context_tokens, 4096);
  EXPECT_EQ(resolved->max_prefill_chunk_tokens, c.max_step_tokens);
  EXPECT_EQ(resolved->sampling_limits.vocab_size, 77);
  const auto field = [&](auto change) {
    EngineConfig bad = c;
    change(bad);
    const Result<EngineConfig> r = resolve_config(bad, spec);
    return r ? "accepted" : r.error().field;
  };
  EXPECT_EQ(field([](EngineConfig& b) { b.served_model_name = "m\xff"; }), "served_model_name");
  EXPECT_EQ(field([](EngineConfig& b) { b.model_dir = "models/d\xff"; }), "served_model_name");
  EXPECT_EQ(field([](EngineConfig& b) { b.max_context_tokens = 4097; }), "max_context_tokens");
  EXPECT_EQ(field([](EngineConfig& b) { b.block_tokens = 12; }), "block_tokens");
  EXPECT_EQ(field([](EngineConfig& b) { b.max_sequences = 0; }), "max_sequences");
  EXPECT_EQ(field([](EngineConfig& b) { b.max_step_tokens = 0; }), "max_step_tokens");
  EXPECT_EQ(field([](EngineConfig& b) { b.max_prefill_chunk_tokens = 5000; }), "max_prefill_chunk_tokens");
  EXPECT_EQ(field([](EngineConfig& b) { b.threads = -1; }), "threads");
  EXPECT_EQ(field([](EngineConfig& b) { b.preemption_mode = "swap"; }), "swap_space_bytes");
  EXPECT_EQ(field([](EngineConfig& b) { b.preemption_mode = "recompute", b.swap_space_bytes = 1; }),
            "swap_space_bytes");
  EXPECT_EQ(field([](EngineConfig& b) { b.kv_cache_bytes = -1; }), "kv_cache_bytes");
  EXPECT_EQ(field([](EngineConfig& b) { b.gpu_memory_utilization = std::nan(""); }),
            "gpu_memory_utilization");
  EXPECT_EQ(field([](EngineConfig& b) { b.model_dir = "/"; }), "served_model_name")
      << "it would have no name";
  EXPECT_EQ(parse_dtype("fp8", "dtype").error().field, "dtype");
  EXPECT_EQ(**parse_dtype("bf16", "dtype"), DType::kBF16);
}

TEST(RowLogprob, IsTheLogOfTheSoftmax) {
  const std::vector<float> row = {1, 3, 2, 3};
  const double lse = std::log(std::exp(1) + 2 * std::exp(3) + std::exp(2));
  const PromptLogprob p = row_logprob(row, 2, 3);
  EXPECT_NEAR(p.logprob, 2 - lse, 1e-6);
  ASSERT_EQ(p.top.size(), 3u);
  EXPECT_EQ(p.top[0].first, 1);
  EXPECT_EQ(p.top[1].first, 3);
  EXPECT_EQ(p.top[2].first, 2);
  EXPECT_EQ(row_logprob(row, 0, 99).top.size(), 4u);
  EXPECT_TRUE(row_logprob(row, 0, 0).top.empty());
}

TEST(RowLogprob, PassesOverNaN) {
  const std::vector<float> row = {NAN, 3, -std::numeric_limits<float>::infinity(), 2};
  const PromptLogprob p = row_logprob(row, 3, 4);
  EXPECT_NEAR(p.logprob, 2 - std::log(std::exp(3) + std::exp(2)), 1e-6);
  EXPECT_EQ(p.top[0].first, 1);
  EXPECT_EQ(p.top[1].first, 3);
  EXPECT_EQ(row_logprob(row, 0, 0).logprob, -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(row_logprob(std::vector<float>{NAN, NAN}, 0, 0).logprob))
      << "nothing to be the logarithm of";
}

// Records what reaches a sampler.
class RecordingSampler final : public Sampler {
 public:
  void join(const PlannedJoin& j) override { log += "join" + std::to_string(value(j.sequence)) + " "; }
  void leave(SequenceId s) override { log += "leave" + std::to_string(value(s)) + " "; }
  void append(SequenceId s, TokenId t) override {
    log += "append" + std::to_string(value(s)) + ":" + std::to_string(t) + " ";
  }
  void sample(float*, int64_t, std::span<const SampleRow>, std::vector<SampledToken>&) override {}
  TokenId last_token(SequenceId) const override { return 0; }
  std::string log;
};

TEST(SamplerSteps, LeaveThenJoinThenAppendWhatTheHostChose) {
  BatchPlan plan;
  plan.leaves = {SequenceId{4}};
  plan.joins = {PlannedJoin{.sequence = SequenceId{4}}};
  plan.sequences = {sequence(1, 5, {11}, {1}, true), sequence(2, 5, {12}, {1}, true),
                    sequence(4, 0, {13}, {2}, true)};
  plan.sequences[1].samples[0].beam = plan.sequences[2].samples[0].beam = true;
  RecordingSampler sampler;
  apply_to_sampler(plan, sampler);
  EXPECT_EQ(sampler.log, "leave4 join4 append2:12 ");
}

class CountingRunner final : public StepRunner {
 public:
  StepResult run(const BatchPlan& plan) override { return {.step = plan.step}; }
};

TEST(ExecutorThread, GivesResultsInOrderAndLetsGoOfPlansBeforeThem) {
  const std::unique_ptr<Executor> executor =
      make_threaded_executor(std::make_unique<CountingRunner>()).value();
  std::shared_ptr<BatchPlan> last;
  for (uint64_t step = 0; step < 200; ++step) {
    auto plan = std::make_shared<BatchPlan>();
    plan->step = step;
    executor->submit(plan);
    if (step > 0) {
      EXPECT_EQ(executor->wait().step, step - 1);
      EXPECT_EQ(last.use_count(), 1);
    }
    last = plan;
  }
  EXPECT_EQ(executor->wait().step, 199u);
  EXPECT_FALSE(executor->ready());
}

TEST(ExecutorThread, EndsWithStepsUnderWay) {
  const std::unique_ptr<Executor> executor =
      make_threaded_executor(std::make_unique<CountingRunner>()).value();
  executor->submit(std::make_shared<BatchPlan>());
  executor->submit(std::make_shared<BatchPlan>());
}

}  // namespace
}  // namespace quire
