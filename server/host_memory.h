// A ceiling of host memory. A thread looks a few times a second at what the process holds; near the ceiling new work is refused, while
// what runs goes on, so that a burst of requests does not bring the kernel's OOM killer on all of them.
//
// What counts is memory that only the process's end gives back: anonymous and shared pages (RssAnon + RssShmem of /proc/self/status) and not
// the pages of mapped weight files, which the kernel drops when it needs room. Pinned host memory is shared pages, all of them from the
// moment it is pinned (seen beside an H100: 1 GiB of it, untouched, is 1 GiB of RssShmem).
//
// Weights and caches are there for good, however near to the ceiling they come, and refusing requests makes them no smaller. So the two steps
// are shares of what they leave: with a fixed part F under a ceiling C, requests are shed from F + 95 % of (C - F) and all work is refused
// from F + 98 %. F is what the process holds when the model is open, and what of its caches is not touched yet.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "quire/result.h"

namespace quire::server {

// What the process holds and would not give back, bytes: a file that it maps from a tmpfs is memory too.
int64_t own_resident_bytes();
// The least of the machine's memory and the limits of the cgroups that this process is in (v1 and v2). root: of the files that say so.
int64_t allowed_host_bytes(const std::string& root = "");
// What the allocator keeps of freed memory, to the system. Takes 10 ms of each 30 MB.
void give_freed_memory_back();

enum class MemoryPressure { kNone, kShed, kRefuse };
const char* to_string(MemoryPressure pressure);  // "", "shedding", "refusing"

// From which bytes on. A step that has begun ends only below `ends`, so that it does not begin and end at each look.
struct MemorySteps {
  int64_t ends = 0, shed = 0, refuse = 0;
};
MemorySteps memory_steps(int64_t ceiling_bytes, int64_t fixed_bytes);
MemoryPressure next_pressure(MemoryPressure now, int64_t bytes, const MemorySteps& steps);

struct HostMemoryOptions {
  int64_t max_bytes = 0;  // 0 = what the cgroup or the machine allows; -1 = no ceiling
  int64_t look_every_ms = 250;
  std::function<int64_t()> resident_bytes = own_resident_bytes;
};

struct HostMemoryStats {
  int64_t bytes = 0, max_bytes = 0;  // at the last look; 0 = no ceiling
  int64_t refused_total = 0;
  MemoryPressure pressure = MemoryPressure::kNone;
};

class HostMemory {
 public:
  explicit HostMemory(const HostMemoryOptions& options) : options_(options) {}
  ~HostMemory();
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;

  // Once, when all that stays is there but untouched_bytes. An error where a ceiling that was asked for leaves no room; where the machine's
  // own does, a line in the log, and no ceiling.
  Status watch(int64_t untouched_bytes);

  // Any thread, and no lock. A request that runs is refused at both steps, a text that is only read at the second.
  std::optional<Error> refuse_request() { return refuse_from(MemoryPressure::kShed); }
  std::optional<Error> refuse_text() { return refuse_from(MemoryPressure::kRefuse); }
  HostMemoryStats stats() const;

 private:
  std::optional<Error> refuse_from(MemoryPressure step);
  void run();
  void look();
  void log_change(MemoryPressure from, MemoryPressure to, int64_t bytes) const;

  const HostMemoryOptions options_;
  MemorySteps steps_;
  int64_t next_trim_us_ = 0;
  std::atomic<int64_t> bytes_ = 0, max_bytes_ = 0, refused_ = 0;
  std::atomic<MemoryPressure> pressure_ = MemoryPressure::kNone;

  std::mutex mutex_;
  std::condition_variable stopping_changed_;
  bool stopping_ = false;
  std::jthread thread_;
};

}  // namespace quire::server
