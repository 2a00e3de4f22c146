// An Engine without a model: one token a step for each running sequence, in its own thread, by a plain rule.
// Keeps the promises of include/quire/engine.h that the server relies on, and records what it was asked.
//
// Output i of a request reads "<i>.0 <i>.1 ..."; with text_bytes every token is that many 'x'. Prompts are
// one token a byte.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "quire/engine.h"

namespace quire::server {

struct FakeEngineOptions {
  int64_t step_us = 200;
  int32_t text_bytes = 0;       // of each token; 0 = the rule above
  int32_t max_requests = 1024;  // running at once; more are refused with a retry delay
  int64_t drain_timeout_ms = 2000;
  int64_t text_ms = 0;   // to read a text
  int64_t close_ms = 0;  // to go
  SamplingParams default_sampling;
};

class FakeEngine final : public Engine {
 public:
  explicit FakeEngine(const FakeEngineOptions& options = {});
  ~FakeEngine() override;

  Result<RequestId> submit(Request request, std::shared_ptr<TokenSink> sink) override;
  Result<std::vector<RequestId>> submit_together(std::vector<Submission>) override {
    return error(Code::kInternal, "the server submits one request at a time");
  }
  void abort(RequestId id) override;
  void set_paused(RequestId id, bool paused) override;
  Result<std::vector<int32_t>> tokenize(const std::string& text, bool add_special_tokens,
                                        bool special_as_text) override;
  Result<std::string> detokenize(const std::vector<int32_t>& token_ids, bool skip_special_tokens) override;
  Result<std::string> render_chat(const std::vector<ChatMessage>& messages) override;
  ModelCard model() const override;
  EngineStats stats() const override;
  const EngineConfig& config() const override { return config_; }
  void drain(int64_t timeout_ms) override;

  // What the tests look at.
  int num_running() const;
  int num_aborted() const;
  int num_pauses() const;
  int64_t tokens_made(RequestId id) const;
  Request last_request() const;
  void set_last_step_age_ms(double age);
  void set_name(const std::string& name) { name_ = name; }  // before anything asks for it
  // While held, reading a text (tokenize, detokenize, or submit of one) does not end.
  void hold_texts(bool held);
  int num_reading() const;
  // False if it did not hold within 5 s.
  bool eventually(const std::function<bool()>& holds) const;

 private:
  struct Running {
    Request request;
    std::shared_ptr<TokenSink> sink;
    int64_t started_us = 0;
    int32_t made = 0;
    bool paused = false, first = true;
    std::optional<FinishReason> ending;
  };

  void read_text();
  void run();
  void step(std::unique_lock<std::mutex>& lock);
  std::vector<TokenEvent> advance(RequestId id, Running& running);
  std::string token_text(int32_t index, int32_t position) const;

  const FakeEngineOptions options_;
  EngineConfig config_;
  std::string name_ = "fake";
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<RequestId, Running> running_;
  std::map<RequestId, int64_t> made_;
  Request last_request_;
  RequestId next_id_ = 1;
  int num_aborted_ = 0, num_pauses_ = 0;
  double last_step_age_ms_ = 0;
  bool draining_ = false, stopping_ = false, texts_held_ = false;
  int num_reading_ = 0;
  std::thread thread_;
};

}  // namespace quire::server
