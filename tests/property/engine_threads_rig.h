// A threaded engine with a fake executor whose content check stays on and ids only, and what can be made to take its time or never
// to end: the device, the disk, the texts.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "src/base/random.h"
#include "src/engine/threaded_engine.h"
#include "src/execute/fake_executor.h"
#include "src/execute/fake_mover.h"

namespace quire {

class Counting final : public TokenSink {
 public:
  void on_event(const TokenEvent& e) override {
    const std::lock_guard lock(mutex_);
    EXPECT_FALSE(last_) << "an event after the last";
    tokens_ += static_cast<int32_t>(e.token_ids.size());
    if (e.finish != FinishReason::kNone) {
      ++ends_[e.index];
      finish_ = e.finish;
    }
    last_ = e.last;
    if (last_) usage_ = e.usage;
    if (last_) changed_.notify_all();
  }
  bool wait(int64_t ms = 60000) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::milliseconds(ms), [this] { return last_; });
  }
  void expect_one_end_each(int32_t sequences) {
    const std::lock_guard lock(mutex_);
    EXPECT_TRUE(last_);
    EXPECT_EQ(static_cast<int32_t>(ends_.size()), sequences);
    for (const auto& [index, n] : ends_) EXPECT_EQ(n, 1) << "sequence " << index;
    EXPECT_EQ(usage_.completion_tokens, tokens_);
  }
  FinishReason finish() {
    const std::lock_guard lock(mutex_);
    return finish_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<int32_t, int32_t> ends_;
  int32_t tokens_ = 0;
  bool last_ = false;
  FinishReason finish_ = FinishReason::kNone;
  Usage usage_;
};

// A device that can be made to take its time.
class HeldExecutor final : public Executor {
 public:
  explicit HeldExecutor(std::unique_ptr<Executor> inner) : inner_(std::move(inner)) {}
  void submit(std::shared_ptr<const BatchPlan> plan) override { inner_->submit(std::move(plan)); }
  StepResult wait() override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !held_ || passes_ > 0; });
    passes_ = std::max(0, passes_ - 1);
    return inner_->wait();
  }
  bool ready() override {
    const std::lock_guard lock(mutex_);
    return (!held_ || passes_ > 0) && inner_->ready();
  }
  void let_one_pass() {
    const std::lock_guard lock(mutex_);
    ++passes_;
    changed_.notify_all();
  }
  void hold(bool held) {
    const std::lock_guard lock(mutex_);
    held_ = held;
    changed_.notify_all();
  }

 private:
  std::unique_ptr<Executor> inner_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false;
  int passes_ = 0;
};

// A disk that takes what it is given, and never returns from a read.
class LosesReads final : public BlockMover {
 public:
  explicit LosesReads(std::unique_ptr<BlockMover> inner) : inner_(std::move(inner)) {}
  void submit(BlockTransfer transfer) override {
    if (transfer.direction != TransferDirection::kToDevice) inner_->submit(std::move(transfer));
  }
  void poll(std::vector<TransferEnd>& ends) override { inner_->poll(ends); }
  void wait() override { inner_->wait(); }
  void set_on_end(std::function<void()> on_end) override { inner_->set_on_end(std::move(on_end)); }

 private:
  std::unique_ptr<BlockMover> inner_;
};

// A tier below that takes its time over what is written to it.
class HoldsWrites final : public BlockMover {
 public:
  explicit HoldsWrites(std::unique_ptr<BlockMover> inner) : inner_(std::move(inner)) {}
  void submit(BlockTransfer transfer) override { held_.push_back(std::move(transfer)); }
  void poll(std::vector<TransferEnd>& ends) override {
    if (!is_open_) return;
    for (BlockTransfer& transfer : std::exchange(held_, {})) inner_->submit(std::move(transfer));
    inner_->poll(ends);
  }
  void wait() override {}
  void set_on_end(std::function<void()> on_end) override { on_end_ = std::move(on_end); }
  void let_go() {
    is_open_ = true;
    on_end_();
  }

 private:
  std::unique_ptr<BlockMover> inner_;
  std::vector<BlockTransfer> held_;  // engine thread
  std::function<void()> on_end_;
  std::atomic<bool> is_open_{false};
};

