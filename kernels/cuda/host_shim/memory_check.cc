#include "kernels/cuda/host_shim/memory_check.h"

#include <atomic>
#include <mutex>

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
  for (Cell& cell : cells_)
    if (cell.write_time == kInFlight) cell = {};
}

// Whether an access at `time` by a thread of `other_warp` comes before one that a thread of `warp` makes now.
bool SharedShadow::ordered(uint64_t time, uint32_t other_warp, uint32_t warp) const {
  return time < last_barrier_ || (other_warp == warp && time < last_warp_barrier_[warp]);
}

template <class F>
void SharedShadow::each_cell(uint32_t offset, uint32_t bytes, F f) {
  if (bytes > bytes_ || offset > bytes_ - bytes)
    fault(fmt::format("shared memory out of bounds: [{}, {}) of {} bytes", offset, int64_t{offset} + bytes,
                      bytes_));
  for (uint32_t c = offset / kGranule; c <= (offset + bytes - 1) / kGranule; ++c) f(cells_[c], c * kGranule);
}

void SharedShadow::read(uint32_t offset, uint32_t bytes, uint32_t thread) {
  const uint32_t warp = thread / kWarpLanes;
  each_cell(offset, bytes, [&](Cell& cell, uint32_t at) {
    if (cell.write_time == kInFlight)
      fault(fmt::format(
          "read of shared byte {} while an asynchronous copy to it is in flight (issued by thread {})", at,
          cell.writer));
    if (cell.write_time < block_start_) fault(fmt::format("read of shared byte {} that nobody wrote", at));
    const uint32_t writer = cell.writer & ~kAtomic;
    if (writer != thread && !ordered(cell.write_time, writer / kWarpLanes, warp))
      fault(fmt::format("race: read of shared byte {} that thread {} wrote with no barrier between", at,
                        writer));
    const bool fresh = cell.read_time >= block_start_ && cell.read_time >= last_barrier_;
    if (!fresh || cell.reader == thread) {
      cell.reader = thread;
    } else if (cell.reader != kManyWarps) {
      const uint32_t reader_warp = (cell.reader & ~kManyLanes) / kWarpLanes;
      cell.reader = reader_warp == warp ? (warp * kWarpLanes) | kManyLanes : kManyWarps;
    }
    cell.read_time = time_;
  });
}

void SharedShadow::check_write(const Cell& cell, uint32_t at, uint32_t thread) const {
  const uint32_t warp = thread / kWarpLanes;
  if (cell.write_time == kInFlight)
    fault(fmt::format(
        "write of shared byte {} while an asynchronous copy to it is in flight (issued by thread {})", at,
        cell.writer));
  const uint32_t writer = cell.writer & ~kAtomic;
  if (cell.write_time >= block_start_ && writer != thread &&
      !ordered(cell.write_time, writer / kWarpLanes, warp))
    fault(fmt::format("race: write of shared byte {} that thread {} wrote with no barrier between", at,
                      writer));
  if (cell.read_time < block_start_ || cell.read_time < last_barrier_ || cell.reader == thread) return;
  const bool same_warp = cell.reader != kManyWarps && (cell.reader & ~kManyLanes) / kWarpLanes == warp;
  if (same_warp && cell.read_time < last_warp_barrier_[warp]) return;
  fault(fmt::format("race: write of shared byte {} that {} read with no barrier between", at,
                    cell.reader == kManyWarps  ? "threads of several warps"
                    : cell.reader & kManyLanes ? "other lanes of a warp"
                                               : fmt::format("thread {}", cell.reader)));
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
  });
}

void SharedShadow::land_async_write(uint32_t offset, uint32_t bytes, uint32_t thread) {
  each_cell(offset, bytes, [&](Cell& cell, uint32_t) {
    cell.writer = thread;
    cell.write_time = time_;
  });
}

// ---- global memory ----
void GlobalShadow::begin_launch(bool dependent) {
  dependent_ = dependent;
  written_by_previous_ = std::move(written_);
  written_.clear();
  // Memory that came or went since: the host has waited for the kernel before.
  const uint64_t generation = allocations().generation.load(std::memory_order_relaxed);
  if (!dependent || generation != last_launch_generation_) written_by_previous_.clear();
  last_launch_generation_ = generation;
}

bool GlobalShadow::before_wait() const {
  return dependent_ && !hot.fiber->waited_for_previous_kernel;
}

void GlobalShadow::check_bounds(const void* p, int64_t bytes, const char* what) {
  const auto begin = reinterpret_cast<uintptr_t>(p), end = begin + static_cast<uintptr_t>(bytes);
  Allocations& a = allocations();
  if (a.generation.load(std::memory_order_relaxed) == cached_generation_ && begin >= cached_begin_ &&
      end <= cached_end_)
    return;
  {
    std::lock_guard lock(a.mutex);
    cached_generation_ = a.generation.load(std::memory_order_relaxed);
    auto it = a.end_by_begin.upper_bound(begin);
    cached_begin_ = it == a.end_by_begin.begin() ? 1 : (--it)->first;
    cached_end_ = cached_begin_ == 1 ? 0 : it->second;
  }
  if (begin >= cached_begin_ && end <= cached_end_)
    return;  // a fault never returns: no lock may be held there
  fault(
      fmt::format("global {} of {} bytes at {} is outside every allocation (the nearest below begins {} "
                  "bytes before and has {})",
                  what, bytes, p, begin - cached_begin_, cached_end_ - cached_begin_));
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
  for (uintptr_t g = first; g <= last; ++g) written_.insert(g);
}

}  // namespace quire::shim
