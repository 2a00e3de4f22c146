// Collects a round's events and times them. on_event comes from the engine's delivery thread, the rest from
// the caller's.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "quire/engine.h"
#include "src/base/clock.h"
#include "src/base/progress.h"

namespace quire {

struct RoundTimes {
  int64_t start_us = 0;
  int64_t first_token_us = 0;  // of any sequence
  int64_t all_first_us = 0;    // the last sequence's first token
  int64_t first_end_us = 0;    // the first sequence's last token
  int64_t end_us = 0;          // the last request's end
  int64_t tokens_between = 0;  // delivered after all_first_us, up to first_end_us
  int32_t steps_between = 0;   // the most of one sequence
  int64_t tokens = 0;          // delivered in all
  int64_t cached_tokens = 0;   // prompt tokens taken from the prefix cache, summed over the requests
  int64_t blocks_peak = 0;     // sum over the requests
  std::optional<Error> error;  // of the first sequence that did not end by length
};

class RoundClock {
 public:
  // `batch` requests of `n` sequences each. Every token advances `progress`, where there is one.
  RoundClock(int32_t batch, int32_t n, const Clock& clock, Progress* progress = nullptr);
  // The sink of request `index` of the batch; it shares this clock, which must outlive it.
  std::shared_ptr<TokenSink> sink(int32_t index);
  RoundTimes wait();  // until every request has ended

 private:
  class Sink;
  void on_event(int32_t index, const TokenEvent& event);
  void count_tokens(size_t sequence, int64_t count, int64_t now_us);
  void count_end(const TokenEvent& event, int64_t now_us);

  const Clock& clock_;
  const int32_t batch_, n_;
  Progress* const progress_;
  std::mutex mutex_;
  std::condition_variable ended_;
  std::vector<int32_t> after_first_;  // by sequence: tokens after all_first_us
  std::vector<bool> started_;         // by sequence
  size_t num_started_ = 0;
  int32_t num_ended_ = 0;  // requests
  RoundTimes times_;
};

}  // namespace quire
