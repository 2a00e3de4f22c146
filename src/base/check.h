// check: our own faults. Always on; prints place and values, then aborts. Never for a caller's mistake.
#pragma once

#include <string_view>

namespace quire {

[[noreturn]] void check_failed(std::string_view what, const char* file, int line);

inline void check(bool holds, std::string_view what, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (!holds) [[unlikely]] check_failed(what, file, line);
}

}  // namespace quire
