#include "server/commands/command.h"

#include <fmt/format.h>

#include <cstdio>

#include "src/base/utf8.h"

namespace quire::server {

int fail(const Error& error, int exit_code) {
  std::fflush(stdout);
  fmt::print(stderr, "quire: {}\n", escape_controls(error.message));
  return exit_code;
}

}  // namespace quire::server
