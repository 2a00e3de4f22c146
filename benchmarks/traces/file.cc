#include "benchmarks/traces/file.h"

#include <fmt/format.h>
#include <zlib.h>

#include <charconv>
#include <filesystem>
#include <memory>

namespace quire {
namespace {

constexpr size_t kTarBlock = 512, kMostBytes = size_t{1} << 30;

// A tar header's size field: octal digits, ended by a blank or a zero byte.
Result<size_t> tar_size(const char* field, const std::string& path) {
  size_t size = 0;
  const auto [end, problem] = std::from_chars(field, field + 11, size, 8);
  if (problem != std::errc() || size > kMostBytes)
    return invalid(fmt::format("{}: a tar header has no valid size", path));
  return size;
}

}  // namespace

Result<std::string> read_file(const std::string& path) {
  std::error_code unknown;
  if (std::filesystem::is_directory(path, unknown)) return invalid(fmt::format("'{}' is a directory", path));
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
  if (!file) return error(Code::kNotFound, fmt::format("cannot open '{}'", path));
  std::string content, chunk(size_t{1} << 20, '\0');
  int count = 0;
  while ((count = gzread(file.get(), chunk.data(), static_cast<unsigned>(chunk.size()))) > 0) {
    content.append(chunk, 0, static_cast<size_t>(count));
    if (content.size() > kMostBytes)
      return invalid(fmt::format("'{}' unpacks to more than {} bytes", path, kMostBytes));
  }
  if (count < 0) return invalid(fmt::format("'{}' is not a readable gzip file", path));
  int problem = Z_OK;
  gzerror(file.get(), &problem);
  if (problem == Z_BUF_ERROR)
    return invalid(fmt::format("'{}' is cut short: its gzip stream has no end", path));
  return content;
}

Result<std::vector<std::pair<std::string, std::string>>> untar(const std::string& archive,
                                                               const std::string& path) {
  std::vector<std::pair<std::string, std::string>> files;
  for (size_t at = 0; at + kTarBlock <= archive.size() && archive[at] != '\0';) {
    const char* header = archive.data() + at;
    const Result<size_t> size = tar_size(header + 124, path);
    if (!size) return size.error();
    const std::string name(header, strnlen(header, 100));
    const char type = header[156];
    at += kTarBlock;
    if (*size > archive.size() - at) return invalid(fmt::format("{}: '{}' is cut short", path, name));
    if (type == '0' || type == '\0') files.emplace_back(name, archive.substr(at, *size));
    at += (*size + kTarBlock - 1) / kTarBlock * kTarBlock;
  }
  return files;
}

}  // namespace quire
