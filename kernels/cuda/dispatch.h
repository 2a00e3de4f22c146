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
  DType activations = DType::kF32;
};

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