// A tokenizer that has not come to the end of a text until it is let go. Every text is one id.
class SlowFront final : public TextFront {
 public:
  bool has_tokenizer() const override { return true; }
  bool has_chat_template() const override { return false; }
  Result<std::vector<int32_t>> encode(std::string_view, bool, bool, size_t) const override {
    std::unique_lock lock(mutex_);
    reads_ = true;
    changed_.notify_all();
    changed_.wait(lock, [this] { return let_go_; });
    return std::vector<int32_t>{1};
  }
  Result<std::vector<int32_t>> encode_chat(std::span<const ChatMessage>, bool, size_t) const override {
    return std::vector<int32_t>{};
  }
  Result<std::string> render_chat(std::span<const ChatMessage>) const override { return std::string(); }
  Result<std::string> decode(std::span<const int32_t>, bool) const override { return std::string(); }
  std::unique_ptr<TextStream> stream(const SamplingParams&, std::span<const int32_t>) const override {
    return nullptr;
  }
  void wait_until_it_reads() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return reads_; });
  }
  void let_go() {
    const std::lock_guard lock(mutex_);
    let_go_ = true;
    changed_.notify_all();
  }

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  mutable bool reads_ = false;
  bool let_go_ = false;
};

class EngineThreads : public ::testing::Test {
 protected:
  using WrapMover = std::function<std::unique_ptr<BlockMover>(std::unique_ptr<BlockMover>)>;
  template <class Mover>
  static std::unique_ptr<BlockMover> wrap(std::unique_ptr<BlockMover> inner) {
    return std::make_unique<Mover>(std::move(inner));
  }
  void start(int32_t max_queued = 1024, int32_t num_blocks = 200, int32_t num_disk_blocks = 0,
             std::unique_ptr<TextFront> text = make_ids_only_front("ids only"),
             const WrapMover& wrap_mover = wrap<LosesReads>) {
    EngineParts parts;
    parts.core.config.max_sequences = 16;
    parts.core.config.max_step_tokens = 64;
    parts.core.config.max_context_tokens = 4000;
    parts.core.config.max_queued_requests = max_queued;
    parts.core.config.check_invariants = true;
    parts.core.cache = uniform_spec(
        {.num_layers = 1, .num_kv_heads = 1, .head_dim = 8, .dtype = DType::kF32, .block_tokens = 8},
        num_blocks);
    parts.core.vocab_size = 500;
    auto executor = std::make_unique<FakeExecutor>(
        FakeModel{.vocab_size = 500, .num_blocks = num_blocks, .block_tokens = 8});
    executor_ = executor.get();
    parts.core.cache.disk_bytes = num_disk_blocks * parts.core.cache.groups.front().block_bytes();
    if (num_disk_blocks > 0)
      parts.mover = wrap_mover(
          std::make_unique<FakeMover>(*executor_, nullptr, FakeTiers{.disk_blocks = num_disk_blocks}));
    auto held = std::make_unique<HeldExecutor>(std::move(executor));
    device_ = held.get();
    parts.executor = std::move(held);
    parts.text = std::move(text);
    parts.clock = std::make_unique<SteadyClock>();
    engine_ = std::move(ThreadedEngine::start(std::move(parts))).value();
  }
  static Request request(Random& random, int32_t max_tokens) {
    Request r;
    std::vector<int32_t> prompt;
    for (int64_t i = random.between(1, 40); i > 0; --i)
      prompt.push_back(static_cast<int32_t>(random.below(3)));
    r.prompt = std::move(prompt);
    r.sampling.max_tokens = max_tokens;
    r.sampling.temperature = 0;
    r.stream = random.chance(0.8);
    return r;
  }
  void expect_idle() {
    // A step that was under way has to run, and a reader of stats may have been in the way of the last count.
    const auto settled = [](const EngineStats& s) {
      return s.blocks_held == 0 &&
             s.requests_submitted_total == s.requests_finished_total + s.requests_cancelled_total +
                                               s.requests_failed_total + s.requests_refused_total;
    };
    for (int i = 0; i < 2000 && !settled(engine_->stats()); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EXPECT_TRUE(settled(engine_->stats()));
  }

  bool eventually(const std::function<bool(const EngineStats&)>& holds) {
    for (int i = 0; i < 5000 && !holds(engine_->stats()); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return holds(engine_->stats());
  }

  FakeExecutor* executor_ = nullptr;
  HeldExecutor* device_ = nullptr;
  std::unique_ptr<Engine> engine_;
};

}  // namespace quire
