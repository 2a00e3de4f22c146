// The bound of every time that a client or an operator gives in ms.
#pragma once

#include <cstdint>

namespace quire {

inline constexpr int64_t kLongestMs = int64_t{1} << 40;  // 35 years: its microseconds still fit into 64 bits

}  // namespace quire
