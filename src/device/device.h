// The device interface: the only place that allocates device memory or creates handles.
// An executor thread owns a Device; nothing here is shared between threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "quire/result.h"

namespace quire {

enum class DeviceKind { kCpu, kCuda, kCudaHost };  // kCudaHost: the CUDA kernels run on the host shim

class Device;

// A move-only owner of device memory; the destructor frees and never throws.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(Device* device, void* data, int64_t bytes);
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
  ~DeviceBuffer();

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  Device* device_ = nullptr;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

struct DeviceFacts {
  DeviceKind kind = DeviceKind::kCpu;
  std::string name;             // "NVIDIA H100 80GB HBM3", "AMD EPYC ... (2 threads, avx512bf16)"
  std::string driver, toolkit;  // CUDA only
  int64_t memory_bytes = 0, free_bytes = 0;
  int32_t multiprocessors = 0;
  int32_t compute_capability = 0;  // 90 = sm_90
  int32_t kernel_capability =
      0;  // CUDA: whose kernels run (cuda_support.h); below the card's where the build lacks code
  int32_t shared_bytes_per_block = 0;  // CUDA: the most a kernel may ask for
};

class Device {
 public:
  virtual ~Device() = default;
  virtual const DeviceFacts& facts() const = 0;
  // 256-byte aligned; contents undefined. kResourceExhausted with both sizes when there is no room.
  virtual Result<DeviceBuffer> allocate(int64_t bytes, const char* what) = 0;
  // host memory the device reads
  virtual Result<DeviceBuffer> allocate_pinned(int64_t bytes, const char* what) = 0;
  virtual void free(void* data) = 0;
  // The bytes of all its buffers, pinned ones included.
  int64_t allocated_bytes() const { return allocated_bytes_; }
  // Free memory now, in bytes, all that was allocated taken off whether or not it was touched.
  virtual int64_t free_bytes() const = 0;
  // Ordered on the device's main stream. Pinned memory (allocate_pinned) is read or written when the stream comes to the copy: leave it
  // alone until synchronize() or an event behind it. Other host memory is done with when the call returns, for which a card may wait.
  virtual void copy_to_device(void* target, const void* host, int64_t bytes) = 0;
  virtual void copy_to_host(void* host, const void* source, int64_t bytes) = 0;
  virtual void synchronize() = 0;

 private:
  friend class DeviceBuffer;
  std::atomic<int64_t> allocated_bytes_{0};
};

// `threads` that kernels may use, 0 for all cores of this process. INVALID_ARGUMENT below 0.
Result<std::unique_ptr<Device>> open_cpu_device(int threads);

}  // namespace quire
