// The CPU as a device: host memory, copies that are done when they return.
#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "src/base/check.h"
#include "src/device/copy_stream.h"
#include "src/device/cpu_features.h"
#include "src/device/device.h"
#include "src/device/host_memory.h"

namespace quire {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kHugePage = 2 << 20;

int64_t round_up(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(int threads) {
    facts_.kind = DeviceKind::kCpu;
    facts_.name = fmt::format("{} ({} thread{}, {})", cpu_name(), threads, threads == 1 ? "" : "s",
                              name_of(usable_isa()));
    facts_.memory_bytes = physical_host_bytes();
    facts_.free_bytes = available_host_bytes();
    facts_.multiprocessors = threads;
  }

  const DeviceFacts& facts() const override { return facts_; }

  // Linux hands out memory that is not there and ends the process when it is touched, so what is asked for is compared first: with what
  // is free now, and with what was free less all that was given out since, which may be untouched yet.
  Result<DeviceBuffer> allocate(int64_t bytes, const char* what) override {
    if (bytes < 0) check_failed(fmt::format("{}: {} bytes asked for", what, bytes), __FILE__, __LINE__);
    if (bytes == 0) return DeviceBuffer();
    const int64_t free = std::min(free_bytes(), available_host_bytes());
    const bool huge = bytes >= kHugePage;
    void* data = bytes > free ? nullptr
                              : std::aligned_alloc(
                                    static_cast<size_t>(huge ? kHugePage : kAlignment),
                                    static_cast<size_t>(round_up(bytes, huge ? kHugePage : kAlignment)));
    if (data == nullptr) {
      return error(Code::kResourceExhausted,
                   fmt::format("{} needs {} bytes of host memory; {} bytes are free{}", what, bytes, free,
                               address_space_note()));
    }
    // 2 MiB pages: a stream over a large weight otherwise pays a page walk every 4 KiB. Only a hint.
    if (huge) madvise(data, static_cast<size_t>(bytes), MADV_HUGEPAGE);
    return DeviceBuffer(this, data, bytes);
  }
  Result<DeviceBuffer> allocate_pinned(int64_t bytes, const char* what) override {
    return allocate(bytes, what);
  }
  void free(void* data) override { std::free(data); }
  int64_t free_bytes() const override { return facts_.free_bytes - allocated_bytes(); }

  void copy_to_device(void* target, const void* host, int64_t bytes) override { copy(target, host, bytes); }
  void copy_to_host(void* host, const void* source, int64_t bytes) override { copy(host, source, bytes); }
  void synchronize() override {}

 private:
  static void copy(void* target, const void* source, int64_t bytes) {
    if (bytes < 0) check_failed(fmt::format("copy of {} bytes", bytes), __FILE__, __LINE__);
    if (bytes > 0) std::memcpy(target, source, static_cast<size_t>(bytes));
  }

  DeviceFacts facts_;
};

class HostCopyStream final : public CopyStream {
 public:
  void copy_to_device(void* target, const void* host, int64_t bytes) override {
    std::memcpy(target, host, static_cast<size_t>(bytes));
  }
  void copy_to_host(void* host, const void* source, int64_t bytes) override {
    std::memcpy(host, source, static_cast<size_t>(bytes));
  }
  void wait() override {}
};

}  // namespace

std::unique_ptr<CopyStream> make_host_copy_stream() {
  return std::make_unique<HostCopyStream>();
}

Result<std::unique_ptr<Device>> open_cpu_device(int threads) {
  if (Status cap = check_isa_cap(); !cap) return cap.error();
  if (threads < 0) return invalid(fmt::format("threads is {}; it must be 0 (all cores) or more", threads));
  return std::unique_ptr<Device>(std::make_unique<CpuDevice>(threads == 0 ? usable_cores() : threads));
}

}  // namespace quire
