#include "server/commands/text_file.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "src/base/text_file.h"

namespace quire::server {

Result<std::string> read_file(const std::string& path, const std::string& flag, size_t max_bytes) {
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  const std::string name = flag + " " + path;
  const auto limit = static_cast<int64_t>(max_bytes);
  Result<std::string> text = std::string();
  if (path == "-") {
    text = read_all(stdin, name, limit);
  } else {
    const std::unique_ptr<std::FILE, Close> file(std::fopen(path.c_str(), "rb"));  // a pipe too
    if (file == nullptr) return invalid(fmt::format("{}: {}", name, std::strerror(errno)));
    text = read_all(file.get(), name, limit);
  }
  if (!text) return invalid(text.error().message);
  return text;
}

}  // namespace quire::server
