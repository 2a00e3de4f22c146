// A stream device that runs nothing and counts what it is asked for. Its memory has addresses and no bytes; each captured graph takes
// `graph_bytes` of what is free.
#pragma once

#include <cstdint>
#include <memory>

#include "src/base/clock.h"
#include "src/device/stream_device.h"

namespace quire {

class CountingDevice final : public StreamDevice {
 public:
  class Captured final : public CapturedGraph {
   public:
    explicit Captured(CountingDevice& d) : device(d) { device.taken += device.graph_bytes; }
    ~Captured() override { device.taken -= device.graph_bytes; }
    CountingDevice& device;
  };
  class Mark final : public StreamEvent {
   public:
    explicit Mark(const Clock& clock) : clock_(clock) {}
    void record() override { at_us_ = clock_.now_us(); }
    bool reached() override { return true; }
    void wait() override {}
    double ms_since(const StreamEvent& earlier) const override {
      return static_cast<double>(at_us_ - static_cast<const Mark&>(earlier).at_us_) / 1000;
    }

   private:
    const Clock& clock_;
    int64_t at_us_ = 0;
  };
  int64_t graph_bytes = 0, taken = 0, allocated = 0;
  bool refuses = false;    // to allocate
  bool capturing = false;  // now
  int captures = 0, runs = 0, allocations = 0, waits = 0;

  void begin_capture() override { capturing = true; }
  std::unique_ptr<CapturedGraph> end_capture() override {
    ++captures;
    capturing = false;
    return std::make_unique<Captured>(*this);
  }
  void run(const CapturedGraph&) override { ++runs; }
  int64_t free_bytes() const override { return 1000 - taken; }
  Result<DeviceBuffer> allocate(int64_t bytes, const char*) override {
    if (bytes == 0) return DeviceBuffer();
    if (refuses) return error(Code::kResourceExhausted, "no memory, injected");
    ++allocations;
    allocated += bytes;
    return DeviceBuffer(this, reinterpret_cast<void*>(uintptr_t{4096}), bytes);
  }
  Result<DeviceBuffer> allocate_pinned(int64_t bytes, const char* what) override {
    return allocate(bytes, what);
  }
  void free(void*) override {}
  void synchronize() override { ++waits; }

  const DeviceFacts& facts() const override { return facts_; }
  void copy_to_device(void*, const void*, int64_t) override {}
  void copy_to_host(void*, const void*, int64_t) override {}
  void* stream() const override { return nullptr; }
  // Marks on `event_clock`, where there is one.
  std::unique_ptr<StreamEvent> make_event() override {
    return event_clock == nullptr ? nullptr : std::make_unique<Mark>(*event_clock);
  }
  std::unique_ptr<StreamEvent> make_mark() override { return make_event(); }
  const Clock* event_clock = nullptr;
  std::unique_ptr<CopyStream> make_copy_stream() override { return nullptr; }
  void set_zero(void*, int64_t) override {}
  void copy_on_device(void*, const void*, int64_t) override {}

 private:
  DeviceFacts facts_;
};

}  // namespace quire
