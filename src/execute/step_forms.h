// Which sizes a step on a stream device is queued with: its own, or those that one captured graph serves. Pure functions of sizes.
#pragma once

#include "src/execute/device_sampling.h"
#include "src/execute/device_step.h"
#include "src/execute/host_step.h"

namespace quire {

// Entries of a block table on the device, the same in every step.
int64_t table_stride(const StepLimits& limits);
// What arrays are allocated for.
StepShape largest_step(const StepLimits& limits);
DeviceSamplingSizes sampling_sizes(const StepLimits& limits);

// A step of the sizes that one graph serves, or one whose kernels are launched as they come.
enum class StepForm : uint8_t { kLaunched, kDecode, kWithPrompts };

struct GraphRules {
  int64_t max_rows = 0;     // of a step with prompts that is captured
  int64_t logits_rows = 0;  // that the logits' buffer holds
  int32_t max_samples = 0;  // of any step
};

// Pads `shape` to what a graph may be captured for, if there is such a size. one_row_each: every sequence runs one row.
StepForm pad_for_graph(const GraphRules& rules, bool one_row_each, StepShape& shape);

}  // namespace quire
