// What the benchmarks run beside the ops of kernels/kernels.h: ceilings, the bare read of KV tiles, and
// attention with its choices open. Written in the language of kernels/cuda/portable.h and compiled for the
// card and for the host shim, so that a machine without a card runs every line of the benchmarks too.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/kernels.h"
#include "src/device/stream_device.h"

namespace quire::bench {

// 0 and absent: the kernels' own default.
struct AttentionChoice {
  int warps = 0, stages = 0, min_tiles = 0, blocks_per_multiprocessor = 0;
  int unit_cost = -1;  // below 0: the default
  bool aligned = true, split_first = true;
  int compute_capability = 0;  // 80 keeps a Hopper card to the portable kernels
};

// All run on the device's stream and may be captured.
class BenchOps {
 public:
  virtual ~BenchOps() = default;
  // count bf16 values, uniform in [-2, 2)
  virtual void fill_random(void* p, int64_t count, uint32_t seed) = 0;
  virtual void read_all(const void* p, int64_t bytes) = 0;  // bytes: a multiple of 16
  virtual void copy_all(void* target, const void* source, int64_t bytes) = 0;
  // Every K and V tile of p's lists (one list a sequence), once: 16-byte loads, `ahead` (2, 4 or 8) tiles of
  // each in flight, `splits` blocks of threads a (sequence, KV head).
  virtual void read_tiles(const AttentionParams& p, int splits, int ahead) = 0;
  virtual void attention(const AttentionParams& p, const AttentionChoice& choice) = 0;
  // Its plan, for choices alike, in so many bytes.
  virtual int64_t attention_plan_bytes() const = 0;
  virtual void plan_attention(const AttentionParams& p, const AttentionChoice& choice) = 0;
  virtual int32_t prefix_splits(const PrefixCounts& shared, int32_t num_q_heads, int32_t num_kv_heads,
                                int32_t head_dim) const = 0;
};

}  // namespace quire::bench

namespace quire::cuda {
std::unique_ptr<bench::BenchOps> make_bench_ops(StreamDevice& device);
}
namespace quire::cuda_host {
std::unique_ptr<bench::BenchOps> make_bench_ops(StreamDevice& device);
}
