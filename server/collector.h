// A TokenSink that gathers a whole request, for commands that run the engine in process. on_event() comes
// from the delivery thread, wait() from the command's.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "quire/request.h"

namespace quire::server {

struct Output {
  int32_t index = 0;
  std::string text;
  std::vector<int32_t> token_ids;
  std::vector<TokenLogprob> logprobs;
  FinishReason finish = FinishReason::kNone;
  std::string stop_text;
  std::optional<int32_t> stop_token_id;
  KvDump kv_dump;
};

struct Completion {
  std::vector<int32_t> prompt_token_ids;
  std::vector<TokenLogprob> prompt_logprobs;
  std::vector<Output> outputs;  // by index
  std::optional<Error> error;
  Usage usage;
  KvUsage kv;
  Timings timings;
};

class Collector final : public TokenSink {
 public:
  // `on_text` is called on the delivery thread with each piece of new text of output 0; it must not block for
  // long.
  explicit Collector(std::function<void(const std::string&)> on_text = {}) : on_text_(std::move(on_text)) {}

  void on_event(const TokenEvent& event) override;
  Completion wait();  // until the last event

 private:
  Output& output(int32_t index);  // with mutex_ held

  const std::function<void(const std::string&)> on_text_;
  mutable std::mutex mutex_;
  std::condition_variable done_changed_;
  bool done_ = false;
  Completion completion_;
};

}  // namespace quire::server
