#include "kernels/cuda/host_shim/memory_check.h"

#include <atomic>
#include <iterator>
#include <mutex>
#include <utility>

#include "fmt/format.h"
#include "kernels/cuda/host_shim/runner.h"

namespace quire::shim {
namespace {

constexpr uint32_t kWarpLanes = 32;

struct Allocations {
  std::mutex mutex;
  std::map<uintptr_t, uintptr_t> end_by_begin;
  std::atomic<uint64_t> generation{1};  // changes whenever the map does, so cached ranges expire
};
Allocations& allocations() {
  static Allocations a;
  return a;
}

}  // namespace

void register_memory(const void* p, int64_t bytes) {
  Allocations& a = allocations();
  std::lock_guard lock(a.mutex);
  const auto begin = reinterpret_cast<uintptr_t>(p);
  a.end_by_begin[begin] = begin + static_cast<uintptr_t>(bytes);
  a.generation++;
}

void unregister_memory(const void* p) {
  Allocations& a = allocations();
  std::lock_guard lock(a.mutex);
  a.end_by_begin.erase(reinterpret_cast<uintptr_t>(p));
  a.generation++;
}

// ---- shared memory ----
void SharedShadow::begin_block(uint32_t bytes, uint32_t num_warps) {
  bytes_ = bytes;
  if (cells_.size() < bytes / kGranule + 1) cells_.resize(bytes / kGranule + 1);
  last_barrier_ = block_start_ = ++time_;
  last_warp_barrier_.assign(num_warps, block_start_);
  // A copy that an earlier, faulted or finished block left in flight is not this block's.
  if (std::exchange(cells_in_flight_, 0) == 0) return;
  for (Cell& cell : cells_)
    if (cell.write_time == kInFlight) cell = {};
}

// Whether an access at `time` by a thread of `other_warp` comes before one that a thread of `warp` makes now.
inline bool SharedShadow::ordered(uint64_t time, uint32_t other_warp, uint32_t warp) const {
  return time < last_barrier_ || (other_warp == warp && time < last_warp_barrier_[warp]);
}

template <class F>
void SharedShadow::each_cell(uint32_t offset, uint32_t bytes, F f) {
  if (bytes > bytes_ || offset > bytes_ - bytes) [[unlikely]]
    fault(fmt::format("shared memory out of bounds: [{}, {}) of {} bytes", offset, int64_t{offset} + bytes,
                      bytes_));
  for (uint32_t c = offset / kGranule; c <= (offset + bytes - 1) / kGranule; ++c) f(cells_[c], c * kGranule);
}

void SharedShadow::fault_of_read(const Cell& cell, uint32_t at) const {
  if (cell.write_time == kInFlight)
    fault(fmt::format(
        "read of shared byte {} while an asynchronous copy to it is in flight (issued by thread {})", at,
        cell.writer));
  if (cell.write_time < block_start_) fault(fmt::format("read of shared byte {} that nobody wrote", at));
  fault(fmt::format("race: read of shared byte {} that thread {} wrote with no barrier between", at,
                    cell.writer & ~kAtomic));
}

// kInFlight is the last of all times, so no barrier stands behind it.
inline void SharedShadow::check_read(const Cell& cell, uint32_t at, uint32_t thread) const {
  const uint32_t writer = cell.writer & ~kAtomic;
  const bool own = writer == thread && cell.write_time != kInFlight;
  if (cell.write_time >= block_start_ &&
      (own || ordered(cell.write_time, writer / kWarpLanes, thread / kWarpLanes))) [[likely]]
    return;
  fault_of_read(cell, at);
}

void SharedShadow::read(uint32_t offset, uint32_t bytes, uint32_t thread) {
  const uint32_t warp = thread / kWarpLanes;
  each_cell(offset, bytes, [&](Cell& cell, uint32_t at) {
    check_read(cell, at, thread);
    if (cell.read_time < last_barrier_ || cell.reader == thread) {
      cell.reader = thread;
    } else if (cell.reader != kManyWarps) {
      const uint32_t reader_warp = (cell.reader & ~kManyLanes) / kWarpLanes;
      cell.reader = reader_warp == warp ? (warp * kWarpLanes) | kManyLanes : kManyWarps;
    }
    cell.read_time = time_;
  });
}

void SharedShadow::fault_of_write(const Cell& cell, uint32_t at) const {
  if (cell.write_time == kInFlight)
    fault(fmt::format(
        "write of shared byte {} while an asynchronous copy to it is in flight (issued by thread {})", at,
        cell.writer));
  fault(fmt::format("race: write of shared byte {} that thread {} wrote with no barrier between", at,
                    cell.writer & ~kAtomic));
}
void SharedShadow::fault_of_overwrite(const Cell& cell, uint32_t at) const {
  fault(fmt::format("race: write of shared byte {} that {} read with no barrier between", at,
                    cell.reader == kManyWarps  ? "threads of several warps"
                    : cell.reader & kManyLanes ? "other lanes of a warp"
                                               : fmt::format("thread {}", cell.reader)));
}

inline void SharedShadow::check_write(const Cell& cell, uint32_t at, uint32_t thread) const {
  const uint32_t warp = thread / kWarpLanes, writer = cell.writer & ~kAtomic;
  const bool own = writer == thread && cell.write_time != kInFlight;
  if (cell.write_time >= block_start_ && !own && !ordered(cell.write_time, writer / kWarpLanes, warp))
      [[unlikely]]
    fault_of_write(cell, at);
  if (cell.read_time < last_barrier_ || cell.reader == thread) return;
  const bool same_warp = cell.reader != kManyWarps && (cell.reader & ~kManyLanes) / kWarpLanes == warp;
  if (same_warp && cell.read_time < last_warp_barrier_[warp]) return;
  fault_of_overwrite(cell, at);
}

void SharedShadow::write(uint32_t offset, uint32_t bytes, uint32_t thread) {
  each_cell(offset, bytes, [&](Cell& cell, uint32_t at) {
    check_write(cell, at, thread);
    cell.writer = thread;
    cell.write_time = time_;
  });
}

void SharedShadow::atomic(uint32_t offset, uint32_t bytes, uint32_t thread) {
  each_cell(offset, bytes, [&](Cell& cell, uint32_t at) {
    if (cell.write_time != kInFlight && cell.write_time < block_start_)
      fault(fmt::format("atomic on shared byte {} that nobody wrote", at));
    const bool after_atomic = cell.writer & kAtomic;
    if (!after_atomic || cell.write_time < last_barrier_) check_write(cell, at, thread);
    cell.writer = thread | kAtomic;
    cell.write_time = time_;
  });
}

void SharedShadow::begin_async_write(uint32_t offset, uint32_t bytes, uint32_t thread) {
  each_cell(offset, bytes, [&](Cell& cell, uint32_t at) {
    check_write(cell, at, thread);
    cell.writer = thread;
    cell.write_time = kInFlight;
    ++cells_in_flight_;
  });
}

void SharedShadow::land_async_write(uint32_t offset, uint32_t bytes, uint32_t thread) {
  each_cell(offset, bytes, [&](Cell& cell, uint32_t) {
    if (cell.write_time == kInFlight) --cells_in_flight_;
    cell.writer = thread;
    cell.write_time = time_;
  });
}

// ---- global memory ----
void GlobalShadow::begin_launch(bool dependent) {
  dependent_ = dependent;
  written_by_previous_ = std::move(written_);
  written_.clear();
  last_written_ = 0;
  // Memory that came or went since: the host has waited for the kernel before.
  const uint64_t generation = allocations().generation.load(std::memory_order_relaxed);
  if (!dependent || generation != last_launch_generation_) written_by_previous_.clear();
  last_launch_generation_ = generation;
}

inline bool GlobalShadow::before_wait() const {
  return dependent_ && !hot.fiber->waited_for_previous_kernel;
}

inline void GlobalShadow::check_bounds(const void* p, int64_t bytes, const char* what) {
  const auto begin = reinterpret_cast<uintptr_t>(p), end = begin + static_cast<uintptr_t>(bytes);
  if (allocations().generation.load(std::memory_order_relaxed) != cached_generation_ ||
      !ranges_[begin >> kPageShift & (kCachedRanges - 1)].holds(begin, end)) [[unlikely]]
    find_range(begin, end, what);
}

void GlobalShadow::find_range(uintptr_t begin, uintptr_t end, const char* what) {
  Allocations& a = allocations();
  Range found;
  {
    std::lock_guard lock(a.mutex);
    const uint64_t generation = a.generation.load(std::memory_order_relaxed);
    if (std::exchange(cached_generation_, generation) != generation) ranges_.fill({});
    auto it = a.end_by_begin.upper_bound(begin);
    if (it != a.end_by_begin.begin()) found = {std::prev(it)->first, std::prev(it)->second};
  }
  ranges_[begin >> kPageShift & (kCachedRanges - 1)] = found;
  if (found.holds(begin, end)) return;  // a fault never returns: no lock may be held there
  fault(fmt::format(
      "global {} of {} bytes at {} is outside every allocation (the nearest below begins {} "
      "bytes before and has {})",
      what, end - begin, reinterpret_cast<const void*>(begin), begin - found.begin, found.end - found.begin));
}

void GlobalShadow::read(const void* p, int64_t bytes) {
  check_bounds(p, bytes, "read");
  if (!before_wait() || written_by_previous_.empty()) return;
  const auto first = reinterpret_cast<uintptr_t>(p) >> kGranuleShift;
  const auto last = (reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(bytes) - 1) >> kGranuleShift;
  for (uintptr_t g = first; g <= last; ++g)
    if (written_by_previous_.contains(g))
      fault(
          fmt::format("read at {} of what the previous kernel writes, before wait_for_previous_kernel()", p));
}

void GlobalShadow::write(const void* p, int64_t bytes) {
  check_bounds(p, bytes, "write");
  if (before_wait()) fault(fmt::format("global write at {} before wait_for_previous_kernel()", p));
  const auto first = reinterpret_cast<uintptr_t>(p) >> kGranuleShift;
  const auto last = (reinterpret_cast<uintptr_t>(p) + static_cast<uintptr_t>(bytes) - 1) >> kGranuleShift;
  for (uintptr_t g = first; g <= last; ++g)
    if (std::exchange(last_written_, g) != g) written_.insert(g);
}

}  // namespace quire::shim
