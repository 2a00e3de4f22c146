#include "server/host_memory.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <utility>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "src/base/cgroup_limit.h"
#include "src/base/clock.h"
#include "src/base/log.h"
#include "src/base/retry_delay.h"
#include "src/base/threads.h"

namespace quire::server {
namespace {

constexpr int64_t kTrimEveryUs = 1'000'000;
constexpr int64_t kShedPercent = 95, kRefusePercent = 98, kEndsPercent = 93;

// `share` percent of the way, without overflow.
int64_t between(int64_t from, int64_t to, int64_t percent) {
  const int64_t way = to - from;
  return from + way / 100 * percent + way % 100 * percent / 100;
}

}  // namespace

int64_t own_resident_bytes() {
  std::ifstream file("/proc/self/status");
  int64_t kib = 0;
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("RssAnon:") || line.starts_with("RssShmem:"))
      kib += std::atoll(line.c_str() + line.find(':') + 1);
  return kib * 1024;
}

int64_t allowed_host_bytes(const std::string& root) {
  const int64_t all_bytes = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
  return least_cgroup_limit(
      {.controller = "memory", .file = "memory.max", .file_v1 = "memory.limit_in_bytes"}, all_bytes, root);
}

void give_freed_memory_back() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

const char* to_string(MemoryPressure pressure) {
  return pressure == MemoryPressure::kRefuse ? "refusing"
         : pressure == MemoryPressure::kShed ? "shedding"
                                             : "";
}

MemorySteps memory_steps(int64_t ceiling_bytes, int64_t fixed_bytes) {
  return {.ends = between(fixed_bytes, ceiling_bytes, kEndsPercent),
          .shed = between(fixed_bytes, ceiling_bytes, kShedPercent),
          .refuse = between(fixed_bytes, ceiling_bytes, kRefusePercent)};
}

MemoryPressure next_pressure(MemoryPressure now, int64_t bytes, const MemorySteps& steps) {
  if (bytes >= steps.refuse) return MemoryPressure::kRefuse;
  if (bytes < steps.ends) return MemoryPressure::kNone;
  if (now == MemoryPressure::kRefuse) return bytes < steps.shed ? MemoryPressure::kShed : now;
  return bytes >= steps.shed ? MemoryPressure::kShed : now;
}

HostMemory::~HostMemory() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stopping_changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

Status HostMemory::watch(int64_t untouched_bytes) {
  if (options_.max_bytes < 0) return ok();
  give_freed_memory_back();  // what loading the model left
  const int64_t held_bytes = options_.resident_bytes(), fixed_bytes = held_bytes + untouched_bytes;
  const int64_t ceiling_bytes = options_.max_bytes > 0 ? options_.max_bytes : allowed_host_bytes();
  if (fixed_bytes >= ceiling_bytes && options_.max_bytes > 0)
    return error(
        Code::kResourceExhausted,
        fmt::format(
            "--max-host-memory-bytes is {}; the process holds {} bytes with the model open, and its caches "
            "and "
            "buffers may take {} more (kv_cache_bytes, host_kv_bytes, swap_space_bytes, kv_policy_bytes, "
            "max_step_tokens)",
            ceiling_bytes, held_bytes, untouched_bytes));
  if (fixed_bytes >= ceiling_bytes) {
    log_line(
        LogLevel::kWarn, "host_memory_no_ceiling",
        {{"allowed_bytes", ceiling_bytes}, {"held_bytes", held_bytes}, {"untouched_bytes", untouched_bytes}});
    return ok();
  }
  steps_ = memory_steps(ceiling_bytes, fixed_bytes);
  max_bytes_ = ceiling_bytes;
  log_line(LogLevel::kInfo, "host_memory",
           {{"max_bytes", ceiling_bytes},
            {"held_bytes", held_bytes},
            {"untouched_bytes", untouched_bytes},
            {"shed_from_bytes", steps_.shed},
            {"refuse_from_bytes", steps_.refuse}});
  look();
  Result<std::jthread> thread = start_thread("the watch over host memory", [this] { run(); });
  if (!thread) return thread.error();
  thread_ = std::move(*thread);
  return ok();
}

std::optional<Error> HostMemory::refuse_from(MemoryPressure step) {
  const MemoryPressure pressure = pressure_.load(std::memory_order_relaxed);
  if (pressure < step) return {};
  ++refused_;
  return Error{.code = Code::kResourceExhausted,
               .message = fmt::format(
                   "the server holds {} bytes of host memory, of {} that it may (max_host_memory_bytes)",
                   bytes_.load(), max_bytes_.load()),
               .field = {},
               .retry_delay_ms = kRetryDelayMs};
}

HostMemoryStats HostMemory::stats() const {
  return {.bytes = bytes_, .max_bytes = max_bytes_, .refused_total = refused_, .pressure = pressure_};
}

void HostMemory::run() {
  std::unique_lock lock(mutex_);
  while (!stopping_changed_.wait_for(lock, std::chrono::milliseconds(options_.look_every_ms),
                                     [this] { return stopping_; })) {
    lock.unlock();
    look();
    lock.lock();
  }
}

// What was freed and kept by the allocator is no reason to refuse anything: it goes back first.
void HostMemory::look() {
  int64_t bytes = options_.resident_bytes();
  const int64_t now_us = SteadyClock().now_us();
  const bool is_near = bytes >= steps_.shed || pressure_ != MemoryPressure::kNone;
  if (is_near && now_us >= next_trim_us_) {
    give_freed_memory_back();
    next_trim_us_ = now_us + kTrimEveryUs;
    bytes = options_.resident_bytes();
  }
  bytes_ = bytes;
  const MemoryPressure before = pressure_, after = next_pressure(before, bytes, steps_);
  pressure_ = after;
  if (before != after) log_change(before, after, bytes);
}

void HostMemory::log_change(MemoryPressure from, MemoryPressure to, int64_t bytes) const {
  log_line(LogLevel::kWarn, to == MemoryPressure::kNone ? "host_memory_recovered" : "host_memory_pressure",
           {{"step", to_string(to)},
            {"before", to_string(from)},
            {"bytes", bytes},
            {"max_bytes", max_bytes_.load()},
            {"refused_total", refused_.load()}});
}

}  // namespace quire::server
