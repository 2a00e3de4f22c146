// One step's arrays on their way to a device: packed into one pinned buffer, brought by one copy, read by kernels at the same offsets.
// Two pinned buffers take turns, so that a step is packed while the one before it still runs.
//
// Block tables stay on the device: a step's are made there from those of the step before and the entries that are new (TableDeltas),
// so two sets of tables take turns as well, and a step that runs never sees its own change. Executor thread.
#pragma once

#include <cstdint>
#include <span>

#include "quire/result.h"
#include "src/device/stream_device.h"
#include "src/execute/device_retention.h"
#include "src/execute/device_sampling.h"
#include "src/execute/host_step.h"
#include "src/execute/table_deltas.h"
#include "src/model/step_arrays.h"

namespace quire {

// Sizes that fix where each array lies. Steps of equal shape have equal pointers, so a graph captured for one serves all.
struct StepShape {
  int64_t rows = 0;
  int32_t sequences = 0;
  int64_t logits_rows = 0;
  int32_t samples = 0, edits = 0, reports = 0;
  // Behind all that a graph reads at fixed places: new entries of block tables, and pairs of blocks to be copied.
  int64_t table_entries = 0, copies = 0;
  bool with_prompts = false;            // else every sequence has one row, padding too
  bool windows = false, sinks = false;  // some sequence has one: kernels get other arguments
  bool histories = false;               // some row's id is kept for its sequence's sampling
  // Room for shared prefixes, and the parts that each is cut in (SharedPrefixes); all 0 where nothing is shared.
  int32_t prefix_nodes = 0, prefix_members = 0, prefix_splits = 0;
  // Room for sequences whose policy goes by scores, and blocks of lists that are cut.
  int32_t retained = 0, cut_blocks = 0;
  auto operator<=>(const StepShape&) const = default;
};

// What the arrays of HostStep lack: where sampled ids come from, and how to sample.
struct DeviceStepExtras {
  std::span<const int32_t> id_source;   // [rows]: a sample of the step before, or -1
  std::span<const int32_t> copy_pairs;  // [copies][2]
  SamplingArrays sampling;
  RetentionArrays retention;
  SharedPrefixes prefixes;  // host arrays and what there is; read where the shape has room for some
};

// Device pointers of a placed step.
struct PlacedStep {
  StepArrays arrays;
  const int32_t* copy_pairs = nullptr;
  PlacedSampling sampling;
  PlacedRetention retention;
  // What brings all this: the arrays and the tables, from host memory that kernels may read; and the pairs of blocks.
  BringStepParams bring;
  CopyBytesParams bring_pairs;
  int64_t bytes = 0;  // of both
};

class DeviceStep {
 public:
  // table_stride: entries of a list at most.
  static Result<DeviceStep> create(StreamDevice& device, const StepShape& largest, int64_t table_stride);
  // Device memory that create() allocates.
  static int64_t device_bytes(const StepShape& largest, int64_t table_stride);
  // Bytes of the arrays that a graph brings: without new entries and copies.
  static int64_t array_bytes(const StepShape& shape);

  // Packs the step into the pinned buffer `turn`; the caller copies it. Turns 0 and 1 alternate, or `tables` keeps nothing. `shape` may
  // be larger than the step: rows beyond it write no slot and belong to empty lists, samples beyond it are greedy and nobody's.
  PlacedStep pack(const HostStep& step, const TableDeltas& tables, const DeviceStepExtras& extras,
                  const StepShape& shape, int turn);

  const int32_t* tables(int turn) const { return tables_[turn].as<const int32_t>(); }
  int64_t table_stride() const { return table_stride_; }

 private:
  void pack_arrays(const HostStep& step, const TableDeltas& tables, const DeviceStepExtras& extras,
                   const StepShape& shape, char* host) const;

  int64_t table_stride_ = 0;
  DeviceBuffer staging_;  // arrays, then pairs of blocks
  DeviceBuffer tables_[2];
  DeviceBuffer pinned_[2];
};

}  // namespace quire
