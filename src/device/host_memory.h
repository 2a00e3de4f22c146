// How much memory the machine has and could give.
#pragma once

#include <cstdint>
#include <string>

namespace quire {

int64_t physical_host_bytes();
// What the kernel could give without swapping, the page cache counted in (MemAvailable), and no more than the limits of the process's
// cgroups leave, so that a container's is kept; falls only as pages are touched.
int64_t available_host_bytes();

// For a message: ", and RLIMIT_AS (ulimit -v) leaves 5000 bytes of 1024000"; empty where the address space has no limit.
std::string address_space_note();

}  // namespace quire
