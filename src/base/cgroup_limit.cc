#include "src/base/cgroup_limit.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <optional>

namespace quire {
namespace {

// The number that a file holds; none where it holds none ("max") or is not there.
std::optional<int64_t> number_in(const std::string& path) {
  std::ifstream file(path);
  std::string text;
  int64_t value = 0;
  if (!(file >> text)) return {};
  const auto read = std::from_chars(text.data(), text.data() + text.size(), value);
  return read.ec == std::errc() && read.ptr == text.data() + text.size() ? std::optional(value)
                                                                         : std::nullopt;
}

// Of a cgroup and all those above it; a container sees its own as "/" or under a path that is not there.
int64_t least_limit(const std::string& mount, std::string group, const char* file, int64_t least) {
  for (;;) {
    least = std::min(least, number_in(mount + group + "/" + file).value_or(least));
    const size_t slash = group.rfind('/');
    if (slash == std::string::npos) return least;
    group.resize(slash);
  }
}

}  // namespace

int64_t least_cgroup_limit(const CgroupLimit& limit, int64_t otherwise, const std::string& root) {
  const std::string mount = root + "/sys/fs/cgroup", wanted(limit.controller);
  int64_t least = otherwise;
  std::ifstream file(root + "/proc/self/cgroup");  // "0::/GROUP" of v2, "4:memory:/GROUP" of v1
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1),
                      group = line.substr(second + 1);
    if (controllers.empty()) least = least_limit(mount, group, limit.file, least);
    if (("," + controllers + ",").find("," + wanted + ",") != std::string::npos)
      least = least_limit(mount + "/" + wanted, group, limit.file_v1, least);
  }
  return least;
}

}  // namespace quire
