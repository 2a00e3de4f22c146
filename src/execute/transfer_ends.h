// What the threads of a mover have finished, for the engine thread to take.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <utility>
#include <vector>

#include "src/base/check.h"
#include "src/schedule/block_transfer.h"

namespace quire {

class TransferEnds {
 public:
  void begin() {
    const std::lock_guard lock(mutex_);
    ++num_under_way_;
  }
  void push(TransferEnd end) {
    std::function<void()> on_end;
    {
      const std::lock_guard lock(mutex_);
      ends_.push_back(std::move(end));
      on_end = on_end_;
    }
    ended_.notify_one();
    if (on_end) on_end();
  }
  void poll(std::vector<TransferEnd>& ends) {
    const std::lock_guard lock(mutex_);
    num_under_way_ -= ends_.size();
    for (TransferEnd& end : ends_) ends.push_back(std::move(end));
    ends_.clear();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    check(num_under_way_ > 0, "mover: nothing was submitted");
    ended_.wait(lock, [this] { return !ends_.empty(); });
  }
  void set_on_end(std::function<void()> on_end) {
    const std::lock_guard lock(mutex_);
    on_end_ = std::move(on_end);
  }

 private:
  std::mutex mutex_;
  std::condition_variable ended_;
  std::vector<TransferEnd> ends_;
  size_t num_under_way_ = 0;  // begun and not polled yet
  std::function<void()> on_end_;
};

}  // namespace quire
