// One CUDA card as a device. cudart is linked statically and libcuda is not linked at all: the program starts
// on a machine without a driver, and open_cuda_device() says what is missing.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <optional>
#include <unordered_set>

#include "src/base/check.h"
#include "src/device/cuda_handles.h"
#include "src/device/stream_device.h"

namespace quire {
namespace {

constexpr int kLeastCapability = 80;  // cp.async, bf16 tensor cores

std::string version_text(int v) {
  return fmt::format("{}.{}", v / 1000, v % 1000 / 10);
}

class CudaEventMark final : public StreamEvent {
 public:
  explicit CudaEventMark(cudaStream_t stream) : stream_(stream) {
    cudaEvent_t e = nullptr;
    check_cuda_call(cudaEventCreate(&e));
    event_ = CudaEvent(e);
  }
  void record() override { check_cuda_call(cudaEventRecord(event_.get(), stream_)); }
  bool reached() override {
    const cudaError_t e = cudaEventQuery(event_.get());
    if (e == cudaErrorNotReady) return false;
    check_cuda_call(e);
    return true;
  }
  void wait() override { check_cuda_call(cudaEventSynchronize(event_.get())); }
  double ms_since(const StreamEvent& earlier) const override {
    float ms = 0;
    check_cuda_call(
        cudaEventElapsedTime(&ms, static_cast<const CudaEventMark&>(earlier).event_.get(), event_.get()));
    return ms;
  }

 private:
  cudaStream_t stream_;
  CudaEvent event_;
};

class CudaCapturedGraph final : public CapturedGraph {
 public:
  explicit CudaCapturedGraph(CudaGraphExec exec) : exec_(std::move(exec)) {}
  cudaGraphExec_t exec() const { return exec_.get(); }

 private:
  CudaGraphExec exec_;
};

// Its stream is CUDA's own object: another thread may queue on it while the executor's queues on the main
// one.
class CudaCopyStream final : public CopyStream {
 public:
  CudaCopyStream() {
    cudaStream_t raw = nullptr;
    check_cuda_call(cudaStreamCreateWithFlags(&raw, cudaStreamNonBlocking));
    stream_ = CudaStream(raw);
  }
  void copy_to_device(void* target, const void* host, int64_t bytes) override {
    check_cuda_call(
        cudaMemcpyAsync(target, host, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream_.get()));
  }
  void copy_to_host(void* host, const void* source, int64_t bytes) override {
    check_cuda_call(
        cudaMemcpyAsync(host, source, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream_.get()));
  }
  void wait() override { check_cuda_call(cudaStreamSynchronize(stream_.get())); }

 private:
  CudaStream stream_;
};

class CudaDevice final : public StreamDevice {
 public:
  CudaDevice(DeviceFacts facts, CudaStream stream) : facts_(std::move(facts)), stream_(std::move(stream)) {}

  const DeviceFacts& facts() const override { return facts_; }
  void* stream() const override { return stream_.get(); }

  Result<DeviceBuffer> allocate(int64_t bytes, const char* what) override {
    check(bytes >= 0, "allocate: negative size");
    if (bytes == 0) return DeviceBuffer();
    void* p = nullptr;
    const cudaError_t e = cudaMalloc(&p, static_cast<size_t>(bytes));
    if (e != cudaSuccess) return no_room("device memory", bytes, free_bytes(), what, e);
    return DeviceBuffer(this, p, bytes);
  }

  // Mapped: kernels may read it over the bus, at the same address.
  Result<DeviceBuffer> allocate_pinned(int64_t bytes, const char* what) override {
    check(bytes >= 0, "allocate_pinned: negative size");
    if (bytes == 0) return DeviceBuffer();
    void* p = nullptr;
    const cudaError_t e =
        cudaHostAlloc(&p, static_cast<size_t>(bytes), cudaHostAllocMapped | cudaHostAllocPortable);
    if (e != cudaSuccess) return no_room("pinned host memory", bytes, -1, what, e);
    pinned_.insert(p);
    return DeviceBuffer(this, p, bytes);
  }

  void free(void* data) override {
    const cudaError_t e = pinned_.erase(data) != 0 ? cudaFreeHost(data) : cudaFree(data);
    if (e != cudaSuccess) log_line(LogLevel::kWarn, "cuda_free_failed", {{"error", text_of(e)}});
  }

  void copy_to_device(void* target, const void* host, int64_t bytes) override {
    copy(target, host, bytes, cudaMemcpyHostToDevice);
  }
  void copy_to_host(void* host, const void* source, int64_t bytes) override {
    copy(host, source, bytes, cudaMemcpyDeviceToHost);
  }
  void copy_on_device(void* target, const void* source, int64_t bytes) override {
    copy(target, source, bytes, cudaMemcpyDeviceToDevice);
  }
  void set_zero(void* target, int64_t bytes) override {
    if (bytes > 0) check_cuda_call(cudaMemsetAsync(target, 0, static_cast<size_t>(bytes), stream_.get()));
  }
  void synchronize() override { check_cuda_call(cudaStreamSynchronize(stream_.get())); }

