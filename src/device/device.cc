#include "src/device/device.h"

#include <utility>

namespace quire {

DeviceBuffer::DeviceBuffer(Device* device, void* data, int64_t bytes)
    : device_(device), data_(data), bytes_(bytes) {
  device_->allocated_bytes_ += bytes;
}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ == nullptr) return;
  device_->free(data_);
  device_->allocated_bytes_ -= bytes_;
}

}  // namespace quire
