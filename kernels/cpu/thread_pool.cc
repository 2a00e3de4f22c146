// Protocol. The owner writes job_ and ranges_ only while open_ is false and active_ is zero. A worker raises
// active_ first and looks at open_ after; the owner closes open_ first and looks at active_ after. All four are
// sequentially consistent, so either the worker sees the region closed and reads nothing, or the owner sees it
// active and waits. A worker that the system did not schedule
// therefore delays nobody: the others take its share, and when it comes it finds the door closed, or the next
// region open, which it may as well join.
#include "kernels/cpu/thread_pool.h"

#include <fmt/format.h>
#include <immintrin.h>

#include <chrono>
#include <utility>

#include "src/base/check.h"
#include "src/base/threads.h"

namespace quire::cpu {
namespace {

// Longer than the gaps between the ops of a step (1 us) and than planning a step (100 us at most), so that
// workers sleep only when the engine is idle.
constexpr auto kSpinTime = std::chrono::microseconds(150);
constexpr int kPausesPerClockRead = 64;

// Spins until done() or until kSpinTime is over; true if done.
template <class Done>
bool spin_until(Done done) {
  const auto end = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < kPausesPerClockRead; ++i) {
      if (done()) return true;
      _mm_pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

}  // namespace

ThreadPool::ThreadPool(int threads) : ranges_(static_cast<size_t>(threads)) {
  check(threads >= 1, "a thread pool needs at least one thread");
}

Status ThreadPool::start() {
  for (int t = 1; t < threads(); ++t) {
    Result<std::jthread> worker = start_thread(
        fmt::format("the CPU's kernels ({} of {}, --threads)", t + 1, threads()), [this, t] { work(t); });
    if (!worker) return worker.error();
    workers_.push_back(std::move(*worker));
  }
  return ok();
}

ThreadPool::~ThreadPool() {
  ending_ = true;
  ++region_;
  region_.notify_all();
}

void ThreadPool::run_job(int64_t count, Job job) {
  if (count == 1 || threads() == 1) {
    for (int64_t unit = 0; unit < count; ++unit) job.call(job.body, unit, 0);
    return;
  }
  if (count <= 0) return;
  check(workers_.size() + 1 == ranges_.size(), "thread pool: not started");
  job_ = job;
  for (int t = 0; t < threads(); ++t) {
    ranges_[static_cast<size_t>(t)].next.store(count * t / threads(), std::memory_order_relaxed);
    ranges_[static_cast<size_t>(t)].end = count * (t + 1) / threads();
  }
  open_ = true;
  ++region_;
  region_.notify_all();
  take_units(0);
  open_ = false;
  wait_for_workers();
}

void ThreadPool::take_units(int thread) {
  for (int i = 0; i < threads(); ++i) {
    Range& range = ranges_[static_cast<size_t>((thread + i) % threads())];
    while (range.next.load(std::memory_order_relaxed) < range.end) {
      const int64_t unit = range.next.fetch_add(1, std::memory_order_relaxed);
      if (unit < range.end) job_.call(job_.body, unit, thread);
    }
  }
}

void ThreadPool::work(int thread) {
  int seen = 0;
  while (true) {
    wait_for_region(seen);
    seen = region_;
    if (ending_) return;
    ++active_;
    if (open_) take_units(thread);
    if (--active_ == 0) active_.notify_one();
  }
}

void ThreadPool::wait_for_region(int seen) {
  if (!spin_until([&] { return region_.load(std::memory_order_relaxed) != seen; })) region_.wait(seen);
}

void ThreadPool::wait_for_workers() {
  if (spin_until([&] { return active_ == 0; })) return;
  for (int active = active_; active != 0; active = active_) active_.wait(active);
}

}  // namespace quire::cpu
