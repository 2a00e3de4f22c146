#include "src/base/cgroup_limit.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <functional>
#include <optional>

namespace quire {
namespace {

// The number that a file begins with; none where it begins with none ("max") or is not there.
std::optional<int64_t> number_in(const std::string& path) {
  std::ifstream file(path);
  std::string text;
  int64_t value = 0;
  if (!(file >> text)) return {};
  const auto read = std::from_chars(text.data(), text.data() + text.size(), value);
  return read.ec == std::errc() && read.ptr == text.data() + text.size() ? std::optional(value)
                                                                         : std::nullopt;
}

enum class CgroupVersion { kV1, kV2 };
using VisitFolder = std::function<void(const std::string& folder, CgroupVersion version)>;

// Of a cgroup and all those above it; a container sees its own as "/" or under a path that is not there.
void visit_upwards(const std::string& mount, std::string group, CgroupVersion version,
                   const VisitFolder& visit) {
  for (;;) {
    visit(mount + group, version);
    const size_t slash = group.rfind('/');
    if (slash == std::string::npos) return;
    group.resize(slash);
  }
}

void visit_cgroups(std::string_view controller, const std::string& root, const VisitFolder& visit) {
  const std::string mount = root + "/sys/fs/cgroup", wanted(controller);
  std::ifstream file(root + "/proc/self/cgroup");  // "0::/GROUP" of v2, "4:memory:/GROUP" of v1
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1),
                      group = line.substr(second + 1);
    if (controllers.empty()) visit_upwards(mount, group, CgroupVersion::kV2, visit);
    if (("," + controllers + ",").find("," + wanted + ",") != std::string::npos)
      visit_upwards(mount + "/" + wanted, group, CgroupVersion::kV1, visit);
  }
}

// Bytes of files that a memory.stat counts: what the kernel takes back when room is short.
int64_t page_cache_bytes(const std::string& stat, CgroupVersion version) {
  const std::string with_children = version == CgroupVersion::kV1 ? "total_" : "";
  std::ifstream file(stat);
  std::string key;
  int64_t value = 0, bytes = 0;
  while (file >> key >> value)
    if (key == with_children + "active_file" || key == with_children + "inactive_file") bytes += value;
  return bytes;
}

}  // namespace

int64_t least_cgroup_limit(const CgroupLimit& limit, int64_t otherwise, const std::string& root) {
  int64_t least = otherwise;
  visit_cgroups(limit.controller, root, [&](const std::string& folder, CgroupVersion version) {
    const char* name = version == CgroupVersion::kV2 ? limit.file : limit.file_v1;
    least = std::min(least, number_in(folder + "/" + name).value_or(least));
  });
  return least;
}

int64_t least_cgroup_memory_left(int64_t otherwise, const std::string& root) {
  int64_t least = otherwise;
  visit_cgroups("memory", root, [&](const std::string& folder, CgroupVersion version) {
    const bool v2 = version == CgroupVersion::kV2;
    const auto limit = number_in(folder + (v2 ? "/memory.max" : "/memory.limit_in_bytes"));
    const auto used = number_in(folder + (v2 ? "/memory.current" : "/memory.usage_in_bytes"));
    if (!limit) return;
    const int64_t kept =
        std::max<int64_t>(0, used.value_or(0) - page_cache_bytes(folder + "/memory.stat", version));
    least = std::min(least, std::max<int64_t>(0, *limit - kept));
  });
  return least;
}

double least_cgroup_cores(double otherwise, const std::string& root) {
  double least = otherwise;
  visit_cgroups("cpu", root, [&](const std::string& folder, CgroupVersion version) {
    double quota_us = 0, period_us = 0;  // of v2 "200000 100000" in one file, or "max 100000"
    if (version == CgroupVersion::kV2) {
      std::ifstream(folder + "/cpu.max") >> quota_us >> period_us;
    } else {
      quota_us = static_cast<double>(number_in(folder + "/cpu.cfs_quota_us").value_or(-1));
      period_us = static_cast<double>(number_in(folder + "/cpu.cfs_period_us").value_or(0));
    }
    if (quota_us > 0 && period_us > 0) least = std::min(least, quota_us / period_us);
  });
  return least;
}

}  // namespace quire
