#include "server/commands/text_file.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iostream>

namespace quire::server {

Result<std::string> read_file(const std::string& path, const std::string& flag, size_t max_bytes) {
  std::ifstream file;
  if (path != "-") {
    errno = 0;
    file.open(path, std::ios::binary);
    if (!file) return invalid(fmt::format("{} {}: {}", flag, path, std::strerror(errno)));
  }
  std::istream& in = path == "-" ? std::cin : file;
  std::string text;
  char chunk[1 << 16];
  while (in.read(chunk, sizeof chunk) || in.gcount() > 0) {
    text.append(chunk, static_cast<size_t>(in.gcount()));
    if (text.size() > max_bytes)
      return invalid(fmt::format("{} {}: more than {} bytes", flag, path, max_bytes));
  }
  if (in.bad()) return invalid(fmt::format("{} {}: {}", flag, path, std::strerror(errno)));
  return text;
}

}  // namespace quire::server
