// A random attention problem over paged lists, run by the float64 reference here and by the CUDA kernels in
// the tests: on the host shim (cuda_attention_test.cc) and on a card (cuda_attention_card_test.cu). Every
// slot that no list holds is NaN and every allocation has its exact size, so touching too much is seen either
// as a shim fault or as a NaN. Inputs are rounded to the kernel's dtype first: the reference sees the same
// numbers.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/kernels.h"

namespace quire::attention_test {

// Members that share a prefix: slots [begin, end) of their lists are the same blocks.
struct SharedPrefixShape {
  int begin = 0, end = 0;
  std::vector<int> sequences;
};

struct Shape {
  std::string name;
  DType dtype = DType::kBF16;
  int head_dim = 64, kv_heads = 2, group = 4, block_tokens = 16;
  std::vector<int> lengths;  // live slots of each sequence, this step's rows included; 0: a padding sequence
  std::vector<int> rows;     // empty: one row each
  int window = 0;
  float soft_cap = 0;
  bool sinks = false, lists_per_head = false, early_fetch = true;
  int sink_slots = 0;        // > 0: a second rotation of q for so many slots
  std::vector<int> windows;  // of each sequence's own, 0 = none; empty: not given
  int multiprocessors = 5, warps = 8, stages = 3, min_tiles = 2;
  bool aligned = true;  // decode's ranges, where lists are equally long
  std::vector<SharedPrefixShape> prefixes;
};

struct Outputs {
  std::vector<float> values, lse, row_logits, column_sums, partials;
};

// Memory that kernels may touch, of an exact size, registered with the shim while it lives.
class Region {
 public:
  explicit Region(int64_t bytes, int fill = 0xff);
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
  char* data() { return data_.get(); }
  int64_t bytes() const { return bytes_; }
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data_.get());
  }

 private:
  struct Free {
    void operator()(char* p) const;
  };
  std::unique_ptr<char, Free> data_;
  int64_t bytes_;
};

class Case {
 public:
  Case(const Shape& shape, uint64_t seed);

  Outputs reference();
  // The kernels' problem: pointers into this case's regions, outputs not attached.
  AttentionParams problem();
  const Shape& shape() const { return shape_; }
  std::vector<Region*> regions();
  PrefixCounts prefix_counts() const { return prefix_counts_; }
  // Largest |difference| allowed: of values, of logits, of sums of probabilities.
  struct Tolerance {
    float values, logits, sums;
  };
  Tolerance tolerance() const;

 private:
  int rows_of(int sequence) const { return shape_.rows.empty() ? 1 : shape_.rows[sequence]; }
  void make_lists(uint64_t seed);
  void make_prefixes();
  AttentionParams params();

  Shape shape_;
  KvLayout layout_;
  int64_t rows_ = 0;
  int32_t max_length_ = 0, max_rows_ = 0, max_blocks_ = 0;
  std::vector<int32_t> query_start_;
  std::unique_ptr<Region> arena_, q_, q_sink_, q_f32_, q_sink_f32_, sinks_, starts_, lengths_, table_,
      sink_slots_, windows_;
  std::unique_ptr<Region> node_sequence_start_, node_sequences_, node_slots_, private_start_, member_start_,
      members_;
  SharedPrefixes prefixes_;
  PrefixCounts prefix_counts_;
};

// Where a run puts its results. A cascade gives no row logits and no column sums.
struct OutputRegions {
  Region values, lse, row_logits, column_sums, partials;

  OutputRegions(const AttentionParams& p, DType dtype);
  void attach(AttentionParams& p);
  Outputs take(DType dtype, bool with_side_outputs);
};

// Compares all outputs; an empty string, or what differs first.
std::string difference(Case& c, const Outputs& got, const Outputs& wanted);

}  // namespace quire::attention_test
