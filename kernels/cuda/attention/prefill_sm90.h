// The door to Hopper's flash kernel (prefill_sm90.cu), which the host side does not have.
#pragma once

#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/flash_tile.h"

namespace quire::QUIRE_SIDE {

#if defined(__CUDACC__)
// Whether the card and the problem are the kernel's.
bool sm90_takes(const AttentionMachine& machine, const FlashParams& flash);
// dtype: of K, V, q. rows, entries: query rows in all, and at most so many sequences of several rows (or
// nodes).
void launch_flash_sm90(const AttentionContext& context, const FlashParams& flash, DType dtype, int64_t rows,
                       int64_t entries);
#else
inline bool sm90_takes(const AttentionMachine&, const FlashParams&) {
  return false;
}
inline void launch_flash_sm90(const AttentionContext&, const FlashParams&, DType, int64_t, int64_t) {}
#endif

}  // namespace quire::QUIRE_SIDE
