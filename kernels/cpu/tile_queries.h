// The queries of a piece of attention: some rows of one sequence under some of its kv heads, what each of them sees, and what becomes of
// its results. K and V are tile_attention.h's.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "kernels/cpu/tile_kv.h"
#include "kernels/cpu/tile_strip.h"

namespace quire::cpu {
namespace {

// One thread's scratch, cut up. Sizes: attention_scratch_floats().
template <class V>
struct AttentionScratch {
  static constexpr int64_t kLanes = 32;
  AttentionScratch(float* next, int64_t queries, int64_t head_dim) {
    const auto take = [&](int64_t floats) { return std::exchange(next, next + floats); };
    const int64_t padded = turned_dim(head_dim);
    q = take(queries * padded), q_sink = take(queries * padded);
    values = take(queries * padded), total_values = take(queries * padded);
    highest = take(queries), weight = take(queries), total_highest = take(queries),
    total_weight = take(queries);
    divisor = take(queries), total_divisor = take(queries);
    lanes = take(queries * kLanes);
    scores = take(queries * kTileSlots), sink_scores = take(queries * kTileSlots);
    tile = take(kTileSlots * padded);
    zero_row = take(padded);
  }

  float *q, *q_sink;             // [queries][padded], or in the same place in bf16, [queries][query_bytes()]
  float *values, *total_values;  // [queries][padded]: of the split; of all before it
  float *highest, *weight, *total_highest, *total_weight;  // [queries]
  float *divisor,
      *total_divisor;  // [queries]: the weight as V met it, rounded: what the values are divided by
  // [queries][kLanes]: the split's weight in 16 parts, then its divisor in 8
  float* lanes;
  float *scores, *sink_scores;  // [queries][64]
  float *tile, *zero_row;       // see KvTile
};

template <class V>
class AttentionQueries {
  using F = typename V::F;

 public:
  AttentionQueries(const AttentionPiece& piece, int64_t first_row, int64_t last_row)
      : piece_(piece),
        p_(*piece.p),
        first_row_(first_row),
        last_row_(last_row),
        group_(p_.num_q_heads / p_.num_kv_heads),
        dim_(p_.head_dim),
        padded_(padded_dim(dim_)),
        head_queries_((last_row - first_row) * group_),
        queries_(head_queries_ * piece.num_kv_heads),
        length_(p_.lengths[piece.sequence * p_.length_stride + piece.kv_head * p_.head_length_stride]),
        sequence_row_(p_.query_start[piece.sequence]),
        num_rows_(p_.query_start[piece.sequence + 1] - sequence_row_),
        sink_slots_(p_.q_sink == nullptr ? 0 : p_.sink_slots[piece.sequence]),
        window_(window_of(p_, piece.sequence)),
        scratch_(piece.scratch, std::max(block_queries(group_), queries_), dim_) {}

  void load_queries() {
    for (head_ = 0; head_ < piece_.num_kv_heads; ++head_) {
      load_queries(p_.q, scratch_.q);
      if (sink_slots_ > 0) load_queries(p_.q_sink, scratch_.q_sink);
    }
    head_ = 0;
  }

  void merge_partials() {
    clear_totals();
    for (int64_t split = piece_.first_split; split < piece_.last_split; ++split) {
      for (int64_t i = 0; i < queries_; ++i) {
        const float* partial = partial_of(split, i);
        merge(i, {partial[padded_], partial[padded_ + 1], partial[padded_ + 2]}, partial);
      }
    }
    finish();
  }

 protected:
  static constexpr float kNothing = -std::numeric_limits<float>::infinity();

  // ---- where a query lies, and what it sees ----------------------------------------------------------------

  int64_t index_of(int64_t row) const { return length_ - num_rows_ + row; }
  // A row sees [0, sink_slots_) and [first_slot, end_slot), as far as it has come.
  int64_t first_slot(int64_t row) const {
    return window_ == 0 ? 0 : std::max<int64_t>(0, index_of(row) - window_ + 1);
  }
  int64_t end_slot(int64_t row) const { return std::max<int64_t>(0, index_of(row) + 1); }
  int64_t query(int64_t row, int64_t g) const {
    return head_ * head_queries_ + (row - first_row_) * group_ + g;
  }
  int64_t q_head(int64_t g) const { return (piece_.kv_head + head_) * group_ + g; }
  int64_t out_head(int64_t row, int64_t g) const {
    return (sequence_row_ + row) * p_.num_q_heads + q_head(g);
  }

