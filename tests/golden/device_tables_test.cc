// What a device keeps from step to step: block tables that are brought by what changes, rows that sequences leave and take, steps
// padded to the sizes of graphs. Method: plans written here for an executor on the host shim, with every step's tables and lengths
// compared with the plan's (check_invariants); tokens against the stored ones, up to the first that rounding may turn.
// QUIRE_TEST_DEVICE: cuda or cuda-host.
#include <gtest/gtest.h>

#include <filesystem>

#include "kernels/cuda/host_device.h"
#include "kernels/cuda/host_shim/runner.h"
#include "src/base/check.h"
#include "src/base/check_note.h"
#include "src/execute/model_executor.h"
#include "tests/golden/engine_rig.h"

namespace quire::golden {
namespace {

constexpr int32_t kBlockTokens = 8, kBlocks = 64, kTokens = 10;
constexpr double kMargin = 1e-3;  // of f32, as in device_test.cc

struct Track {
  SequenceId id{};
  const Case* golden = nullptr;
  std::vector<BlockId> blocks;
  std::vector<int32_t> ids;  // sampled
  int32_t run = 0;           // tokens run
  int32_t unchanged = 0;     // entries since its last plan

  int32_t prompt() const { return static_cast<int32_t>(golden->prompt.size()); }
};

class DeviceTables : public testing::Test {
 protected:
  void SetUp() override {
    const std::string dir = shared_data() + "/models/stories260K";
    if (!std::filesystem::exists(dir))
      GTEST_SKIP() << "no models: " << dir << " is not there (set QUIRE_SHARED)";
    cases_ = read_cases(shared_data() + "/goldens/stories260K.json");
    std::sort(cases_.begin(), cases_.end(),
              [](const Case& a, const Case& b) { return a.prompt.size() > b.prompt.size(); });
    std::erase_if(cases_, [](const Case& c) { return c.greedy.size() < kTokens || c.prompt.size() > 40; });
    ASSERT_GE(cases_.size(), 4u);
    EngineConfig config;
    config.model_dir = dir;
    config.device = env_or("QUIRE_TEST_DEVICE", "cuda-host");
    config.block_tokens = kBlockTokens;
    config.max_context_tokens = 128;
    config.max_step_tokens = 128;
    config.max_sequences = 8;
    config.kv_cache_bytes = kBlocks * kBlockTokens * 2 * 5 * 4 * 8 * 4;
    config.swap_space_bytes = config.kv_cache_bytes;
    config.check_invariants = true;
    Result<OpenedExecutor> opened = open_executor(config);
    ASSERT_TRUE(opened) << opened.error().message;
    opened_ = std::move(*opened);
    ASSERT_EQ(opened_.num_blocks, kBlocks);
    // From the lowest on: padding that wrote to slot 0 would be seen.
    for (int32_t b = kBlocks - 1; b >= 0; --b) free_.push_back(BlockId{b});
    auto sampling = std::make_shared<SamplingParams>();
    sampling->temperature = 0;
    sampling_ = sampling;
  }

  Track track(size_t index) { return {.id = SequenceId{next_id_++}, .golden = &cases_[index]}; }
  BlockId take() {
    const BlockId block = free_.back();
    free_.pop_back();
    return block;
  }
  void leave(Track& t) {
    free_.insert(free_.end(), t.blocks.rbegin(), t.blocks.rend());
    leaves_.push_back(t.id);
    expect_golden(t);
  }
  static void expect_golden(const Track& t) {
    for (size_t i = 0; i < t.ids.size() && t.golden->margins[i] >= kMargin; ++i)
      ASSERT_EQ(t.ids[i], t.golden->greedy[i]) << "sequence " << value(t.id) << " token " << i;
  }

  // The next rows of each, in this order: a prompt's next `chunk` tokens, or the token sampled last.
  BatchPlan plan(const std::vector<Track*>& tracks, int32_t chunk = 1000) {
    BatchPlan p;
    p.step = ++step_;
    p.leaves.swap(leaves_);
    for (Track* t : tracks) p.sequences.push_back(next_of(*t, chunk, p));
    return p;
  }
  PlannedSequence next_of(Track& t, int32_t chunk, BatchPlan& p) {
    PlannedSequence s{.sequence = t.id, .first_position = t.run, .list_length_before = t.run};
    if (t.run == 0)
      p.joins.push_back({.sequence = t.id,
                         .sampling = sampling_,
                         .history = t.golden->prompt,
                         .num_prompt_tokens = t.prompt()});
    const int32_t end = t.run < t.prompt() ? std::min(t.run + chunk, t.prompt()) : t.run + 1;
    for (int32_t i = t.run; i < end; ++i)
      s.tokens.push_back(i < t.prompt() ? t.golden->prompt[static_cast<size_t>(i)] : t.ids.back());
    while (static_cast<int32_t>(t.blocks.size()) * kBlockTokens < end) t.blocks.push_back(take());
    s.block_table = t.blocks;
    s.num_unchanged_blocks = t.unchanged;
    s.num_prompt_tokens = t.prompt();
    if (end >= t.prompt()) s.samples = {{.sequence = t.id, .position = end}};
    return s;
  }

