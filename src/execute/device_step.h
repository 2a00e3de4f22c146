// One step's arrays on their way to a device: packed into one pinned buffer, brought by one copy, read by kernels at the same offsets.
// Two pinned buffers take turns, so that a step is packed while the one before it still runs. Executor thread.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/sampling.h"
#include "quire/result.h"
#include "src/device/stream_device.h"
#include "src/execute/device_retention.h"
#include "src/execute/host_step.h"
#include "src/model/step_arrays.h"

namespace quire {

// Sizes that fix where each array lies. Steps of equal shape have equal pointers, so a graph captured for one serves all.
struct StepShape {
  int64_t rows = 0;
  int32_t sequences = 0;
  int64_t table_stride = 0;
  int64_t logits_rows = 0;
  int32_t samples = 0;
  int32_t copies = 0;
  bool windows = false, sinks = false;  // some sequence has one: kernels get other arguments
  // Room for shared prefixes, and the parts that each is cut in (SharedPrefixes); all 0 where nothing is shared.
  int32_t prefix_nodes = 0, prefix_members = 0, prefix_splits = 0;
  // Room for sequences whose policy goes by scores, and blocks of lists that are cut.
  int32_t retained = 0, cut_blocks = 0;
  auto operator<=>(const StepShape&) const = default;
};

// What the arrays of HostStep lack: where sampled ids come from, and how to sample.
struct DeviceStepExtras {
  std::span<const int32_t> id_source;        // [rows]: a sample of the step before, or -1
  std::span<const SampleSettings> settings;  // [samples]
  std::span<const int32_t> copy_pairs;       // [copies][2]
  RetentionArrays retention;
  SharedPrefixes prefixes;  // host arrays and what there is; read where the shape has room for some
};

// Device pointers of a placed step.
struct PlacedStep {
  StepArrays arrays;
  int32_t* ids = nullptr;
  const int32_t* id_source = nullptr;
  const SampleSettings* settings = nullptr;
  const int32_t* copy_pairs = nullptr;
  PlacedRetention retention;
  // The copy that brings all this: from host memory that kernels may read to device memory.
  const void* packed = nullptr;
  void* there = nullptr;
  int64_t bytes = 0;
};

class DeviceStep {
 public:
  static Result<DeviceStep> create(StreamDevice& device, const StepShape& largest);
  static int64_t bytes_of(const StepShape& shape);

  // Packs the step into the pinned buffer `turn` (0 or 1); the caller copies it. `shape` may be larger than the step: rows beyond it
  // write no slot and read block 0, samples beyond it are greedy and nobody's.
  PlacedStep pack(const HostStep& step, const DeviceStepExtras& extras, const StepShape& shape, int turn);

 private:
  DeviceBuffer staging_;
  DeviceBuffer pinned_[2];
};

}  // namespace quire
