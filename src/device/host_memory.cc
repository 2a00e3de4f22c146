#include "src/device/host_memory.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <string>

#include "src/base/cgroup_limit.h"

namespace quire {

int64_t physical_host_bytes() {
  return static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
}

namespace {

int64_t available_machine_bytes() {
  std::ifstream file("/proc/meminfo");
  for (std::string key, unit; file >> key;) {
    int64_t kib = 0;
    file >> kib;
    std::getline(file, unit);
    if (key == "MemAvailable:") return kib * 1024;
  }
  return static_cast<int64_t>(sysconf(_SC_AVPHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
}

}  // namespace

int64_t available_host_bytes() {
  return least_cgroup_memory_left(available_machine_bytes());
}

std::string address_space_note() {
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return "";
  std::ifstream file("/proc/self/statm");  // its first number: mapped pages
  int64_t pages = 0;
  file >> pages;
  const auto limit_bytes = static_cast<int64_t>(limit.rlim_cur);
  const int64_t left = std::max<int64_t>(0, limit_bytes - pages * sysconf(_SC_PAGE_SIZE));
  return fmt::format(", and RLIMIT_AS (ulimit -v) leaves {} bytes of {}", left, limit_bytes);
}

}  // namespace quire
