// An executor without a model, for tests, simulation and host-time benchmarks:
//   - tokens: the next token is a hash of what the cache's slots hold (so wrong sharing gives wrong tokens), of the position, and for
//     temperature > 0 of the seed; logprobs and candidates likewise;
//   - time: a step takes what a roofline says, on a moved clock;
//   - faults: a hook may fail a step;
//   - KV policies: one list stands for all layers and heads; victims are chosen by a hash instead of scores;
//   - content, which no real one can check: for every slot of every block it keeps which token at which position after which prefix
//     was written there, applies the copies and writes of each plan, and checks at each step that every list's slots hold exactly
//     its sequence's tokens. That finds wrong sharing, a missing copy-on-write, a block freed too early, two writers of one slot.
// Steps run when waited for, as late as they may. Engine thread.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "src/base/block_size.h"
#include "src/base/clock.h"
#include "src/execute/executor.h"
#include "src/execute/fake_sequences.h"
#include "src/schedule/block_transfer.h"

namespace quire {

// Time of a step: overhead + max(bytes read / bandwidth, operations / rate). Microseconds; the defaults are
// an 8B model in 16 bit on an H100 (16 GB of weights at 3 TB/s, 128 KiB of K and V per token, 16 GFLOP per
// token at 600 TFLOP/s).
struct Roofline {
  double overhead_us = 50;
  double weights_us = 5333;
  double kv_us_per_token = 0.0437;  // of context read
  double compute_us_per_token = 26.7;

  double step_us(int64_t tokens, int64_t context_tokens) const {
    const double read = weights_us + kv_us_per_token * static_cast<double>(context_tokens);
    const double compute = compute_us_per_token * static_cast<double>(tokens);
    return overhead_us + (read > compute ? read : compute);
  }
};

struct FakeModel {
  int32_t vocab_size = 1000;
  int32_t num_blocks = 0;
  int32_t block_tokens = 16;
  bool check_content = true;  // off: tokens from position and seed alone; for timing the host
};

class FakeExecutor final : public Executor {
 public:
  using Fault = std::function<Status(const BatchPlan&)>;
  struct CopyFault {
    bool fails = false;    // half of the copies are made, and the step fails
    int64_t delay_us = 0;  // they take so much longer
  };

  explicit FakeExecutor(const FakeModel& model, ManualClock* clock = nullptr, const Roofline& roofline = {});

  void submit(std::shared_ptr<const BatchPlan> plan) override;
  StepResult wait() override;
  bool ready() override { return !submitted_.empty(); }
  void recycle(StepResult result) override { spare_samples_ = std::move(result.samples); }

  void set_fault(Fault fault) { fault_ = std::move(fault); }
  // Asked for each sequence of a step: an Error fails that one and no other.
  using SequenceFault = std::function<Status(const PlannedSequence&)>;
  void set_sequence_fault(SequenceFault fault) { sequence_fault_ = std::move(fault); }
  // Asked when a step with copies is submitted.
  void set_copy_fault(std::function<CopyFault()> fault) { copy_fault_ = std::move(fault); }
  // For FakeMover: host memory and disk of so many blocks, and one block's copy between two tiers.
  void make_blocks_below(int64_t host, int64_t disk);
  void copy(const TierCopy& copy, TransferDirection direction);
  const std::vector<std::string>& violations() const { return violations_; }
  // Real time spent inside wait(), for benchmarks of the host: without a moved clock.
  double run_us() const { return run_us_; }
  bool checks_content() const { return model_.check_content; }
  int64_t num_known() const { return known_.size(); }
  // What greedy decoding gives for a prompt, computed without a cache; for comparison.
  std::vector<TokenId> greedy(const std::vector<TokenId>& prompt, int32_t count) const;

 private:
  struct Slot {
    TokenId token = -1;
    int32_t position = -1;
    uint64_t chain = 0;  // of the tokens 0 .. position
    uint64_t written_in = 0;
  };
  using Known = FakeSequence;

