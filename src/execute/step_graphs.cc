#include "src/execute/step_graphs.h"

#include <algorithm>
#include <bit>

namespace quire {
namespace {

constexpr int64_t kDecodeBuckets[] = {1,  2,  4,  8,  12,  16,  24,  32,  40,  48,
                                      56, 64, 80, 96, 112, 128, 160, 192, 224, 256};
constexpr uint64_t kLongUnused = 1000;  // steps; a capture costs about as much as ten

int64_t round_up(int64_t n, int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

}  // namespace

int64_t decode_bucket(int64_t rows) {
  for (const int64_t bucket : kDecodeBuckets)
    if (rows <= bucket) return bucket;
  return round_up(rows, 256);
}

int64_t token_bucket(int64_t tokens) {
  if (tokens <= 256) return round_up(std::max<int64_t>(tokens, 1), 32);
  const auto doubling = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(tokens - 1)));
  return round_up(tokens, doubling / 4);
}

int64_t sequence_bucket(int64_t sequences) {
  int64_t bucket = 8;
  while (bucket < sequences) bucket *= 4;
  return bucket;
}

void StepGraphs::run(const StepShape& shape, int turn, const std::function<void()>& work) {
  ++now_;
  Graph* graph = graph_of(shape);
  if (graph == nullptr) return work();
  graph->last_run = now_;
  if (graph->captured[turn] == nullptr && graph->warmed && bytes_ < limits_.bytes)
    capture(*graph, turn, work);
  graph->warmed = true;
  if (graph->captured[turn] == nullptr) return work();
  ++num_runs_;
  device_.run(*graph->captured[turn]);
}

// Null where there are as many as may be, all of them in use.
StepGraphs::Graph* StepGraphs::graph_of(const StepShape& shape) {
  const auto found = graphs_.find(shape);
  if (found != graphs_.end()) return &found->second;
  const bool full = static_cast<int32_t>(graphs_.size()) >= limits_.num_shapes || bytes_ >= limits_.bytes;
  if (full && !make_room()) return nullptr;
  return &graphs_[shape];
}

// A graph that has not run for so long does not run now.
bool StepGraphs::make_room() {
  const auto oldest = std::min_element(graphs_.begin(), graphs_.end(), [](const auto& a, const auto& b) {
    return a.second.last_run < b.second.last_run;
  });
  if (oldest == graphs_.end() || now_ - oldest->second.last_run < kLongUnused) return false;
  bytes_ -= oldest->second.bytes;
  graphs_.erase(oldest);
  return true;
}

void StepGraphs::capture(Graph& graph, int turn, const std::function<void()>& work) {
  const int64_t free_before = device_.free_bytes();
  device_.begin_capture();
  try {
    work();
  } catch (...) {  // no host memory: who catches it waits for the device, which it must not while capturing
    device_.end_capture();
    throw;
  }
  graph.captured[turn] = device_.end_capture();
  const int64_t taken = std::max<int64_t>(free_before - device_.free_bytes(), 0);
  graph.bytes += taken;
  bytes_ += taken;
  ++num_captured_;
}

}  // namespace quire