  StepResult run(const BatchPlan& plan) {
    opened_.executor->submit(std::make_shared<const BatchPlan>(plan));
    return opened_.executor->wait();
  }
  void step(const std::vector<Track*>& tracks, int32_t chunk = 1000) {
    const BatchPlan p = plan(tracks, chunk);
    const StepResult result = run(p);
    ASSERT_TRUE(result.status) << result.status.error().message;
    size_t sample = 0;
    for (size_t i = 0; i < tracks.size(); ++i) {
      Track& t = *tracks[i];
      t.run = p.sequences[i].list_length_after();
      t.unchanged = static_cast<int32_t>(t.blocks.size());
      if (!p.sequences[i].samples.empty()) t.ids.push_back(result.samples[sample++].token);
    }
  }
  void transfer(const std::vector<BlockId>& from, const std::vector<BlockId>& to) {
    const std::pair<TransferDirection, const std::vector<BlockId>*> ways[] = {
        {TransferDirection::kToHost, &from}, {TransferDirection::kToDevice, &to}};
    for (const auto& [direction, device] : ways) {
      BlockTransfer t{.id = 1, .direction = direction};
      for (size_t i = 0; i < device->size(); ++i)
        t.copies.push_back({(*device)[i], HostBlockId{static_cast<int32_t>(i)}});
      opened_.tiers.mover->submit(std::move(t));
      opened_.tiers.mover->wait();
      std::vector<TransferEnd> ends;
      opened_.tiers.mover->poll(ends);
      ASSERT_TRUE(ends.size() == 1 && ends[0].status);
    }
  }

  std::vector<Case> cases_;
  OpenedExecutor opened_;
  std::vector<BlockId> free_;
  std::vector<SequenceId> leaves_;
  std::shared_ptr<const SamplingParams> sampling_;
  uint64_t next_id_ = 1, step_ = 0;
};

// Batches of 3 are padded to 4 rows, steps with prompts to 32 and more; slot 0 holds the first token of the first sequence.
TEST_F(DeviceTables, PaddingWritesNothingAndRowsFollowTheirSequences) {
  Track a = track(0), b = track(1), c = track(2), d = track(3);
  for (int i = 0; i < 3; ++i) step({&a, &b, &c}, 5);
  for (int i = 0; i < 4; ++i) step({&c, &a, &b});
  for (int i = 0; i < 3; ++i) step({&a, &c}, 5);  // b sits out
  leave(c);
  for (int i = 0; i < 4; ++i) step({&d, &b, &a}, 3);  // a short list in the row of a long one
  for (Track* t : {&a, &b, &d}) expect_golden(*t);
}

// Lists change rows in the step before: the two sets of tables differ.
TEST_F(DeviceTables, AStepThatFailedIsNotBuiltUpon) {
  Track a = track(0), b = track(1);
  step({&a, &b}), step({&a, &b}), step({&b, &a});
  for (const bool last : {false, true}) {
    BatchPlan broken = plan({&a, &b});
    PlannedSequence& s = broken.sequences[1];
    s.num_unchanged_blocks = 0;
    s.block_table[last ? s.block_table.size() - 1 : 0] = BlockId{kBlocks};
    const StepResult failed = run(broken);
    ASSERT_FALSE(failed.status);
    EXPECT_NE(failed.status.error().message.find("the cache has 64"), std::string::npos);
    a.unchanged = b.unchanged = static_cast<int32_t>(b.blocks.size());  // since the plan that failed
    step({&b, &a}), step({&a, &b});
  }
  for (Track* t : {&a, &b}) expect_golden(*t);
}

// Swapped out and in elsewhere, another sequence in its old blocks meanwhile.
TEST_F(DeviceTables, WhatComesBackElsewhereIsBroughtWhole) {
  Track a = track(0), b = track(1), c = track(2);
  for (int i = 0; i < 3; ++i) step({&a, &b});
  std::vector<BlockId> elsewhere;
  for (size_t i = 0; i < a.blocks.size(); ++i) elsewhere.push_back(take());
  transfer(a.blocks, elsewhere);
  free_.insert(free_.end(), a.blocks.begin(), a.blocks.end());
  for (int i = 0; i < 2; ++i) step({&c, &b});
  a.blocks = elsewhere;  // `unchanged` is what it was: the step before had no row of it
  for (int i = 0; i < 4; ++i) step({&a, &c, &b});
  for (Track* t : {&a, &b, &c}) expect_golden(*t);
}

// A copied block in the middle of a list, called changed; the old one goes to another sequence.
TEST_F(DeviceTables, ACopiedBlockIsReadInThePlaceOfTheOld) {
  Track a = track(0), b = track(1);
  for (int i = 0; i < 2; ++i) step({&a});
  BatchPlan p = plan({&a});
  const BlockId old = a.blocks[1], copy = take();
  a.blocks[1] = p.sequences[0].block_table[1] = copy;
  p.sequences[0].num_unchanged_blocks = 1;
  p.copies = {{.source = old, .target = copy}};
  const StepResult result = run(p);
  ASSERT_TRUE(result.status) << result.status.error().message;
  a.ids.push_back(result.samples[0].token);
  ++a.run;
  a.unchanged = static_cast<int32_t>(a.blocks.size());
  free_.push_back(old);
  for (int i = 0; i < 4; ++i) step({&b, &a});
  for (Track* t : {&a, &b}) expect_golden(*t);
}

// A made-up fault on the thread that queues: the runner notes each plan there (note_plan in src/execute/cuda_runner.cc).
TEST(LateWork, AFaultEndsTheProcessWithThePlanQueuedLast) {
  const auto fault = [] {
    const std::unique_ptr<StreamDevice> device = open_cuda_host_device({.late = true});
    note_for_check("plan queued last: step=7");
    shim::run_or_record(device->stream(), [] { throw shim::ShimFault("some_kernel: out of bounds"); });
    device->synchronize();
  };
  EXPECT_DEATH(fault(), "some_kernel: out of bounds\nquire: plan queued last: step=7\n$");
}

}  // namespace
}  // namespace quire::golden
