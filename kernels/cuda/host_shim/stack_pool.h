// The stacks of the threads of one block that the runner plays.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <vector>

#include "src/base/check.h"

namespace quire::shim {

// Stacks of all fibers in one reservation, a guard page below each; pages are taken as they are touched. The
// stack given back last is given out first, so a kernel without barriers runs all its threads on one warm
// stack.
class StackPool {
 public:
  static constexpr int kMaxStacks = 1024;  // threads of a block

  StackPool() {
    const size_t bytes = kMaxStacks * (kStackBytes + kGuardBytes);
    void* p =
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    check(p != MAP_FAILED, "no address space for the shim's fiber stacks");
    base_ = static_cast<char*>(p);
    for (int i = 0; i < kMaxStacks; ++i)
      mprotect(base_ + i * (kStackBytes + kGuardBytes), kGuardBytes, PROT_NONE);
    reset();
  }
  ~StackPool() { munmap(base_, kMaxStacks * (kStackBytes + kGuardBytes)); }
  StackPool(const StackPool&) = delete;
  StackPool& operator=(const StackPool&) = delete;

  void reset() {
    free_.resize(kMaxStacks);
    for (int i = 0; i < kMaxStacks; ++i) free_[i] = kMaxStacks - 1 - i;
  }
  int take() {
    const int i = free_.back();
    free_.pop_back();
    return i;
  }
  void give_back(int i) { free_.push_back(i); }
  char* at(int i) { return base_ + i * (kStackBytes + kGuardBytes) + kGuardBytes; }
  // Tops at the same place of a page would take turns in the few lines that the first cache has for it.
  static size_t bytes_of(int i) { return kStackBytes - static_cast<size_t>(i) * 192 % kGuardBytes; }

 private:
  static constexpr size_t kStackBytes = 128 * 1024, kGuardBytes = 4096;

  char* base_ = nullptr;
  std::vector<int> free_;
};

}  // namespace quire::shim