  void begin_capture() override {
    check_cuda_call(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal));
  }
  std::unique_ptr<CapturedGraph> end_capture() override {
    cudaGraph_t raw = nullptr;
    check_cuda_call(cudaStreamEndCapture(stream_.get(), &raw));
    const CudaGraph graph(raw);
    cudaGraphExec_t exec = nullptr;
    check_cuda_call(cudaGraphInstantiate(&exec, graph.get(), 0));
    return std::make_unique<CudaCapturedGraph>(CudaGraphExec(exec));
  }
  void run(const CapturedGraph& graph) override {
    check_cuda_call(cudaGraphLaunch(static_cast<const CudaCapturedGraph&>(graph).exec(), stream_.get()));
  }
  std::unique_ptr<StreamEvent> make_event() override {
    return std::make_unique<CudaEventMark>(stream_.get());
  }
  std::unique_ptr<CopyStream> make_copy_stream() override { return std::make_unique<CudaCopyStream>(); }

  int64_t free_bytes() const override {
    size_t free = 0, total = 0;
    check_cuda_call(cudaMemGetInfo(&free, &total));
    return static_cast<int64_t>(free);
  }

 private:
  static Error no_room(const char* kind, int64_t bytes, int64_t free, const char* what, cudaError_t e) {
    const std::string left = free < 0 ? std::string() : fmt::format(", {} bytes are free", free);
    return error(Code::kResourceExhausted,
                 fmt::format("{}: no room for {} bytes of {}{} [{}]", what, bytes, kind, left, text_of(e)));
  }
  void copy(void* target, const void* source, int64_t bytes, cudaMemcpyKind kind) {
    if (bytes > 0)
      check_cuda_call(cudaMemcpyAsync(target, source, static_cast<size_t>(bytes), kind, stream_.get()));
  }

  DeviceFacts facts_;
  CudaStream stream_;
  std::unordered_set<void*> pinned_;
};

Error unavailable(std::string why) {
  return error(Code::kUnavailable, "CUDA cannot be used: " + std::move(why));
}

// nullopt when a card can be asked for; else why not.
std::optional<Error> why_no_card() {
  int toolkit = 0, driver = 0, count = 0;
  cudaRuntimeGetVersion(&toolkit);
  cudaDriverGetVersion(&driver);  // 0: no driver at all
  if (driver == 0) return unavailable("no NVIDIA driver is installed");
  if (driver / 1000 < toolkit / 1000)
    return unavailable(fmt::format("the driver serves CUDA {}, this build needs {} or newer",
                                   version_text(driver), version_text(toolkit / 1000 * 1000)));
  const cudaError_t e = cudaGetDeviceCount(&count);
  if (e != cudaSuccess) return unavailable(text_of(e));
  if (count == 0) return unavailable("the driver reports no card");
  return std::nullopt;
}

Result<DeviceFacts> facts_of(int index) {
  cudaDeviceProp p{};
  const cudaError_t e = cudaGetDeviceProperties(&p, index);
  if (e != cudaSuccess) return unavailable(text_of(e));
  int toolkit = 0, driver = 0;
  check_cuda_call(cudaRuntimeGetVersion(&toolkit));
  check_cuda_call(cudaDriverGetVersion(&driver));
  DeviceFacts f{.kind = DeviceKind::kCuda,
                .name = p.name,
                .driver = version_text(driver),
                .toolkit = version_text(toolkit),
                .memory_bytes = static_cast<int64_t>(p.totalGlobalMem),
                .multiprocessors = p.multiProcessorCount,
                .compute_capability = p.major * 10 + p.minor,
                .shared_bytes_per_block = static_cast<int32_t>(p.sharedMemPerBlockOptin)};
  if (f.compute_capability < kLeastCapability)
    return unavailable(
        fmt::format("{} has compute capability {}.{}, at least 8.0 is needed", f.name, p.major, p.minor));
  return f;
}

}  // namespace

Result<std::unique_ptr<StreamDevice>> open_cuda_device() {
  if (auto why = why_no_card()) return *std::move(why);
  Result<DeviceFacts> facts = facts_of(0);
  if (!facts) return facts.error();
  cudaStream_t raw = nullptr;
  if (const cudaError_t e = cudaSetDevice(0); e != cudaSuccess) return unavailable(text_of(e));
  if (const cudaError_t e = cudaStreamCreateWithFlags(&raw, cudaStreamNonBlocking); e != cudaSuccess)
    return unavailable(text_of(e));
  CudaStream stream(raw);
  size_t free = 0, total = 0;
  if (const cudaError_t e = cudaMemGetInfo(&free, &total); e != cudaSuccess) return unavailable(text_of(e));
  facts->free_bytes = static_cast<int64_t>(free);
  return std::unique_ptr<StreamDevice>(std::make_unique<CudaDevice>(*std::move(facts), std::move(stream)));
}

}  // namespace quire
