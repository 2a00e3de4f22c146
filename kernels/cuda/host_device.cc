#include "kernels/cuda/host_device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#include "kernels/cuda/host_shim/memory_check.h"
#include "kernels/cuda/host_shim/runner.h"
#include "src/base/check.h"
#include "src/base/clock.h"
#include "src/device/host_memory.h"

namespace quire {
namespace {

class HostGraph final : public CapturedGraph {
 public:
  std::vector<std::function<void()>> calls;
};

// Work is done when its call returns, so an event is reached once recorded.
class HostEvent final : public StreamEvent {
 public:
  void record() override { at_us_ = SteadyClock().now_us(); }
  bool reached() override { return true; }
  void wait() override {}
  double ms_since(const StreamEvent& earlier) const override {
    return static_cast<double>(at_us_ - static_cast<const HostEvent&>(earlier).at_us_) / 1000.0;
  }

 private:
  int64_t at_us_ = 0;
};

class HostDevice final : public StreamDevice {
 public:
  explicit HostDevice(const HostDeviceOptions& options) {
    facts_ = {.kind = DeviceKind::kCudaHost,
              .name = "CUDA kernels on the host shim",
              .memory_bytes = physical_host_bytes(),
              .free_bytes = available_host_bytes(),
              .multiprocessors = options.multiprocessors,
              .compute_capability = 80,
              .kernel_capability = 80,
              .shared_bytes_per_block = options.shared_bytes_per_block};
  }

  const DeviceFacts& facts() const override { return facts_; }
  void* stream() const override { return const_cast<shim::HostStream*>(&stream_); }

  Result<DeviceBuffer> allocate(int64_t bytes, const char* what) override {
    check(bytes >= 0, "allocate: negative size");
    if (bytes == 0) return DeviceBuffer();
    const int64_t free = std::min(free_bytes(), available_host_bytes());
    void* p =
        bytes > free ? nullptr : std::aligned_alloc(256, static_cast<size_t>((bytes + 255) / 256 * 256));
    if (p == nullptr)
      return error(Code::kResourceExhausted, std::string(what) + " needs " + std::to_string(bytes) +
                                                 " bytes of host memory; " + std::to_string(free) +
                                                 " bytes are free");
    shim::register_memory(p, bytes);
    return DeviceBuffer(this, p, bytes);
  }
  Result<DeviceBuffer> allocate_pinned(int64_t bytes, const char* what) override {
    return allocate(bytes, what);
  }
  void free(void* data) override {
    shim::unregister_memory(data);
    std::free(data);
  }

  void copy_to_device(void* target, const void* host, int64_t bytes) override { copy(target, host, bytes); }
  void copy_to_host(void* host, const void* source, int64_t bytes) override { copy(host, source, bytes); }
  void copy_on_device(void* target, const void* source, int64_t bytes) override {
    copy(target, source, bytes);
  }
  void set_zero(void* target, int64_t bytes) override {
    shim::run_or_record(&stream_, [=] { std::memset(target, 0, static_cast<size_t>(bytes)); });
  }
  void synchronize() override { check(stream_.recording == nullptr, "synchronize while capturing"); }

  void begin_capture() override {
    check(stream_.recording == nullptr, "begin_capture while capturing");
    capturing_ = std::make_unique<HostGraph>();
    stream_.recording = &capturing_->calls;
  }
  std::unique_ptr<CapturedGraph> end_capture() override {
    check(stream_.recording != nullptr, "end_capture without begin_capture");
    stream_.recording = nullptr;
    return std::move(capturing_);
  }
  void run(const CapturedGraph& graph) override {
    for (const auto& call : static_cast<const HostGraph&>(graph).calls) call();
  }
  std::unique_ptr<StreamEvent> make_event() override { return std::make_unique<HostEvent>(); }
  std::unique_ptr<StreamEvent> make_mark() override { return make_event(); }
  std::unique_ptr<CopyStream> make_copy_stream() override { return make_host_copy_stream(); }
  int64_t free_bytes() const override { return facts_.free_bytes - allocated_bytes(); }

 private:
  void copy(void* target, const void* source, int64_t bytes) {
    if (bytes > 0)
      shim::run_or_record(&stream_, [=] { std::memcpy(target, source, static_cast<size_t>(bytes)); });
  }

  DeviceFacts facts_;
  shim::HostStream stream_;
  std::unique_ptr<HostGraph> capturing_;
};

}  // namespace

std::unique_ptr<StreamDevice> open_cuda_host_device(const HostDeviceOptions& options) {
  return std::make_unique<HostDevice>(options);
}

}  // namespace quire
