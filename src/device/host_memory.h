// How much memory the machine has and could give.
#pragma once

#include <cstdint>

namespace quire {

int64_t physical_host_bytes();
// What the kernel could give without swapping, the page cache counted in (MemAvailable); falls only as pages are touched.
int64_t available_host_bytes();

}  // namespace quire
