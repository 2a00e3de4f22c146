// What the shim knows of memory while checking is on.
//
// Shared memory: a shadow cell per two bytes holds the last write and the last read with their times. Time
// grows at every barrier and every sync_warp, so "before the last barrier" (or, within a warp, "before its
// last sync_warp") is one comparison. That finds reads of bytes nobody wrote, races of any pair of threads
// whatever the order they happened to run in, and touching bytes of an asynchronous copy in flight. Two
// threads that store different bytes of one two-byte granule count as a race.
//
// Global memory: addresses must lie in registered allocations. Writes of a launch are remembered, so that a
// dependent launch which reads them before wait_for_previous_kernel() is found.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <unordered_set>
#include <vector>

namespace quire::shim {

// Allocations that kernels may touch, process-wide, guarded by a mutex. Bytes outside of them are out of
// bounds.
void register_memory(const void* p, int64_t bytes);
void unregister_memory(const void* p);

class SharedShadow {
 public:
  void begin_block(uint32_t bytes, uint32_t num_warps);
  void block_barrier() { last_barrier_ = ++time_; }
  void warp_barrier(uint32_t warp) { last_warp_barrier_[warp] = ++time_; }

  void read(uint32_t offset, uint32_t bytes, uint32_t thread);
  void write(uint32_t offset, uint32_t bytes, uint32_t thread);
  void atomic(uint32_t offset, uint32_t bytes,
              uint32_t thread);  // races with plain accesses, not with atomics
  void begin_async_write(uint32_t offset, uint32_t bytes, uint32_t thread);
  void land_async_write(uint32_t offset, uint32_t bytes, uint32_t thread);

 private:
  struct Cell {
    uint64_t write_time = 0, read_time = 0;
    uint32_t writer = 0, reader = 0;
  };
  static constexpr uint32_t kGranule = 2;
  static constexpr uint64_t kInFlight = ~uint64_t{0};
  static constexpr uint32_t kManyWarps = ~uint32_t{0}, kManyLanes = 1u << 30, kAtomic = 1u << 29;

  bool ordered(uint64_t time, uint32_t other_warp, uint32_t warp) const;
  void check_read(const Cell& cell, uint32_t offset, uint32_t thread) const;
  void check_write(const Cell& cell, uint32_t offset, uint32_t thread) const;
  template <class F>
  void each_cell(uint32_t offset, uint32_t bytes, F f);
  [[gnu::cold]] void fault_of_read(const Cell& cell, uint32_t at) const;
  [[gnu::cold]] void fault_of_write(const Cell& cell, uint32_t at) const;
  [[gnu::cold]] void fault_of_overwrite(const Cell& cell, uint32_t at) const;

  std::vector<Cell> cells_;
  std::vector<uint64_t> last_warp_barrier_;
  uint64_t time_ = 1, block_start_ = 1, last_barrier_ = 1;  // no barrier before the block's start
  int64_t cells_in_flight_ = 0;
  uint32_t bytes_ = 0;
};

class GlobalShadow {
 public:
  void begin_launch(bool dependent);
  void read(const void* p, int64_t bytes);
  void write(const void* p, int64_t bytes);

 private:
  static constexpr int kGranuleShift = 4;
  // The allocation around an address that was found last for a page; kernels go to and fro between a few.
  struct Range {
    uintptr_t begin = 1, end = 0;
    bool holds(uintptr_t b, uintptr_t e) const { return b >= begin && e <= end; }
  };
  static constexpr int kPageShift = 12, kCachedRanges = 256;
  bool before_wait() const;
  void check_bounds(const void* p, int64_t bytes, const char* what);
  void find_range(uintptr_t begin, uintptr_t end, const char* what);

  bool dependent_ = false;
  std::unordered_set<uintptr_t> written_, written_by_previous_;
  uintptr_t last_written_ = 0;
  std::array<Range, kCachedRanges> ranges_;
  uint64_t cached_generation_ = 0, last_launch_generation_ = 0;
};

}  // namespace quire::shim
