// Prompts that say at a glance which of them begin alike.
#pragma once

#include <cstdint>
#include <vector>

#include "src/base/ids.h"

namespace quire {

// So many from `first` on, of a vocabulary of a thousand.
inline std::vector<TokenId> ids(int32_t count, int32_t first = 0) {
  std::vector<TokenId> v;
  for (int32_t i = 0; i < count; ++i) v.push_back((first + i) % 1000);
  return v;
}

}  // namespace quire
