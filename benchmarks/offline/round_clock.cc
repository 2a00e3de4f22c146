#include "benchmarks/offline/round_clock.h"

#include <algorithm>

namespace quire {

class RoundClock::Sink final : public TokenSink {
 public:
  Sink(RoundClock& clock, int32_t index) : clock_(clock), index_(index) {}
  void on_event(const TokenEvent& event) override { clock_.on_event(index_, event); }

 private:
  RoundClock& clock_;
  int32_t index_;
};

RoundClock::RoundClock(int32_t batch, const Clock& clock)
    : clock_(clock),
      after_first_(static_cast<size_t>(batch), 0),
      started_(static_cast<size_t>(batch), false) {
  times_.start_us = clock.now_us();
}

std::shared_ptr<TokenSink> RoundClock::sink(int32_t index) {
  return std::make_shared<Sink>(*this, index);
}

void RoundClock::on_event(int32_t index, const TokenEvent& event) {
  const int64_t now_us = clock_.now_us();
  const std::lock_guard lock(mutex_);
  if (!event.token_ids.empty()) count_tokens(index, static_cast<int64_t>(event.token_ids.size()), now_us);
  if (!event.last) return;
  if (event.finish != FinishReason::kLength && !times_.error) {
    times_.error = event.error.value_or(error(Code::kInternal, "a request ended early"));
  }
  if (num_ended_++ == 0) times_.first_end_us = now_us;
  times_.blocks_peak += event.kv.blocks_peak;
  ended_.notify_one();
}

void RoundClock::count_tokens(int32_t index, int64_t count, int64_t now_us) {
  const auto i = static_cast<size_t>(index);
  const auto batch = static_cast<int32_t>(started_.size());
  if (num_started_ == batch && num_ended_ == 0) {
    times_.tokens_between += count;
    after_first_[i] += static_cast<int32_t>(count);
  }
  if (started_[i]) return;
  started_[i] = true;
  if (++num_started_ == batch) times_.all_first_us = now_us;
}

RoundTimes RoundClock::wait() {
  std::unique_lock lock(mutex_);
  ended_.wait(lock, [this] { return num_ended_ == static_cast<int32_t>(started_.size()); });
  times_.steps_between = *std::max_element(after_first_.begin(), after_first_.end());
  return times_;
}

}  // namespace quire
