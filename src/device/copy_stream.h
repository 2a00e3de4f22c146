// Copies between a device and host memory beside the device's main stream. One thread uses it at a time, and
// it may be another than the executor's: nothing of a Device is touched.
#pragma once

#include <cstdint>
#include <memory>

namespace quire {

class CopyStream {
 public:
  virtual ~CopyStream() = default;
  // Host memory must be pinned, or the call may wait for the copy.
  virtual void copy_to_device(void* target, const void* host, int64_t bytes) = 0;
  virtual void copy_to_host(void* host, const void* source, int64_t bytes) = 0;
  virtual void wait() = 0;  // until what was asked for is there
};

// Where device memory is the host's.
std::unique_ptr<CopyStream> make_host_copy_stream();

}  // namespace quire
