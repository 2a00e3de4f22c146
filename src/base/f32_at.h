// One element of an array of any float type.
#pragma once

#include <cstdint>

#include "src/base/check.h"
#include "src/base/dtype.h"

namespace quire {

inline float f32_at(DType dtype, const void* data, int64_t i) {
  switch (dtype) {
    case DType::kF32:
      return static_cast<const float*>(data)[i];
    case DType::kBF16:
      return bf16_to_f32(static_cast<const uint16_t*>(data)[i]);
    case DType::kF16:
      return f16_to_f32(static_cast<const uint16_t*>(data)[i]);
    default:
      check_failed("an element as f32: its type is no float", __FILE__, __LINE__);
  }
}

}  // namespace quire