  // Logits from bf16 pairs, one dot instruction for two dimensions; otherwise from f32.
  bool uses_dots() const {
    return V::kHasDot && piece_.activations == DType::kBF16 && p_.layout.dtype == DType::kBF16;
  }

  // Values from pairs of slots; their columns lie in tile_strip.h's order, 32 by 32.
  bool has_paired_values() const { return uses_dots() && dim_ % 32 == 0; }

  // Rows in order see ever later slots: those that see some of the tile are neighbours.
  std::pair<int64_t, int64_t> rows_that_see(int64_t tile) const {
    int64_t first = first_row_, last = last_row_;
    while (first < last && end_slot(first) <= tile) ++first;
    while (first < last && tile >= sink_slots_ && first_slot(last - 1) >= tile + kTileSlots) --last;
    return {first, last};
  }

  // ---- splits and the end ---------------------------------------------------------------------------------

  void clear_totals() {
    std::fill_n(scratch_.total_highest, queries_, kNothing);
    std::fill_n(scratch_.total_weight, queries_, 0.0f);
    std::fill_n(scratch_.total_divisor, queries_, 0.0f);
    std::fill_n(scratch_.total_values, queries_ * padded_, 0.0f);
  }

  static float exp_of(float x) {
    float lanes[16];
    V::store(lanes, exp<V>(V::set(x)));
    return lanes[0];
  }

  float* partial_of(int64_t split, int64_t i) const {
    const int64_t all = head_queries_ * p_.num_kv_heads;
    return piece_.partials + ((split - piece_.partials_split) * all + i) * partial_floats(dim_);
  }

  void write_partial(int64_t split) {
    for (int64_t i = 0; i < queries_; ++i) {
      float* partial = partial_of(split, i);
      std::copy_n(scratch_.values + i * padded_, padded_, partial);
      partial[padded_] = scratch_.highest[i];
      partial[padded_ + 1] = scratch_.weight[i];
      partial[padded_ + 2] = scratch_.divisor[i];
    }
  }

  // What a split gave a query besides values: what its logits were shifted by, and its sums.
  struct Sums {
    float highest, weight, divisor;
  };
  Sums sums_of(int64_t i) const { return {scratch_.highest[i], scratch_.weight[i], scratch_.divisor[i]}; }

  // A split in which the query saw nothing changes nothing. One in which all logits were NaN has no highest either, but a weight.
  void merge(int64_t i, const Sums& split, const float* values) {
    if (split.highest == kNothing && split.weight == 0) return;
    const float most = std::max(scratch_.total_highest[i], split.highest);
    const float kept = exp_of(scratch_.total_highest[i] - most), share = exp_of(split.highest - most);
    scratch_.total_weight[i] = scratch_.total_weight[i] * kept + split.weight * share;
    scratch_.total_divisor[i] = scratch_.total_divisor[i] * kept + split.divisor * share;
    scratch_.total_highest[i] = most;
    float* total = scratch_.total_values + i * padded_;
    for (int64_t c = 0; c < padded_; c += 16) {
      const F scaled = V::mul(V::load(total + c), V::set(kept));
      V::store(total + c, V::fma(V::load(values + c), V::set(share), scaled));
    }
  }

  void finish() {
    for (head_ = 0; head_ < piece_.num_kv_heads; ++head_) {
      for (int64_t row = first_row_; row < last_row_; ++row) {
        for (int64_t g = 0; g < group_; ++g) finish_query(row, g);
      }
      if (p_.row_logits != nullptr && last_row_ == num_rows_) hide_unseen_logits();
    }
    head_ = 0;
  }

