// Copies blocks between a device's arena and host memory in a thread of its own, in the order submitted. What
// lies side by side on both sides is one copy.
#pragma once

#include <memory>

#include "src/device/copy_stream.h"
#include "src/execute/block_mover.h"

namespace quire {

// Both outlive the mover: they are the executor's.
struct MoverMemory {
  char* arena = nullptr;
  char* host = nullptr;
  int64_t block_bytes = 0;
};

std::unique_ptr<BlockMover> make_threaded_mover(std::unique_ptr<CopyStream> stream,
                                                const MoverMemory& memory);

}  // namespace quire
