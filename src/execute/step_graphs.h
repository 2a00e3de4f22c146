// Steps captured as graphs, and the sizes to which steps are padded so that few graphs serve all of them.
//
// A shape is run once as it is: libraries choose their kernels then, and a shape that comes once is worth no capture. The second and
// third time it is captured, once for each turn. Graphs are bounded in number and in the device memory that they were seen to
// take. Beyond that a shape takes the place of one that has not been run for long; while there is none, it is run uncaptured.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>

#include "src/device/stream_device.h"
#include "src/execute/device_step.h"

namespace quire {

// Rows of a decode step: sizes a quarter to a half apart up to 32, at most a fifth of what is padded above; multiples of 256 above that.
int64_t decode_bucket(int64_t rows);
// Tokens of a step in which prompts run. Up to 256 multiples of 32: there products are bound by their weights, and rows cost next to
// nothing. Above, four sizes a doubling: less than a fifth of a padded step's rows are padding.
int64_t token_bucket(int64_t tokens);
// Sequences, wanted logits and samples of such a step: 8, 32, 128, 512 ... What pads them is short: an empty list, a row of logits.
int64_t sequence_bucket(int64_t sequences);

struct GraphLimits {
  int32_t num_shapes = 128;
  int64_t bytes = int64_t{256} << 20;  // of device memory, reckoned with at the start
};

class StepGraphs {
 public:
  StepGraphs(StreamDevice& device, const GraphLimits& limits) : device_(device), limits_(limits) {}

  // Runs `work`, which queues a step of this shape whose arrays lie where this turn's lie: itself, or captured from an earlier call.
  void run(const StepShape& shape, int turn, const std::function<void()>& work);

  int64_t num_captured() const { return num_captured_; }  // since the start
  int64_t num_runs() const { return num_runs_; }          // of graphs
  int64_t bytes() const { return bytes_; }

 private:
  struct Graph {
    bool warmed = false;
    uint64_t last_run = 0;
    int64_t bytes = 0;
    // One a turn: a graph cannot be set up again while it runs, so two steps in a row take two.
    std::unique_ptr<CapturedGraph> captured[2];
  };
  using Graphs = std::map<StepShape, Graph>;
  Graph* graph_of(const StepShape& shape);
  bool make_room();
  void capture(Graph& graph, int turn, const std::function<void()>& work);

  StreamDevice& device_;
  GraphLimits limits_;
  Graphs graphs_;
  uint64_t now_ = 0;  // calls of run()
  int64_t bytes_ = 0, num_captured_ = 0, num_runs_ = 0;
};

}  // namespace quire
