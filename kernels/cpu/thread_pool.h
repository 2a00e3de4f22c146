// Threads that live as long as the back end and carry out one parallel region after another.
// One owner thread calls run(); nothing is allocated per region. A region costs about a microsecond while the
// workers still spin (they do for kSpinTime after a region), and a futex wake-up after that.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#include "quire/result.h"

namespace quire::cpu {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // the owner counts as one of them
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  Status start();  // once, before the first region

  int threads() const { return static_cast<int>(ranges_.size()); }

  // Calls body(unit, thread) once for each unit in [0, count), thread in [0, threads()); returns when all are
  // done. Each thread takes its own static share in order, then what is left of the others'. A unit's result
  // must not depend on who ran it.
  template <class Body>
  void run(int64_t count, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run_job(count,
            Job{.body = const_cast<void*>(static_cast<const void*>(&body)),
                .call = [](void* b, int64_t unit, int thread) { (*static_cast<Plain*>(b))(unit, thread); }});
  }

 private:
  struct Job {
    void* body = nullptr;
    void (*call)(void* body, int64_t unit, int thread) = nullptr;
  };
  struct alignas(64) Range {  // a line each: the owner of one must not slow the others
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  void run_job(int64_t count, Job job);
  void take_units(int thread);
  void work(int thread);
  void wait_for_region(int seen);
  void wait_for_workers();

  std::vector<Range> ranges_;
  Job job_;
  std::atomic<int> region_{0};  // counts regions; workers wait for it to change
  std::atomic<bool> open_{false};
  std::atomic<int> active_{0};  // workers that may be reading job_ and ranges_
  std::atomic<bool> ending_{false};
  std::vector<std::jthread> workers_;
};

}  // namespace quire::cpu
