// Checks of single accesses, called only while checking is on. Offsets are bytes in the block's shared
// memory.
#pragma once

#include <cstdint>

namespace quire::shim {

void check_shared_read(uint32_t offset, uint32_t bytes);
void check_shared_read_by(uint32_t offset, uint32_t bytes,
                          uint32_t thread);  // a warp operation reads for a lane
void check_shared_write(uint32_t offset, uint32_t bytes);
void check_shared_atomic(uint32_t offset, uint32_t bytes);
void check_global_read(const void* p, int64_t bytes);
void check_global_write(const void* p, int64_t bytes);

}  // namespace quire::shim
