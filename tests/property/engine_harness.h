// EngineCore with a fake executor and a moved clock, stepped by hand: what the engine's property tests share.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "src/base/check.h"
#include "src/base/random.h"
#include "src/engine/engine_core.h"
#include "src/execute/fake_executor.h"
#include "src/execute/fake_mover.h"

namespace quire {

struct HarnessOptions {
  int32_t num_blocks = 64, block_tokens = 8, vocab_size = 1000, max_context_tokens = 200;
  int32_t max_step_tokens = 64, max_sequences = 16, max_prefill_chunk_tokens = 0, max_queued_requests = 1024;
  bool prefix_cache = true;
  int64_t max_priority_wait_ms = 60000;
  int32_t num_swap_blocks = 0, num_host_blocks = 0, num_disk_blocks = 0;
  std::vector<StoredBlock> stored_blocks;
  EvictionOrder eviction = EvictionOrder::kLru;
  std::string preemption_mode = "auto";
  PreemptionCosts costs;
  Roofline roofline;
  FakeLink host_link, disk_link = FakeTiers().disk;
  std::string disk_state;  // CoreOptions::disk_kv_state
  BothEnds both_ends = BothEnds::kSpare;
  PolicyMemoryLimits policy_memory;
  ReserveRule reserve;
  std::vector<TokenId> eos;
};

struct SequenceRecord {
  std::vector<TokenId> tokens;
  FinishReason finish = FinishReason::kNone;
  int32_t num_ends = 0;
  std::optional<Error> error;
};
struct RequestRecord {
  std::vector<TokenId> prompt;
  std::shared_ptr<const SamplingParams> sampling;
  std::map<int32_t, SequenceRecord> sequences;
  std::vector<TokenLogprob> prompt_logprobs;
  int32_t num_ends = 0;
  RequestEnd end;
};

class Harness {
 public:
  explicit Harness(const HarnessOptions& options = {})
      : options_(options),
        executor_(fake(options), &clock_, options.roofline),
        mover_(executor_, &clock_,
               {.host_blocks = options.num_swap_blocks + options.num_host_blocks,
                .disk_blocks = options.num_disk_blocks,
                .host = options.host_link,
                .disk = options.disk_link}) {
    CoreOptions core;
    core.config.max_step_tokens = options.max_step_tokens;
    core.config.max_sequences = options.max_sequences;
    core.config.max_prefill_chunk_tokens = options.max_prefill_chunk_tokens;
    core.config.max_context_tokens = options.max_context_tokens;
    core.config.max_queued_requests = options.max_queued_requests;
    core.config.prefix_cache = options.prefix_cache;
    core.config.max_priority_wait_ms = options.max_priority_wait_ms;
    core.config.check_invariants = true;
    core.cache = uniform_spec({.num_layers = 1,
                               .num_kv_heads = 1,
                               .head_dim = 8,
                               .dtype = DType::kF32,
                               .block_tokens = options.block_tokens},
                              options.num_blocks);
    core.cache.swap_bytes = options.num_swap_blocks * core.cache.groups.front().block_bytes();
    core.cache.host_bytes = options.num_host_blocks * core.cache.groups.front().block_bytes();
    core.disk_kv_state = options.disk_state;
    core.cache.disk_bytes = options.num_disk_blocks * core.cache.groups.front().block_bytes();
    core.stored_blocks = options.stored_blocks;
    core.eviction = options.eviction;
    core.config.preemption_mode = options.preemption_mode;
    core.preemption_costs = options.costs;
    core.both_ends = options.both_ends;
    core.reserve = options.reserve;
    core.policy_memory = options.policy_memory;
    core.vocab_size = options.vocab_size;
    core.eos_token_ids = options.eos;
    Result<std::unique_ptr<EngineCore>> made = EngineCore::create(core, executor_, clock_, &mover_);
    check(made.has_value(), made ? "" : made.error().message);
    core_ = std::move(*made);
    core_->set_on_violation([this](const std::string& what) { violations_.push_back(what); });
    mover_.set_wake([this] { return core_->next_deadline_us(); });
  }

  static SamplingParams greedy(int32_t max_tokens) {
    SamplingParams p;
    p.temperature = 0;
    p.max_tokens = max_tokens;
    return p;
  }

  // 0 when refused; the error is kept.
  RequestId submit(std::vector<TokenId> prompt, const SamplingParams& sampling, CoreRequest more = {}) {
    if (Status s = check_request(sampling, prompt, core_->limits(), more.policy); !s)
      return refused(s.error());
    if (Status s = core_->queue_budget().take(static_cast<int64_t>(prompt.size()), 100); !s)
      return refused(s.error());
    more.request = next_request_++;
    more.sampling = std::make_shared<const SamplingParams>(sampling);
    more.arrival_us = clock_.now_us();
    more.seed = sampling.seed.value_or(more.request);
    records_[more.request] = {prompt, more.sampling, {}, {}, 0, {}};
    more.prompt = std::move(prompt);
    const RequestId id = more.request;
    core_->submit(std::move(more));
    return id;
  }

