// check: our own faults. Always on; prints place and values, then aborts. Never for a caller's mistake.
#pragma once

#include <string_view>

namespace quire {

[[noreturn]] void check_failed(std::string_view what, const char* file, int line);

inline void check(bool holds, std::string_view what, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE()) {
  if (!holds) [[unlikely]]
    check_failed(what, file, line);
}

// What happens instead of print and abort: for the simulator, whose handler jumps out of the episode that broke
// and never returns. nullptr = the default. One thread.
using CheckHandler = void (*)(std::string_view what, const char* file, int line);
void set_check_handler(CheckHandler handler);

}  // namespace quire
