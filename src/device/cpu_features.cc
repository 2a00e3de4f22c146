#include "src/device/cpu_features.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <thread>

#include "src/base/cgroup_limit.h"

namespace quire {
namespace {

constexpr std::array kLevels = {CpuIsa::kPlain, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16};

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

std::optional<CpuIsa> isa_of(std::string_view name) {
  const auto level = std::ranges::find_if(kLevels, [&](CpuIsa isa) { return name_of(isa) == name; });
  return level == kLevels.end() ? std::nullopt : std::optional(*level);
}

}  // namespace

std::string_view name_of(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kPlain:
      return "plain";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512:
      return "avx512";
    case CpuIsa::kAvx512Bf16:
      return "avx512bf16";
  }
  return "?";
}

CpuIsa machine_isa() {
  __builtin_cpu_init();
  if (!has_avx2()) return CpuIsa::kPlain;
  if (!has_avx512()) return CpuIsa::kAvx2;
  return __builtin_cpu_supports("avx512bf16") ? CpuIsa::kAvx512Bf16 : CpuIsa::kAvx512;
}

CpuIsa usable_isa() {
  const char* cap = std::getenv("QUIRE_CPU_ISA");
  return cap == nullptr ? machine_isa() : std::min(machine_isa(), isa_of(cap).value_or(machine_isa()));
}

Status check_isa_cap() {
  const char* cap = std::getenv("QUIRE_CPU_ISA");
  if (cap == nullptr || isa_of(cap)) return ok();
  return invalid(
      fmt::format("QUIRE_CPU_ISA is '{}'; it must be one of plain, avx2, avx512 and avx512bf16", cap));
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (line.starts_with("model name") && colon != std::string::npos && colon + 2 < line.size()) {
      return line.substr(colon + 2);
    }
  }
  return "CPU";
}

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  const bool known = sched_getaffinity(0, sizeof set, &set) == 0;
  const int cores = known ? CPU_COUNT(&set) : static_cast<int>(std::thread::hardware_concurrency());
  return std::max(1, static_cast<int>(std::ceil(least_cgroup_cores(cores))));
}

}  // namespace quire