  void finish_query(int64_t row, int64_t g) {
    const int64_t i = query(row, g);
    const int64_t head = out_head(row, g);
    float most = scratch_.total_highest[i], weight = scratch_.total_weight[i],
          divisor = scratch_.total_divisor[i], kept = 1;
    if (p_.lse != nullptr) p_.lse[head] = log_total(most, weight);
    if (p_.sinks != nullptr) {  // one more slot, without a value
      const float sink = p_.sinks[q_head(g)];
      most = std::max(most, sink);
      kept = exp_of(scratch_.total_highest[i] - most);
      const float of_sink = exp_of(sink - most);
      weight = weight * kept + of_sink, divisor = divisor * kept + of_sink;
    }
    if (piece_.log_totals != nullptr) piece_.log_totals[head] = log_total(most, weight);
    write_values(head, scratch_.total_values + i * padded_, divisor > 0 ? kept / divisor : 0);
  }

  // Of all weights a query met; NaN where a logit was.
  static float log_total(float highest, float weight) {
    return weight == 0 ? kNothing : highest + std::log(weight);
  }

  void write_values(int64_t head, const float* values, float factor) {
    with_element(piece_.activations, [&](auto element) {
      auto* out = static_cast<decltype(element)*>(p_.out) + head * dim_;
      if constexpr (V::kHasDot) {
        if (has_paired_values()) return write_paired(out, values, factor);
      }
      for (int64_t c = 0; c < dim_; c += 16) {
        store_some<V>(out + c, V::mul(V::load(values + c), V::set(factor)), dim_ - c);
      }
    });
  }

  template <class Act>
  void write_paired(Act* out, const float* values, float factor) {
    for (int64_t c = 0; c < dim_; c += 32) {
      F first, second;
      V::interleave(V::mul(V::load(values + c), V::set(factor)),
                    V::mul(V::load(values + c + 16), V::set(factor)), first, second);
      V::store(out + c, first);
      V::store(out + c + 16, second);
    }
  }

  // Tiles and strips between the sinks and the last row's window were never scored.
  void hide_unseen_logits() {
    const int64_t begin = sink_slots_, end = std::min(length_, first_slot(num_rows_ - 1));
    if (end <= begin) return;
    for (int64_t g = 0; g < group_; ++g) {
      const int64_t head = piece_.sequence * p_.num_q_heads + q_head(g);
      float* logits = p_.row_logits + head * p_.row_logits_stride;
      std::fill(logits + begin, logits + end, kNothing);
    }
  }

 private:
  // ---- into scratch -----------------------------------------------------------------------------------------

  void load_queries(const void* source, float* target) {
    if constexpr (V::kHasDot) {
      if (uses_dots()) return copy_pairs(source, reinterpret_cast<char*>(target));
    }
    with_element(piece_.activations, [&](auto element) { copy_queries<decltype(element)>(source, target); });
  }

  void copy_pairs(const void* source, char* target) {
    for (int64_t row = first_row_; row < last_row_; ++row) {
      for (int64_t g = 0; g < group_; ++g) {
        const auto* q =
            static_cast<const char*>(source) + 2 * ((sequence_row_ + row) * p_.q_stride + q_head(g) * dim_);
        char* const pairs = target + query(row, g) * query_bytes(dim_);
        for (int64_t i = 0; i < dim_; i += 32)
          V::store_pairs(pairs + 2 * i, KvTile<V>::some_pairs(q + 2 * i, dim_ - i));
      }
    }
  }

  template <class Act>
  void copy_queries(const void* source, float* target) {
    for (int64_t row = first_row_; row < last_row_; ++row) {
      for (int64_t g = 0; g < group_; ++g) {
        const Act* q =
            static_cast<const Act*>(source) + (sequence_row_ + row) * p_.q_stride + q_head(g) * dim_;
        for (int64_t i = 0; i < dim_; i += 16) {
          V::store(target + query(row, g) * padded_ + i, load_some<V>(q + i, dim_ - i));
        }
      }
    }
  }

 protected:
  const AttentionPiece& piece_;
  const AttentionParams& p_;
  int64_t first_row_, last_row_;
  int64_t group_, dim_, padded_, head_queries_, queries_;
  int64_t length_, sequence_row_, num_rows_, sink_slots_, window_;
  int64_t head_ = 0;  // of the piece's kv heads, the one at work
  AttentionScratch<V> scratch_;
};

}  // namespace
}  // namespace quire::cpu
