#include "kernels/cuda/host_device.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#include "kernels/cuda/host_shim/memory_check.h"
#include "kernels/cuda/host_shim/runner.h"
#include "src/base/check.h"
#include "src/base/clock.h"
#include "src/device/host_memory.h"
#include "src/device/pinned_ranges.h"

namespace quire {
namespace {

class HostGraph final : public CapturedGraph {
 public:
  std::vector<std::function<void()>> calls;
};

// Calls in the order they were queued. Late: each is run when something behind it is waited for.
class HostQueue {
 public:
  explicit HostQueue(bool late) { stream_.recording = late ? &calls_ : nullptr; }

  shim::HostStream& stream() { return stream_; }
  bool late() const { return stream_.recording == &calls_; }
  int64_t queued() const { return num_gone_ + static_cast<int64_t>(calls_.size()); }
  int64_t run() const { return num_gone_ + static_cast<int64_t>(next_); }

  void add(const std::vector<std::function<void()>>& calls) {
    for (const auto& call : calls) shim::run_or_record(&stream_, call);
  }
  void run_through(int64_t count) {
    while (run() < count) run_next();
    if (next_ < calls_.size()) return;
    num_gone_ += static_cast<int64_t>(calls_.size());
    calls_.clear();
    next_ = 0;
  }
  void run_all() { run_through(queued()); }

  // What is queued between the two goes to `calls`.
  void begin_capture(std::vector<std::function<void()>>& calls) {
    before_capture_ = std::exchange(stream_.recording, &calls);
  }
  void end_capture() { stream_.recording = before_capture_; }

 private:
  // A fault of late work ends the process and names the plan, as a card's does; nobody who waits could answer it.
  void run_next() {
    try {
      calls_[next_++]();
    } catch (const shim::ShimFault& fault) {
      check(false, fault.what());
    }
  }

  shim::HostStream stream_;
  std::vector<std::function<void()>> calls_;
  size_t next_ = 0;       // of calls_
  int64_t num_gone_ = 0;  // run before those
  std::vector<std::function<void()>>* before_capture_ = nullptr;
};

class HostEvent final : public StreamEvent {
 public:
  explicit HostEvent(HostQueue& queue) : queue_(queue) {}
  void record() override {
    behind_ = queue_.queued();
    times_asked_ = 0;
    shim::run_or_record(&queue_.stream(), [this] { at_us_ = SteadyClock().now_us(); });
  }
  // Late work gets on while it is asked after, or who waits by asking would wait for ever.
  bool reached() override {
    if (++times_asked_ > kAskedInVain) wait();
    return queue_.run() > behind_ || !queue_.late();
  }
  void wait() override { queue_.run_through(behind_ + (queue_.late() ? 1 : 0)); }
  double ms_since(const StreamEvent& earlier) const override {
    return static_cast<double>(at_us_ - static_cast<const HostEvent&>(earlier).at_us_) / 1000.0;
  }

 private:
  // The executor asks every 20 us, and an engine plans the next step in less than all of these.
  static constexpr int kAskedInVain = 10;
  HostQueue& queue_;
  int64_t behind_ = 0;  // so many calls
  int times_asked_ = 0;
  int64_t at_us_ = 0;
};

class HostDevice final : public StreamDevice {
 public:
  explicit HostDevice(const HostDeviceOptions& options) : queue_(options.late) {
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
  void* stream() const override { return &queue_.stream(); }

  Result<DeviceBuffer> allocate(int64_t bytes, const char* what) override {
    check(bytes >= 0, "allocate: negative size");
    if (bytes == 0) return DeviceBuffer();
    ++calls_.allocations;
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
    Result<DeviceBuffer> buffer = allocate(bytes, what);
    if (buffer && bytes > 0) pinned_.add(buffer->data(), bytes);
    return buffer;
  }
  void free(void* data) override {
    ++calls_.allocations;
    queue_.run_all();
    pinned_.remove(data);
    shim::unregister_memory(data);
    std::free(data);
  }

  // As a card's driver does: memory that is not pinned is read before the call returns, and written.
  void copy_to_device(void* target, const void* host, int64_t bytes) override {
    const bool pinned = pinned_.contain(host);
    if (!pinned && bytes > 0) ++calls_.pageable_copies;
    if (!queue_.late() || pinned) return copy(target, host, bytes);
    const auto* from = static_cast<const char*>(host);
    shim::run_or_record(&queue_.stream(), [target, held = std::vector<char>(from, from + bytes)] {
      std::memcpy(target, held.data(), held.size());
    });
  }
  void copy_to_host(void* host, const void* source, int64_t bytes) override {
    copy(host, source, bytes);
    if (bytes == 0 || pinned_.contain(host)) return;
    ++calls_.pageable_copies;
    queue_.run_all();
  }
  void copy_on_device(void* target, const void* source, int64_t bytes) override {
    copy(target, source, bytes);
  }
  void set_zero(void* target, int64_t bytes) override {
    shim::run_or_record(&queue_.stream(), [=] { std::memset(target, 0, static_cast<size_t>(bytes)); });
  }
  void synchronize() override {
    check(capturing_ == nullptr, "synchronize while capturing");
    ++calls_.waits;
    queue_.run_all();
  }

  void begin_capture() override {
    check(capturing_ == nullptr, "begin_capture while capturing");
    ++calls_.captures;
    capturing_ = std::make_unique<HostGraph>();
    queue_.begin_capture(capturing_->calls);
  }
  std::unique_ptr<CapturedGraph> end_capture() override {
    check(capturing_ != nullptr, "end_capture without begin_capture");
    queue_.end_capture();
    return std::move(capturing_);
  }
  void run(const CapturedGraph& graph) override { queue_.add(static_cast<const HostGraph&>(graph).calls); }
  std::unique_ptr<StreamEvent> make_event() override { return std::make_unique<HostEvent>(queue_); }
  std::unique_ptr<StreamEvent> make_mark() override { return make_event(); }
  std::unique_ptr<CopyStream> make_copy_stream() override { return make_host_copy_stream(); }
  int64_t free_bytes() const override { return facts_.free_bytes - allocated_bytes(); }

 private:
  void copy(void* target, const void* source, int64_t bytes) {
    if (bytes > 0)
      shim::run_or_record(&queue_.stream(), [=] { std::memcpy(target, source, static_cast<size_t>(bytes)); });
  }

  DeviceFacts facts_;
  mutable HostQueue queue_;
  PinnedRanges pinned_;
  std::unique_ptr<HostGraph> capturing_;
};

}  // namespace

std::unique_ptr<StreamDevice> open_cuda_host_device(const HostDeviceOptions& options) {
  return std::make_unique<HostDevice>(options);
}

}  // namespace quire
