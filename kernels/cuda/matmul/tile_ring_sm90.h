// What Hopper's products share: panels of 64 columns as tensor copies leave them, and the ring of stages between the
// thread that copies and the warpgroups that multiply.
#pragma once

#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/wgmma.h"

namespace quire::QUIRE_SIDE {

inline constexpr int kWarpgroup = 128;
inline constexpr int kPanelBytes = kMapColumns * 2;  // of a row

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int kStages>
struct TileRing {
  uint32_t barriers;
  int stage = 0;
  uint32_t round = 0;

  __device__ TransactionBarrier full(int s) const { return {barriers + 8 * static_cast<uint32_t>(s)}; }
  __device__ TransactionBarrier empty(int s) const {
    return {barriers + 8 * static_cast<uint32_t>(kStages + s)};
  }
  __device__ void next() {
    if (++stage == kStages) stage = 0, round ^= 1;
  }
};

// The ring's next `steps` stages, as they are filled: by.multiply_stage(accumulate) queues a stage's products, by.release(stage) gives it
// back a step later, when they are done. So the tensor cores have the next products in their queue while these end.
template <class Consumer, int kStages>
__device__ inline void multiply_stages(Consumer& by, TileRing<kStages>& ring, int steps) {
  int before = 0;
  for (int i = 0; i < steps; ++i) {
    ring.full(ring.stage).wait(ring.round);
    by.multiply_stage(i > 0);
    if (i > 0) {
      wgmma_wait<1>();
      by.release(before);
    }
    before = ring.stage;
    ring.next();
  }
  wgmma_wait<0>();
  by.release(before);
}

#endif  // sm_90a

}  // namespace quire::QUIRE_SIDE