  bool step() {
    const bool did = core_->step() || core_->wait_for_copy();
    collect();
    return did;
  }
  // Steps until nothing is left; a bound on steps shows a hang.
  void run(int64_t max_steps = 100000) {
    while (!core_->idle() && max_steps-- > 0) {
      if (!step()) break;
    }
    while (core_->scheduler().transfers().size() > 0 && max_steps-- > 0 &&
           step()) {  // nobody waited for these
    }
    collect();
    EXPECT_TRUE(core_->idle()) << "stuck with " << core_->num_unfinished() << " requests";
  }
  void abort(RequestId id) { core_->abort(id); }

  void expect_sound() const {
    for (const std::string& v : violations_) ADD_FAILURE() << v;
    for (const std::string& v : executor_.violations()) ADD_FAILURE() << v;
  }
  // Every request ended exactly once, every sequence too, no block is held, and the queue's budget is back.
  void expect_all_ended() {
    for (const auto& [id, r] : records_) {
      EXPECT_EQ(r.num_ends, 1) << "request " << id;
      for (const auto& [index, s] : r.sequences)
        EXPECT_EQ(s.num_ends, 1) << "request " << id << " sequence " << index;
    }
    EXPECT_EQ(core_->cache().num_held(), 0);
    EXPECT_EQ(core_->cache().swap_pool().num_held(), 0);
    for (const KvCache* tier = core_->cache().below(); tier != nullptr; tier = tier->below())
      EXPECT_EQ(tier->num_held(), 0) << name_of(tier->kind());
    EXPECT_EQ(core_->queue_budget().num_requests(), 0);
    EXPECT_EQ(core_->queue_budget().num_tokens(), 0);
  }
  void expect_greedy(RequestId id) {
    const RequestRecord& r = records_.at(id);
    for (const auto& [index, s] : r.sequences) {
      const std::vector<TokenId> expected = executor_.greedy(r.prompt, static_cast<int32_t>(s.tokens.size()));
      EXPECT_EQ(s.tokens, expected) << "request " << id << " sequence " << index;
    }
  }

  std::vector<TokenId> prompt(Random& random, int64_t length) const {
    std::vector<TokenId> p;
    for (int64_t i = 0; i < length; ++i) p.push_back(static_cast<TokenId>(random.below(options_.vocab_size)));
    return p;
  }

  EngineCore& core() { return *core_; }
  FakeExecutor& executor() { return executor_; }
  FakeMover& mover() { return mover_; }
  ManualClock& clock() { return clock_; }
  RequestRecord& record(RequestId id) { return records_.at(id); }
  std::map<RequestId, RequestRecord>& records() { return records_; }
  const Error& last_refusal() const { return last_refusal_; }
  void collect() {
    Outcome out = core_->take_outcome();
    for (PromptOutput& p : out.prompts) records_.at(p.request).prompt_logprobs = std::move(p.logprobs);
    for (const TokenOutput& t : out.tokens) {
      SequenceRecord& s = records_.at(t.request).sequences[t.index];
      EXPECT_EQ(s.num_ends, 0) << "a token after the end of request " << t.request;
      s.tokens.push_back(t.token);
    }
    for (SequenceEnd& e : out.ends) {
      SequenceRecord& s = records_.at(e.request).sequences[e.index];
      ++s.num_ends;
      s.finish = e.finish;
      s.error = e.error;
      if (!e.tokens.empty()) s.tokens = std::move(e.tokens);
    }
    for (RequestEnd& e : out.request_ends) {
      RequestRecord& r = records_.at(e.request);
      ++r.num_ends;
      r.end = e;
    }
  }

 private:
  static FakeModel fake(const HarnessOptions& o) {
    FakeModel m;
    m.vocab_size = o.vocab_size;
    m.num_blocks = o.num_blocks;
    m.block_tokens = o.block_tokens;
    return m;
  }
  RequestId refused(const Error& e) {
    last_refusal_ = e;
    return 0;
  }

  HarnessOptions options_;
  ManualClock clock_;
  FakeExecutor executor_;
  FakeMover mover_;
  std::unique_ptr<EngineCore> core_;
  std::map<RequestId, RequestRecord> records_;
  std::vector<std::string> violations_;
  Error last_refusal_;
  RequestId next_request_ = 1;
};

}  // namespace quire
