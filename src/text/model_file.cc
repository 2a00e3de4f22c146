#include "src/text/model_file.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

namespace quire {
namespace {

constexpr std::uintmax_t kMaxFileBytes = 256ull << 20;

}  // namespace

Result<std::string> read_model_file(const std::string& path) {
  std::error_code failed;
  const std::uintmax_t bytes = std::filesystem::file_size(path, failed);
  if (failed) return error(Code::kNotFound, path + ": " + failed.message());
  if (bytes > kMaxFileBytes)
    return invalid(path + ": it has " + std::to_string(bytes) + " bytes; the limit is " +
                   std::to_string(kMaxFileBytes));
  std::string text(bytes, '\0');
  std::ifstream file(path, std::ios::binary);
  if (!file.read(text.data(), static_cast<std::streamsize>(bytes)))
    return error(Code::kDataLoss, path + ": cannot be read: " + std::strerror(errno));
  return text;
}

}  // namespace quire
