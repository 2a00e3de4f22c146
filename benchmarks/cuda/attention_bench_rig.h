// What the attention benchmark stands on: a pool of random KV blocks as the engine lays them out, timed
// graphs, the bare read of the same blocks as the roof, and sampled rows checked in float64.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/cuda/attention/attention.h"

namespace quire::attention_bench {

using cuda::check_cuda;

// Device memory that lives as long as its owner.
class Memory {
 public:
  explicit Memory(int64_t bytes) {
    check_cuda(cudaMalloc(&data_, static_cast<size_t>(bytes > 0 ? bytes : 1)));
  }
  ~Memory() { cudaFree(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

struct Model {
  int q_heads = 32, kv_heads = 8, head_dim = 128, layers = 32, block_tokens = 16;
  KvLayout layout() const {
    return {.dtype = DType::kBF16,
            .num_layers = layers,
            .num_kv_heads = kv_heads,
            .head_dim = head_dim,
            .block_tokens = block_tokens};
  }
};

struct Timing {
  double us = 0, least_us = 0, most_us = 0;  // a layer: median, least, most
};

// The card, its pool, and the scratch of attention.
class Rig {
 public:
  Rig(int64_t pool_bytes, int rounds);
  ~Rig();
  Rig(const Rig&) = delete;
  Rig& operator=(const Rig&) = delete;

  const cudaDeviceProp& properties() const { return properties_; }
  cuda::AttentionContext& context() { return context_; }
  char* pool() const { return pool_.as<char>(); }
  int64_t pool_bytes() const { return pool_bytes_; }
  // work(layer) for `layers` layers, captured in one graph and replayed.
  Timing time(int layers, const std::function<void(int)>& work);
  double read_ceiling();  // bytes/s of a sum over 8 GiB or the pool

 private:
  int64_t pool_bytes_;
  int rounds_;
  cudaDeviceProp properties_{};
  cudaStream_t stream_ = nullptr;
  Memory pool_, scratch_;
  cuda::AttentionContext context_;
};

// Sequences with random blocks of the pool: device arrays behind an AttentionParams, and the host's copy of
// them.
class Problem {
 public:
  // rows[s] query rows at the end of lengths[s] slots. The first shared_slots of all lists are the same
  // blocks.
  Problem(Rig& rig, const Model& model, const std::vector<int>& lengths, const std::vector<int>& rows,
          int shared_slots = 0);

  AttentionParams params(
      int layer) const;  // of one layer; layers lie apart in the pool, so none is in the cache
  void share(AttentionParams& p) const;  // one node over all sequences
  bool fits() const { return fits_; }
  double kv_bytes() const;    // a layer's K and V of all lists
  double operations() const;  // a layer's products, causal
  Timing bare_read(
      Rig& rig) const;  // every K and V tile of a layer, once, by 16-byte loads: the best of several ways
  // Largest relative error of a few rows of `layer` against float64.
  double worst_error(int layer) const;

 private:
  double row_error(int layer, int sequence, int row, int q_head) const;

  Model model_;
  std::vector<int> lengths_, rows_, query_start_;
  std::vector<int32_t> table_;
  char* pool_;
  int shared_slots_, table_stride_ = 0, max_length_ = 0, max_rows_ = 0;
  bool fits_ = false;
  std::unique_ptr<Memory> q_, out_, lengths_on_card_, starts_, table_on_card_;
  std::unique_ptr<Memory> node_slots_, node_start_, members_, member_start_, of_sequence_, private_start_;
};

}  // namespace quire::attention_bench
