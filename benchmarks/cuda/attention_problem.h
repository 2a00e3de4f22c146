// One attention problem of the benchmark: sequences with random blocks of a pool that is laid out as the
// engine's arena, device arrays behind an AttentionParams, and the host's copy of them to check results with.
#pragma once

#include "benchmarks/cuda/rig.h"

namespace quire::bench {

struct AttentionModel {
  int q_heads = 32, kv_heads = 8, head_dim = 128, layers = 32, block_tokens = 16;
  KvLayout layout() const {
    return {.dtype = DType::kBF16,
            .num_layers = layers,
            .num_kv_heads = kv_heads,
            .head_dim = head_dim,
            .block_tokens = block_tokens};
  }
};

// Random K and V in memory, shared by all problems.
struct Pool {
  char* data = nullptr;
  int64_t bytes = 0;
};

struct ProblemShape {
  std::vector<int> lengths;  // slots of each list
  std::vector<int> rows;     // query rows of each sequence, at the end of its list
  int shared_slots = 0;      // the first so many slots of all lists are the same blocks
};

class AttentionProblem {
 public:
  AttentionProblem(Rig& rig, const Pool& pool, const AttentionModel& model, const ProblemShape& shape);

  AttentionParams params(
      int layer) const;  // layers lie apart in the pool, so none finds its tiles in the cache
  // The plan of p's lists and, as a step has between it and the first layer, another kernel.
  void make_plan(const AttentionParams& p, const AttentionChoice& choice) const;
  void share(AttentionParams& p, const BenchOps& ops) const;  // one node over all sequences
  bool fits() const { return fits_; }  // false: the pool is too small, use nothing else
  double kv_bytes() const;             // a layer's K and V of all lists
  double operations() const;           // a layer's products, causal
  double bare_read_us() const;         // a layer's tiles by 16-byte loads: the best of several ways
  // Largest relative error of a few rows of `layer` against float64; of what has run since the results were poisoned.
  double worst_error(int layer) const;
  void poison_results() const;

 private:
  bool take_blocks();
  void upload_arrays();
  double row_error(int layer, int sequence, int row, int q_head) const;
  void read_tile(const char* source, std::vector<uint16_t>& tile) const;

  Rig& rig_;
  Pool pool_;
  AttentionModel model_;
  ProblemShape shape_;
  std::vector<int> query_start_;
  std::vector<int32_t> table_;
  int table_stride_ = 0, max_length_ = 0, max_rows_ = 0;
  bool fits_ = false;
  DeviceBuffer q_, out_, lengths_, starts_, blocks_, plan_;
  DeviceBuffer node_slots_, node_start_, members_, member_start_, of_sequence_, private_start_;
};

}  // namespace quire::bench
