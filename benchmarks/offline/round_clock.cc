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

RoundClock::RoundClock(int32_t batch, int32_t n, const Clock& clock, Progress* progress)
    : clock_(clock),
      batch_(batch),
      n_(n),
      progress_(progress),
      after_first_(static_cast<size_t>(batch) * static_cast<size_t>(n), 0),
      started_(after_first_.size(), false) {
  times_.start_us = clock.now_us();
}

std::shared_ptr<TokenSink> RoundClock::sink(int32_t index) {
  return std::make_shared<Sink>(*this, index);
}

void RoundClock::on_event(int32_t index, const TokenEvent& event) {
  const int64_t now_us = clock_.now_us();
  const std::lock_guard lock(mutex_);
  const auto sequence =
      static_cast<size_t>(index) * static_cast<size_t>(n_) + static_cast<size_t>(event.index);
  if (!event.token_ids.empty()) count_tokens(sequence, static_cast<int64_t>(event.token_ids.size()), now_us);
  count_end(event, now_us);
}

void RoundClock::count_tokens(size_t sequence, int64_t count, int64_t now_us) {
  times_.tokens += count;
  if (progress_ != nullptr) progress_->advance(count);
  if (num_started_ == 0) times_.first_token_us = now_us;
  if (num_started_ == started_.size() && times_.first_end_us == 0) {
    times_.tokens_between += count;
    after_first_[sequence] += static_cast<int32_t>(count);
  }
  if (started_[sequence]) return;
  started_[sequence] = true;
  if (++num_started_ == started_.size()) times_.all_first_us = now_us;
}

void RoundClock::count_end(const TokenEvent& event, int64_t now_us) {
  if (event.finish != FinishReason::kNone) {
    if (times_.first_end_us == 0) times_.first_end_us = now_us;
    if (event.finish != FinishReason::kLength && !times_.error)
      times_.error = event.error.value_or(error(Code::kInternal, "a request ended early"));
  }
  if (!event.last) return;
  times_.end_us = now_us;
  times_.blocks_peak += event.kv.blocks_peak;
  times_.cached_tokens += event.usage.cached_tokens;
  ++num_ended_;
  ended_.notify_one();
}

RoundTimes RoundClock::wait() {
  std::unique_lock lock(mutex_);
  ended_.wait(lock, [this] { return num_ended_ == batch_; });
  times_.steps_between = *std::max_element(after_first_.begin(), after_first_.end());
  return times_;
}

}  // namespace quire
