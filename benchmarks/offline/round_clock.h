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

namespace quire {

struct RoundTimes {
  int64_t start_us = 0;
  int64_t all_first_us = 0;    // the last request's first token
  int64_t first_end_us = 0;    // the first request's last token
  int64_t tokens_between = 0;  // delivered after all_first_us, up to first_end_us
  int32_t steps_between = 0;   // the most of one request
  int64_t blocks_peak = 0;     // sum over the requests
  std::optional<Error> error;  // of the first request that did not end by length
};

class RoundClock {
 public:
  RoundClock(int32_t batch, const Clock& clock);
  // The sink of request `index` of the batch; it shares this clock, which must outlive it.
  std::shared_ptr<TokenSink> sink(int32_t index);
  RoundTimes wait();  // until every request has ended

 private:
  class Sink;
  void on_event(int32_t index, const TokenEvent& event);
  void count_tokens(int32_t index, int64_t count, int64_t now_us);

  const Clock& clock_;
  std::mutex mutex_;
  std::condition_variable ended_;
  std::vector<int32_t> after_first_;  // by request: tokens after all_first_us
  std::vector<bool> started_;
  int32_t num_started_ = 0, num_ended_ = 0;
  RoundTimes times_;
};

}  // namespace quire
