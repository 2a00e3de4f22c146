// The element types of tensors as distinct C++ types, so that a template can tell them apart.
#pragma once

#include <cstdint>

#include "src/base/check.h"
#include "src/base/dtype.h"

namespace quire::cpu {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

// Calls f(pointer of the element type). The dtype was checked at the op's door.
template <class Function>
decltype(auto) with_element(DType dtype, Function&& f) {
  switch (dtype) {
    case DType::kBF16:
      return f(Bf16{});
    case DType::kF16:
      return f(F16{});
    default:
      return f(float{});
  }
}

}  // namespace quire::cpu
