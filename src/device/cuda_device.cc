// One CUDA card as a device. cudart is linked statically and libcuda is not linked at all: the program starts
// on a machine without a driver, and open_cuda_device() says what is missing.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include "src/base/check.h"
#include "src/device/card_code.h"
#include "src/device/cuda_handles.h"
#include "src/device/cuda_support.h"
#include "src/device/pinned_ranges.h"
#include "src/device/stream_device.h"

namespace quire {
namespace {

constexpr const char* kArchitectures = QUIRE_BUILT_ARCHITECTURES;

class CudaEventMark final : public StreamEvent {
 public:
  CudaEventMark(cudaStream_t stream, unsigned flags) : stream_(stream) {
    cudaEvent_t e = nullptr;
    check_cuda_call(cudaEventCreateWithFlags(&e, flags));
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
    ++calls_.allocations;
    void* p = nullptr;
    const cudaError_t e = cudaMalloc(&p, static_cast<size_t>(bytes));
    if (e != cudaSuccess) return no_room("device memory", bytes, free_bytes(), what, e);
    return DeviceBuffer(this, p, bytes);
  }

  // Mapped: kernels may read it over the bus, at the same address.
  Result<DeviceBuffer> allocate_pinned(int64_t bytes, const char* what) override {
    check(bytes >= 0, "allocate_pinned: negative size");
    if (bytes == 0) return DeviceBuffer();
    ++calls_.allocations;
    void* p = nullptr;
    const cudaError_t e =
        cudaHostAlloc(&p, static_cast<size_t>(bytes), cudaHostAllocMapped | cudaHostAllocPortable);
    if (e != cudaSuccess) return no_room("pinned host memory", bytes, -1, what, e);
    pinned_.add(p, bytes);
    return DeviceBuffer(this, p, bytes);
  }

  void free(void* data) override {
    ++calls_.allocations;
    const cudaError_t e = pinned_.remove(data) ? cudaFreeHost(data) : cudaFree(data);
    if (e != cudaSuccess) log_line(LogLevel::kWarn, "cuda_free_failed", {{"error", text_of(e)}});
  }

  void copy_to_device(void* target, const void* host, int64_t bytes) override {
    count_pageable(host, bytes);
    copy(target, host, bytes, cudaMemcpyHostToDevice);
  }
  void copy_to_host(void* host, const void* source, int64_t bytes) override {
    count_pageable(host, bytes);
    copy(host, source, bytes, cudaMemcpyDeviceToHost);
  }
  void copy_on_device(void* target, const void* source, int64_t bytes) override {
    copy(target, source, bytes, cudaMemcpyDeviceToDevice);
  }
  void set_zero(void* target, int64_t bytes) override {
    if (bytes > 0) check_cuda_call(cudaMemsetAsync(target, 0, static_cast<size_t>(bytes), stream_.get()));
  }
  void synchronize() override {
    ++calls_.waits;
    check_cuda_call(cudaStreamSynchronize(stream_.get()));
  }

  void begin_capture() override {
    ++calls_.captures;
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
    return std::make_unique<CudaEventMark>(stream_.get(), cudaEventDefault);
  }
  std::unique_ptr<StreamEvent> make_mark() override {
    return std::make_unique<CudaEventMark>(stream_.get(), cudaEventDisableTiming);
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
  void count_pageable(const void* host, int64_t bytes) {
    if (bytes > 0 && !pinned_.contain(host)) ++calls_.pageable_copies;
  }
  void copy(void* target, const void* source, int64_t bytes, cudaMemcpyKind kind) {
    if (bytes > 0)
      check_cuda_call(cudaMemcpyAsync(target, source, static_cast<size_t>(bytes), kind, stream_.get()));
  }

  DeviceFacts facts_;
  CudaStream stream_;
  PinnedRanges pinned_;
};

Error unavailable(std::string why) {
  return error(Code::kUnavailable, "CUDA cannot be used: " + std::move(why));
}

CudaPlatform platform_here() {
  CudaPlatform p;
  cudaRuntimeGetVersion(&p.toolkit_version);
  cudaDriverGetVersion(&p.driver_version);  // leaves 0 where there is no driver
  if (p.driver_version == 0) return p;
  if (const cudaError_t e = cudaGetDeviceCount(&p.num_cards); e != cudaSuccess) p.fault = text_of(e);
  return p;
}

DeviceFacts facts_of(const cudaDeviceProp& card, const CudaPlatform& platform) {
  return {.kind = DeviceKind::kCuda,
          .name = card.name,
          .driver = cuda_version_text(platform.driver_version),
          .toolkit = cuda_version_text(platform.toolkit_version),
          .memory_bytes = static_cast<int64_t>(card.totalGlobalMem),
          .multiprocessors = card.multiProcessorCount,
          .compute_capability = card.major * 10 + card.minor,
          .shared_bytes_per_block = static_cast<int32_t>(card.sharedMemPerBlockOptin)};
}

// A fault of the probe that is not about code: another's memory, a card that is gone.
bool tells_of_code(cudaError_t e) {
  return e == cudaErrorNoKernelImageForDevice || e == cudaErrorInvalidDeviceFunction ||
         e == cudaErrorUnsupportedPtxVersion || e == cudaErrorInvalidPtx ||
         e == cudaErrorInvalidKernelImage || e == cudaErrorJitCompilerNotFound;
}

// Fills in which kernels the card runs, or says that it runs none.
Status find_code(DeviceFacts& facts) {
  const CardCode code = probe_card_code();
  if (code.fault != cudaSuccess && !tells_of_code(code.fault)) return unavailable(text_of(code.fault));
  const CudaCard card{.name = facts.name,
                      .capability = facts.compute_capability,
                      .no_code = code.fault == cudaSuccess ? "" : text_of(code.fault)};
  if (auto why = why_card_unfit(card, kArchitectures)) return unavailable(*std::move(why));
  facts.kernel_capability = kernel_capability(facts.compute_capability, code.sm90a);
  if (facts.kernel_capability != facts.compute_capability)
    log_line(LogLevel::kWarn, "no_sm90a_code",
             {{"device", facts.name},
              {"built_for", kArchitectures},
              {"instead", "kernels of sm_80 (slower prefill); build with 90a-real"}});
  return ok();
}

}  // namespace

Result<std::unique_ptr<StreamDevice>> open_cuda_device() {
  const CudaPlatform platform = platform_here();
  if (auto why = why_no_card(platform)) return unavailable(*std::move(why));
  cudaDeviceProp card{};
  if (const cudaError_t e = cudaGetDeviceProperties(&card, 0); e != cudaSuccess)
    return unavailable(text_of(e));
  if (const cudaError_t e = cudaSetDevice(0); e != cudaSuccess) return unavailable(text_of(e));
  DeviceFacts facts = facts_of(card, platform);
  if (Status found = find_code(facts); !found) return found.error();
  cudaStream_t raw = nullptr;
  if (const cudaError_t e = cudaStreamCreateWithFlags(&raw, cudaStreamNonBlocking); e != cudaSuccess)
    return unavailable(text_of(e));
  CudaStream stream(raw);
  size_t free = 0, total = 0;
  if (const cudaError_t e = cudaMemGetInfo(&free, &total); e != cudaSuccess) return unavailable(text_of(e));
  facts.free_bytes = static_cast<int64_t>(free);
  return std::unique_ptr<StreamDevice>(std::make_unique<CudaDevice>(std::move(facts), std::move(stream)));
}

}  // namespace quire
