// The host shim as a device: host memory in which the CUDA kernels run on fibers. A captured graph is the
// list of recorded calls, run directly. For machines without a card, and for tests: --device cuda-host.
#pragma once

#include <memory>

#include "src/device/stream_device.h"

namespace quire {

struct HostDeviceOptions {
  int32_t shared_bytes_per_block = 227 * 1024;  // a card of sm_90; 99 KiB on sm_86 and sm_89
  int32_t multiprocessors = 4;  // few, so that small shapes still split work over several blocks
  // Queued work runs when it is waited for, so as late as a card may run it; else at once. What is queued wrongly ahead shows: memory that
  // the host has filled anew too soon, a result that is read before it is there.
  bool late = false;
};
std::unique_ptr<StreamDevice> open_cuda_host_device(const HostDeviceOptions& options = {});

}  // namespace quire
