// A device whose work is queued on one stream: CUDA, or the host shim that runs the CUDA kernels
// (kernels/cuda/host_device.h). One executor thread owns it. Between begin_capture() and end_capture()
// everything that goes to the stream, copies included, is recorded instead of run; nothing may allocate or
// synchronise then. What a recorded copy names on the host, pinned or not, must stay as long as the graph.
#pragma once

#include <cstdint>
#include <memory>

#include "src/device/copy_stream.h"
#include "src/device/device.h"

namespace quire {

// Work that was captured, ready to be run again. Kernel arguments are frozen: what changes from run to run is
// read from device memory.
class CapturedGraph {
 public:
  virtual ~CapturedGraph() = default;
};

// A mark on the stream. Reusable: record() moves it.
class StreamEvent {
 public:
  virtual ~StreamEvent() = default;
  virtual void record() = 0;
  virtual bool reached() = 0;                                     // has the stream passed it?
  virtual void wait() = 0;                                        // blocks the host until it has
  virtual double ms_since(const StreamEvent& earlier) const = 0;  // both reached
};

// What holds up the host, or takes memory, since the device was opened: none of it belongs into a step whose tokens are
// chosen on the device and whose shape has come before. Events that are waited for do not count: the host has nothing else to do there.
struct DeviceCalls {
  int64_t allocations = 0;      // and buffers given back
  int64_t waits = 0;            // synchronize()
  int64_t pageable_copies = 0;  // to or from memory that is not allocate_pinned()'s
  int64_t captures = 0;         // of graphs: each takes device memory, and time of the host
};

class StreamDevice : public Device {
 public:
  const DeviceCalls& calls() const { return calls_; }
  virtual void* stream() const = 0;  // cudaStream_t, or shim::HostStream*
  virtual void begin_capture() = 0;
  virtual std::unique_ptr<CapturedGraph> end_capture() = 0;
  virtual void run(const CapturedGraph& graph) = 0;  // on the stream
  virtual std::unique_ptr<StreamEvent> make_event() = 0;
  virtual std::unique_ptr<CopyStream> make_copy_stream() = 0;  // of its own, beside stream()
  virtual void set_zero(void* target, int64_t bytes) = 0;
  virtual void copy_on_device(void* target, const void* source, int64_t bytes) = 0;
  // An event that no time is asked of. A card stands 1.2 us longer at one with a time.
  virtual std::unique_ptr<StreamEvent> make_mark() = 0;

 protected:
  DeviceCalls calls_;
};

// kUnavailable with one clear line when the build has no CUDA, or the machine no driver, no card, or too old a one.
Result<std::unique_ptr<StreamDevice>> open_cuda_device();

}  // namespace quire
