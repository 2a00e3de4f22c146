#include "src/base/check.h"

#include <cstdio>
#include <cstdlib>

namespace quire {
namespace {
CheckHandler handler_now = nullptr;
}

void set_check_handler(CheckHandler handler) {
  handler_now = handler;
}

void check_failed(std::string_view what, const char* file, int line) {
  if (handler_now != nullptr) handler_now(what, file, line);
  std::fprintf(stderr, "quire: check failed at %s:%d: %.*s\n", file, line, static_cast<int>(what.size()),
               what.data());
  std::fflush(stderr);
  std::abort();
}

}  // namespace quire
