#include "src/base/text_file.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>

namespace quire {
namespace {

namespace fs = std::filesystem;

Code code_of(int error_number) {
  if (error_number == ENOENT || error_number == ENOTDIR) return Code::kNotFound;
  return error_number == EACCES || error_number == EPERM ? Code::kPermissionDenied : Code::kInternal;
}

Error fault_of(const std::string& path, int error_number) {
  return error(code_of(error_number), fmt::format("{}: {}", path, std::strerror(error_number)));
}

struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

}  // namespace

bool entry_exists(const std::string& path) {
  std::error_code ignored;
  return fs::symlink_status(path, ignored).type() != fs::file_type::not_found;
}

Result<std::string> read_all(std::FILE* file, const std::string& name, int64_t max_bytes) {
  std::string text;
  char chunk[1 << 16];
  for (;;) {
    errno = 0;
    const size_t got = std::fread(chunk, 1, sizeof chunk, file);
    if (std::ferror(file) != 0) return fault_of(name, errno);
    text.append(chunk, got);
    if (static_cast<int64_t>(text.size()) > max_bytes)
      return invalid(fmt::format("{}: more than {} bytes", name, max_bytes));
    if (got < sizeof chunk) return text;
  }
}

Result<std::string> read_text_file(const std::string& path, int64_t max_bytes) {
  std::error_code fault;
  const fs::file_status status = fs::status(path, fault);
  if (status.type() == fs::file_type::not_found)
    return error(Code::kNotFound, fmt::format("{}: no such file", path));
  if (fault) return fault_of(path, fault.value());
  if (status.type() != fs::file_type::regular) return invalid(fmt::format("{}: it is no regular file", path));
  const std::unique_ptr<std::FILE, Close> file(std::fopen(path.c_str(), "rb"));
  if (file == nullptr) return fault_of(path, errno);
  return read_all(file.get(), path, max_bytes);
}

}  // namespace quire
