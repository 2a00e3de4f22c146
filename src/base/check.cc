#include "src/base/check.h"

#include <cstdio>
#include <cstdlib>

namespace quire {

void check_failed(std::string_view what, const char* file, int line) {
  std::fprintf(stderr, "quire: check failed at %s:%d: %.*s\n", file, line, static_cast<int>(what.size()), what.data());
  std::fflush(stderr);
  std::abort();
}

}  // namespace quire
