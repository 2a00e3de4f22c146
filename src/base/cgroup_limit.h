// What the cgroups that this process is in allow it, of v1 and v2. Any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace quire {

struct CgroupLimit {
  std::string_view controller;  // "memory"
  const char* file;             // of v2: "memory.max"
  const char* file_v1;          // "memory.limit_in_bytes"
};

// The least of `otherwise` and the limits of the process's cgroups and all those above them. root: of the files that say so.
int64_t least_cgroup_limit(const CgroupLimit& limit, int64_t otherwise, const std::string& root = "");

// Bytes, not below 0: the least of `otherwise` and what the memory limit of each of those cgroups leaves beside what it holds. Page cache
// does not count as held, since the kernel takes it back.
int64_t least_cgroup_memory_left(int64_t otherwise, const std::string& root = "");

// Cores: the least of `otherwise` and the CPU time that each of those cgroups gets in a period.
double least_cgroup_cores(double otherwise, const std::string& root = "");

}  // namespace quire
