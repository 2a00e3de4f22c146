#include "server/work_pool.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "server/host_memory.h"
#include "src/base/check.h"
#include "src/base/clock.h"
#include "src/base/retry_delay.h"
#include "src/base/threads.h"

namespace quire::server {
namespace {

constexpr int64_t kLongBytes = 64 << 10;  // some 30 ms
constexpr int64_t kLargeBytes =
    256 << 10;  // 30 MB while it is read; giving those back takes 10 ms of its 100
constexpr double kSmooth = 1.0 / 8;

int32_t num_threads_of(int32_t asked) {
  if (asked > 0) return asked;
  return std::clamp(static_cast<int32_t>(std::thread::hardware_concurrency()) / 4, 2, 8);
}

int64_t time_of(const std::function<void()>& work) {
  const SteadyClock clock;
  const int64_t started_us = clock.now_us();
  work();
  return clock.now_us() - started_us;
}

}  // namespace

Status WorkPool::start() {
  const int32_t count = num_threads_of(options_.threads);
  for (int32_t i = 0; i < count; ++i) {
    Result<std::jthread> thread = start_thread(fmt::format("texts ({} of {}, --text-threads)", i + 1, count),
                                               [this, takes_long = i > 0 || count == 1] { run(takes_long); });
    if (!thread) return thread.error();
    threads_.push_back(std::move(*thread));
  }
  return ok();
}

WorkPool::~WorkPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  threads_.clear();
}

Status WorkPool::submit(int64_t text_bytes, std::function<void()> work) {
  check(!threads_.empty(), "work pool: not started");
  {
    const std::lock_guard lock(mutex_);
    if (std::optional<std::string> full = what_is_full(text_bytes)) return refuse(*std::move(full));
    queued_bytes_ += text_bytes;
    queue_.push_back({.text_bytes = text_bytes, .work = std::move(work)});
  }
  changed_.notify_all();  // one thread alone may be the one that takes no long text
  return ok();
}

WorkPoolStats WorkPool::stats() const {
  const std::lock_guard lock(mutex_);
  return {.waiting = static_cast<int64_t>(queue_.size()), .refused_total = refused_total_};
}

size_t WorkPool::num_queued() const {
  const std::lock_guard lock(mutex_);
  return queue_.size();
}

size_t WorkPool::num_unfinished() const {
  const std::lock_guard lock(mutex_);
  return queue_.size() + num_running_;
}

std::optional<std::string> WorkPool::what_is_full(int64_t text_bytes) const {
  if (queue_.size() >= static_cast<size_t>(options_.max_queued))
    return fmt::format("{} texts wait to be read; at most {} may (max_queued_texts)", queue_.size(),
                       options_.max_queued);
  if (!queue_.empty() && queued_bytes_ + text_bytes > options_.max_queued_bytes)
    return fmt::format("{} bytes of text would wait to be read; at most {} may (max_queued_text_bytes)",
                       queued_bytes_ + text_bytes, options_.max_queued_bytes);
  return std::nullopt;
}

Error WorkPool::refuse(std::string message) {
  ++refused_total_;
  const double wait_ms =
      static_cast<double>(queued_bytes_) * us_per_byte_ / 1000 / static_cast<double>(num_threads());
  return {.code = Code::kResourceExhausted,
          .message = std::move(message),
          .field = {},
          .retry_delay_ms = retry_delay_of(static_cast<int64_t>(wait_ms))};
}

std::deque<WorkPool::Item>::iterator WorkPool::next_for(bool takes_long) {
  if (takes_long) return queue_.begin();
  return std::find_if(queue_.begin(), queue_.end(),
                      [](const Item& item) { return item.text_bytes < kLongBytes; });
}

// Once for each run of large texts: what the next one needs is not given back before it.
bool WorkPool::should_trim() {
  const bool more = std::any_of(queue_.begin(), queue_.end(),
                                [](const Item& item) { return item.text_bytes >= kLargeBytes; });
  return num_large_running_ == 0 && !more && std::exchange(trim_wanted_, false);
}

void WorkPool::run(bool takes_long) {
  std::unique_lock lock(mutex_);
  for (;;) {
    auto next = queue_.end();
    changed_.wait(lock, [&] { return (next = next_for(takes_long)) != queue_.end() || stopping_; });
    if (next == queue_.end()) return;
    Item item = std::move(*next);
    queue_.erase(next);
    queued_bytes_ -= item.text_bytes;
    const bool large = item.text_bytes >= kLargeBytes;
    num_large_running_ += large ? 1 : 0;
    ++num_running_;
    lock.unlock();
    const int64_t took_us = time_of(item.work);
    item.work = {};  // what it holds goes without the lock
    lock.lock();
    num_large_running_ -= large ? 1 : 0;
    --num_running_;
    trim_wanted_ = trim_wanted_ || large;
    if (should_trim()) {
      lock.unlock();
      give_freed_memory_back();
      lock.lock();
    }
    if (item.text_bytes >= kLongBytes)
      us_per_byte_ +=
          kSmooth * (static_cast<double>(took_us) / static_cast<double>(item.text_bytes) - us_per_byte_);
  }
}

}  // namespace quire::server
