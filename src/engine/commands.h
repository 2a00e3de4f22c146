// What other threads ask of the engine thread. Bounded: requests by the queue budget they took, the rest by
// the number of live requests (a second word about one request replaces the first; a sequence is stopped
// once). Nobody who pushes waits.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "src/engine/engine_core.h"

namespace quire {

struct Commands {
  struct Control {
    bool abort = false;
    std::optional<bool> paused;
  };
  std::vector<CoreRequest> submits;
  std::map<RequestId, Control> controls;
  std::vector<std::pair<RequestId, int32_t>> stops;
  bool shutdown = false;
};

class CommandQueue {
 public:
  void submit(CoreRequest request) {
    push([&](Commands& c) { c.submits.push_back(std::move(request)); });
  }
  void abort(RequestId id) {
    push([&](Commands& c) { c.controls[id].abort = true; });
  }
  void set_paused(RequestId id, bool paused) {
    push([&](Commands& c) { c.controls[id].paused = paused; });
  }
  void stop(RequestId id, int32_t index) {
    push([&](Commands& c) { c.stops.emplace_back(id, index); });
  }
  void shutdown() {
    push([](Commands& c) { c.shutdown = true; });
  }
  // What is waited for besides commands has come: the next wait returns at once.
  void wake() {
    push([](Commands&) {});
  }
  // Between hold and its release nothing is taken: what is pushed meanwhile arrives together. Holds nest.
  void hold() {
    const std::lock_guard lock(mutex_);
    ++holds_;
  }
  void release() {
    {
      const std::lock_guard lock(mutex_);
      --holds_;
    }
    arrived_.notify_one();
  }

  // Engine thread. Without a lock when there is nothing.
  bool take(Commands& out) {
    if (!pending_.load(std::memory_order_acquire)) return false;
    const std::lock_guard lock(mutex_);
    if (holds_ > 0) return false;
    out = std::exchange(commands_, {});
    pending_.store(false, std::memory_order_relaxed);
    return true;
  }
  // Until there is something, or for timeout_us (< 0: without end).
  void wait(int64_t timeout_us) {
    std::unique_lock lock(mutex_);
    const auto there = [this] { return holds_ == 0 && pending_.load(std::memory_order_relaxed); };
    if (timeout_us < 0)
      arrived_.wait(lock, there);
    else
      arrived_.wait_for(lock, std::chrono::microseconds(timeout_us), there);
  }

 private:
  template <class Change>
  void push(Change change) {
    {
      const std::lock_guard lock(mutex_);
      change(commands_);
      pending_.store(true, std::memory_order_release);
    }
    arrived_.notify_one();
  }

  std::mutex mutex_;
  std::condition_variable arrived_;
  Commands commands_;
  int32_t holds_ = 0;
  std::atomic<bool> pending_{false};
};

}  // namespace quire
