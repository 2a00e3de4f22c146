#include "src/model/text_file.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

namespace quire {

bool file_exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::is_regular_file(path, ignored);
}

Result<std::string> read_text_file(const std::string& path, int64_t max_bytes) {
  if (!file_exists(path)) return error(Code::kNotFound, fmt::format("{}: no such file", path));
  std::ifstream file(path, std::ios::binary);
  if (!file)
    return error(Code::kPermissionDenied, fmt::format("{}: cannot open: {}", path, std::strerror(errno)));
  std::error_code fault;
  const auto size = static_cast<int64_t>(std::filesystem::file_size(path, fault));
  if (fault) return error(Code::kInternal, fmt::format("{}: {}", path, fault.message()));
  if (size > max_bytes)
    return invalid(fmt::format("{}: {} bytes; at most {} are read", path, size, max_bytes));
  std::string text(static_cast<size_t>(size), '\0');
  file.read(text.data(), size);
  if (file.gcount() != size) {
    return error(Code::kDataLoss, fmt::format("{}: read {} of {} bytes", path, file.gcount(), size));
  }
  return text;
}

}  // namespace quire
