// Whether a step's kernels read the tables and lengths that its plan names: both come back from the device behind the step and are
// compared. For tests (check_invariants); without it nothing is allocated. Executor thread.
#pragma once

#include <cstdint>

#include "quire/result.h"
#include "src/device/stream_device.h"
#include "src/model/step_arrays.h"
#include "src/schedule/batch_plan.h"

namespace quire {

class TableCheck {
 public:
  TableCheck(StreamDevice& device, int32_t block_tokens) : device_(device), block_tokens_(block_tokens) {}

  Status allocate(int64_t max_sequences, int64_t table_stride);
  bool enabled() const { return back_[0].data() != nullptr; }
  // Queues the copies of the step's first num_sequences lists.
  void fetch(const StepArrays& placed, int32_t num_sequences, int turn);
  // Once the step has run. kInternal: which entry of which sequence differs.
  Status compare(const BatchPlan& plan, int turn) const;

 private:
  Status compare_list(const PlannedSequence& s, int32_t length, const int32_t* row) const;

  StreamDevice& device_;
  int32_t block_tokens_;
  int64_t stride_ = 0;
  DeviceBuffer back_[2];  // pinned: lengths, then tables
};

}  // namespace quire