  Slot& slot(BlockId block, int32_t offset) {
    return slots_[static_cast<size_t>(value(block)) * static_cast<size_t>(size_.tokens()) + offset];
  }
  Slot& slot_at(std::span<const BlockId> blocks, int32_t list_slot) {
    return slot(blocks[size_.block_of(list_slot)], size_.offset_of(list_slot));
  }
  // Takes what makes the message: the checks of every token stay small enough to be inlined.
  template <typename Message>
  [[gnu::noinline, gnu::cold]] void violation(const Message& message) {
    constexpr size_t kMaxViolations = 16;
    if (violations_.size() < kMaxViolations) violations_.push_back(message());
  }
  struct Likeness {
    const Known* known = nullptr;
    size_t num_tokens = 0;
  };
  Likeness like(const std::vector<TokenId>& history) const;
  void take_after(const Likeness& other, Known& known);
  void copy(const BlockCopy& copy);
  void join(const PlannedJoin& join);
  bool check_shape(const PlannedSequence& s, const Known& known);
  bool is_block(const PlannedSequence& s, BlockId block);
  bool is_in_range(BlockId block) const { return value(block) >= 0 && value(block) < model_.num_blocks; }
  bool is_as_seen(const Known& known, size_t index, BlockId block) const {
    return known.seen[index] == block && known.seen_version[index] == version_[value(block)];
  }
  bool are_as_seen(const PlannedSequence& s, const Known& known, size_t count) const;
  bool has_seen(const PlannedSequence& s, const Known& known, int32_t end) const;
  bool keeps_all(const PlannedSequence& s) const { return s.policy.kind == RetentionKind::kKeepAll; }
  bool overwrites_slots(const PlannedSequence& s) const;
  int32_t sink_slots_of(const PlannedSequence& s) const;  // of whole blocks
  int32_t position_in(const PlannedSequence& s, const Known& known, int32_t list_slot) const;
  void cut(const PlannedSequence& s, Known& known);
  int32_t take_slot(const PlannedSequence& s, Known& known, int32_t index);
  bool write_decode(const BatchPlan& plan, const PlannedSequence& s, Known& known);
  void write(const BatchPlan& plan, const PlannedSequence& s, Known& known);
  void adopt(const PlannedSequence& s, Known& known);
  bool begins_anew(const PlannedSequence& s, const Known& known) const;
  TokenId resolve(const BatchPlan& plan, const PlannedSequence& s, Known& known, int32_t index);
  void verify(const PlannedSequence& s, Known& known);
  void verify_again(const PlannedSequence& s, Known& known, int32_t index, int32_t slots);
  bool holds(BlockId block, const Known& known, int32_t first, int32_t slots);
  bool verify_block(const PlannedSequence& s, const Known& known, int32_t index, int32_t slots);
  uint64_t chain_of_last(const PlannedSequence& s, const Known& known, int32_t last);
  void sample(const BatchPlan& plan, const PlannedSequence& s, Known& own, SampledToken* next);
  void prompt_logprobs(const PlannedSequence& s, StepResult& result);
  void fail(const BatchPlan& plan);
  void fail_alone(const PlannedSequence& s, StepResult& result);
  StepResult run(const BatchPlan& plan, bool copies_fail);
  Status carry_out_copies(const BatchPlan& plan, bool fail);
  void forget_stale(uint64_t step);
  TokenId pick(uint64_t chain, const Known& known, int32_t position) const;

  FakeModel model_;
  BlockSize size_;
  std::array<bool, static_cast<size_t>(RetentionKind::kH2o) + 1> overwrites_{};  // by kind of policy
  ManualClock* clock_;
  Roofline roofline_;
  Fault fault_;
  SequenceFault sequence_fault_;
  std::function<CopyFault()> copy_fault_;
  std::vector<Slot> slots_, host_slots_, disk_slots_;
  std::vector<uint32_t> version_;  // by block: writes and copies into it
  FakeSequences known_;
  std::vector<Known*> met_;                       // of the plan that runs, in its order
  std::vector<SampledToken> spare_samples_;       // of a result that was taken in
  std::array<const Known*, 16> lately_joined_{};  // or what was made of their memory since
  size_t next_joined_ = 0;
  struct Submitted {
    std::shared_ptr<const BatchPlan> plan;
    int64_t done_us = 0;
    bool copies_fail = false;
  };
  std::deque<Submitted> submitted_;
  int64_t busy_until_us_ = 0;
  double run_us_ = 0;
  std::vector<std::string> violations_;
};

}  // namespace quire
