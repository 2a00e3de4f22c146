// What the CPU of this machine can do, found once at run time. Any thread.
#pragma once

#include <string>
#include <string_view>

#include "quire/result.h"

namespace quire {

// Each level includes those before it. kAvx2 means AVX2 + FMA + F16C; kAvx512 means F + BW + VL + DQ.
enum class CpuIsa { kPlain, kAvx2, kAvx512, kAvx512Bf16 };

std::string_view name_of(
    CpuIsa isa);  // "plain", "avx2", "avx512", "avx512bf16": also the words of QUIRE_CPU_ISA

// The highest level that the CPU and the operating system offer.
CpuIsa machine_isa();
// machine_isa(), or less where the environment variable QUIRE_CPU_ISA caps it.
CpuIsa usable_isa();
// INVALID_ARGUMENT where QUIRE_CPU_ISA holds a word that is no level's; until it is asked, such a word caps nothing.
Status check_isa_cap();

std::string cpu_name();  // "AMD EPYC 9B14", from /proc/cpuinfo
int usable_cores();  // cores this process may run on: its affinity mask, and its cgroups' quota rounded up

}  // namespace quire
