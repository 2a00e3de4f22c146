// From run-time types to templates, and where an op runs. Both sides.
#pragma once

#include "kernels/cuda/portable.h"
#include "src/base/check.h"
#include "src/base/dtype.h"

namespace quire::QUIRE_SIDE {

// Where the launchers of this folder put their work.
struct Target {
  void* stream = nullptr;  // cudaStream_t, or shim::HostStream*
  int32_t multiprocessors = 1;
  int32_t shared_bytes_per_block = 99 * 1024;  // the most a kernel may ask for
  int32_t compute_capability = 80;             // whose kernels run: DeviceFacts::kernel_capability
  DType activations = DType::kF32;
};

// Each multiprocessor splits one memory between L1 and shared memory, anew only while it is idle: a kernel that wants
// another split than the one before waits for that to leave, and nothing of it overlaps. So all kernels of a step of
// few rows ask for the same. One row: room for attention's rings, and the rest to L1, through which the one-row
// product's loads go. Several: the products' rings take nearly all. Many rows: kernels are long, the driver chooses.
// (H100, 8 layers of the 8B shape at batch 1: 1.898 ms a step as the driver splits, 1.629 so; README.md.)
inline constexpr int kOneRowSharedBytes = 163 * 1024;  // of 164 KB of an H100's 228, 72 %
inline int carveout_of(int64_t rows) {
  return rows == 1 ? 72 : rows <= 256 ? 100 : -1;
}

// f(float{}), f(bf16{}) or f(f16{}): one instantiation a type.
template <class F>
inline void with_float_type(DType dtype, F f) {
  switch (dtype) {
    case DType::kF32:
      return f(float{});
    case DType::kBF16:
      return f(bf16{});
    case DType::kF16:
      return f(f16{});
    default:
      check_failed("dispatch: not a float type", __FILE__, __LINE__);
  }
}

template <class F>
inline void with_bool(bool value, F f) {
  value ? f(std::true_type{}) : f(std::false_type{});
}

template <class T>
inline T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}
inline unsigned as_grid(int64_t n) {
  return static_cast<unsigned>(n);
}

}  // namespace quire::QUIRE_SIDE
