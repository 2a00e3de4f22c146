// quire::Engine over its parts: the engine thread around EngineCore, the delivery thread, and the door that
// any thread may use. Engine::open makes the parts from a model directory; tests make them by hand.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_set>
#include <vector>

#include "quire/engine.h"
#include "src/base/random.h"
#include "src/engine/commands.h"
#include "src/engine/delivery_thread.h"
#include "src/engine/engine_core.h"
#include "src/engine/policy_door.h"

namespace quire {

struct EngineParts {
  CoreOptions core;
  std::unique_ptr<Executor> executor;
  std::unique_ptr<BlockMover> mover;  // copies to and from memory of the executor's device; goes before it
  std::unique_ptr<TextFront> text;
  std::unique_ptr<Clock> clock;
  ModelCard card;
  std::vector<int32_t> layer_windows;  // 0 = full attention; for dumps
  PolicyDoor policies;
  int64_t untouched_host_bytes = 0;  // quire/host_memory.h
};

// A model directory's parts; in engine.cc, with Engine::open. Errors name the file, tensor, field or limit at
// fault.
Result<EngineParts> open_parts(const EngineConfig& config);

class ThreadedEngine final : public Engine {
 public:
  // Starts the engine's and the delivery's thread. Errors: the core's options as EngineCore::create has them, a thread that the
  // system does not give (RESOURCE_EXHAUSTED).
  static Result<std::unique_ptr<Engine>> start(EngineParts parts);
  ~ThreadedEngine() override;

  Result<RequestId> submit(Request request, std::shared_ptr<TokenSink> sink) override;
  Result<std::vector<RequestId>> submit_together(std::vector<Submission> batch) override;
  void abort(RequestId id) override;
  void set_paused(RequestId id, bool paused) override;
  Result<std::vector<int32_t>> tokenize(const std::string& text, bool add_special_tokens,
                                        bool special_as_text) override;
  Result<std::string> detokenize(const std::vector<int32_t>& token_ids, bool skip_special_tokens) override;
  Result<std::string> render_chat(const std::vector<ChatMessage>& messages) override;
  ModelCard model() const override { return parts_.card; }
  EngineStats stats() const override;
  const EngineConfig& config() const override { return parts_.core.config; }
  void drain(int64_t timeout_ms) override;
  int64_t untouched_host_bytes() const { return parts_.untouched_host_bytes; }

 private:
  explicit ThreadedEngine(EngineParts parts);
  Result<std::vector<int32_t>> encode(const Request& request) const;
  Status check_door(const Request& request, const std::vector<int32_t>& prompt, const PolicySpec& policy);
  // What has passed the door, and holds its share of the queue's budget.
  struct Entrant {
    Request request;
    std::vector<int32_t> prompt;
    int64_t prompt_tokens = 0;
    PolicySpec policy;
    std::shared_ptr<TokenSink> sink;
  };
  Result<Entrant> pass_door(Submission submission);
  Error turn_away(const Entrant& entrant, Error error);
  std::optional<RequestId> enter(Entrant& entrant);
  Result<std::vector<RequestId>> enter_together(std::vector<Entrant> entrants);
  Error refuse(Error error, const std::string& client_request_id);
  bool is_live(RequestId id) const;
  void leave(RequestId id);
  void abort_all();

  void serve();  // the engine thread
  bool apply_commands();
  void publish_stats(bool is_idle);
  void log_hanging_copies();     // once when some begin to hang, and when none do any more
  void hand_over(bool is_idle);  // what has come out of the core; after a step, and before one is waited for

  EngineParts parts_;
  std::unique_ptr<EngineCore> core_;
  CommandQueue commands_;

  mutable std::mutex live_mutex_;
  std::condition_variable live_changed_;
  std::unordered_set<RequestId> live_;  // submitted, last event not delivered
  RequestId next_id_ = 1;
  Random seeds_;
  std::atomic<bool> draining_{false};
  std::atomic<int64_t> submitted_{0}, refused_{0};
  bool copies_hang_ = false;                // as logged
  std::atomic<int64_t> busy_since_us_{-1};  // of the oldest step that has not ended; -1 = idle

  mutable std::mutex
      stats_mutex_;  // between steps the engine thread only tries it: a reader never holds up a step
  EngineStats stats_;
  std::atomic<int32_t> arriving_{0};  // requests submitted that stats_ does not know
  int32_t taken_ = 0;                 // of them, those the core has; engine thread

  std::unique_ptr<DeliveryThread> delivery_;
  std::jthread thread_;
};

}  // namespace quire
