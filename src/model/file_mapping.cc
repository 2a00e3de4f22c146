#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "src/model/safetensors.h"

namespace quire {
namespace {

Error file_error(const std::string& path, const char* what) {
  const Code code = errno == ENOENT   ? Code::kNotFound
                    : errno == EACCES ? Code::kPermissionDenied
                                      : Code::kInternal;
  return error(code, fmt::format("{}: cannot {}: {}", path, what, std::strerror(errno)));
}

Result<std::span<const std::byte>> map_descriptor(int fd, const std::string& path) {
  struct stat facts{};
  if (fstat(fd, &facts) != 0) return file_error(path, "stat");
  if (!S_ISREG(facts.st_mode)) return invalid(fmt::format("{}: not a regular file", path));
  if (facts.st_size == 0) return std::span<const std::byte>();
  const auto size = static_cast<size_t>(facts.st_size);
  void* data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
  if (data == MAP_FAILED) return file_error(path, "map");
  return std::span<const std::byte>(static_cast<const std::byte*>(data), size);
}

}  // namespace

Result<FileMapping> FileMapping::open(const std::string& path) {
  // Without waiting: a FIFO opens only when somebody writes to it. It means nothing to a regular file.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return file_error(path, "open");
  Result<std::span<const std::byte>> bytes = map_descriptor(fd, path);
  ::close(fd);
  if (!bytes) return bytes.error();
  FileMapping mapping;
  mapping.bytes_ = *bytes;
  return mapping;
}

FileMapping& FileMapping::operator=(FileMapping&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

FileMapping::~FileMapping() {
  if (!bytes_.empty()) munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

}  // namespace quire
