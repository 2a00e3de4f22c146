// From products to weights: logits, what a row does not see of them, and the running softmax of a split.
#pragma once

#include <algorithm>
#include <limits>

#include "kernels/cpu/tile_queries.h"
#include "kernels/cpu/vector_math.h"

namespace quire::cpu {
namespace {

template <class V>
class AttentionSoftmax : public AttentionQueries<V> {
  using F = typename V::F;
  using Queries = AttentionQueries<V>;

 public:
  using AttentionQueries<V>::AttentionQueries;

 protected:
  using Queries::exp_of, Queries::kNothing;
  using Queries::first_slot, Queries::end_slot, Queries::query, Queries::q_head, Queries::has_paired_values;
  using Queries::p_, Queries::piece_, Queries::scratch_, Queries::group_, Queries::padded_, Queries::queries_;
  using Queries::sink_slots_, Queries::num_rows_, Queries::length_;

  F logits_of(F products) const {
    const F scaled = V::mul(products, V::set(p_.scale));
    if (p_.soft_cap == 0) return scaled;
    return V::mul(V::set(p_.soft_cap), tanh<V>(V::div(scaled, V::set(p_.soft_cap))));
  }

  bool all_seen(int64_t tile, int64_t from, int64_t count, int64_t first, int64_t last) const {
    return end_slot(first) >= tile + from + count && first_slot(last - 1) <= tile + from;
  }

  // -inf where a row of [first, last) does not see one of `count` slots from `from` of the tile on.
  void hide_unseen(int64_t tile, int64_t from, int64_t count, int64_t first, int64_t last) {
    if (first == last || all_seen(tile, from, count, first, last)) return;
    for (int64_t row = first; row < last; ++row) {
      const int64_t sinks = std::clamp<int64_t>(sink_slots_ - tile, from, from + count);
      const int64_t begin = std::clamp<int64_t>(first_slot(row) - tile, sinks, from + count);
      const int64_t end = std::clamp<int64_t>(end_slot(row) - tile, from, from + count);
      for (int64_t g = 0; g < group_; ++g) {
        float* scores = scratch_.scores + query(row, g) * kTileSlots;
        std::fill(scores + sinks, scores + begin, kNothing);
        std::fill(scores + end, scores + from + count, kNothing);
      }
    }
  }

  void store_row_logits(int64_t tile, int64_t from, int64_t count, int64_t first, int64_t last) {
    if (p_.row_logits == nullptr || last != num_rows_ || first == last) return;
    const int64_t stored = std::clamp<int64_t>(length_ - tile - from, 0, count);
    for (int64_t g = 0; g < group_; ++g) {
      const int64_t head = piece_.sequence * p_.num_q_heads + q_head(g);
      std::copy_n(scratch_.scores + query(last - 1, g) * kTileSlots + from, stored,
                  p_.row_logits + head * p_.row_logits_stride + tile + from);
    }
  }

  // Turns the logits of 16 slots into weights, f32, or bf16 where V is met in pairs of slots: then two slots a word. scratch_.highest is
  // what logits are shifted by. It rises only where a logit is kRise above it: all weights stay below e^8, and little is ever rescaled
  // (FlashAttention-4 rescales on such a condition too). Values are divided by the sum of the weights as V met them: where one slot has
  // nearly all of the weight its V comes out as it is.
  template <bool kPaired, int R>
  [[gnu::always_inline]] void weigh_strip(int64_t i, int64_t slot, const F (&logits)[R]) {
    F shift[R], w[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      if (V::any_above(logits[r], scratch_.highest[i + r] + kRise)) raise_shift(i + r, V::highest(logits[r]));
      // of a row that has seen nothing yet all are -inf, and exp(-inf) is 0
      shift[r] = V::set(std::max(scratch_.highest[i + r], kLeastShift));
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) w[r] = exp<V>(V::sub(logits[r], shift[r]));
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      float* const lanes = scratch_.lanes + scratch_.kLanes * (i + r);
      V::store(lanes, V::add(V::load(lanes), w[r]));
      float* const scores = scratch_.scores + (i + r) * kTileSlots;
      if constexpr (kPaired)
        V::store_and_sum_rounded(scores + slot / 2, lanes + 16, w[r]);
      else
        V::store(scores + slot, w[r]);
    }
  }

  // The same of logits in memory.
  template <bool kPaired, int R>
  void weigh_stored(int64_t i, int64_t slot) {
    F logits[R];
    for (int r = 0; r < R; ++r) logits[r] = V::load(scratch_.scores + (i + r) * kTileSlots + slot);
    weigh_strip<kPaired>(i, slot, logits);
  }

  template <bool kPaired>
  void weigh_strip(int64_t first, int64_t last, int64_t slot) {
    int64_t i = first;
    for (; i + 4 <= last; i += 4) weigh_stored<kPaired, 4>(i, slot);
    for (; i < last; ++i) weigh_stored<kPaired, 1>(i, slot);
  }

  bool some_shift_rises(int64_t first, int64_t last, int64_t slot) const {
    for (int64_t i = first; i < last; ++i) {
      if (V::any_above(V::load(scratch_.scores + i * kTileSlots + slot), scratch_.highest[i] + kRise))
        return true;
    }
    return false;
  }

  // The split's sums, once its tiles are done.
  void end_sums() {
    for (int64_t i = 0; i < queries_; ++i) {
      const float* const lanes = scratch_.lanes + scratch_.kLanes * i;
      scratch_.weight[i] = V::sum(V::load(lanes));
      scratch_.divisor[i] = has_paired_values() ? V::sum(V::load(lanes + 16)) : scratch_.weight[i];
    }
  }

 private:
  static constexpr float kRise = 8;
  static constexpr float kLeastShift = std::numeric_limits<float>::lowest();

  [[gnu::noinline]] void raise_shift(int64_t i, float highest) {
    const float kept = exp_of(scratch_.highest[i] - highest);
    scratch_.highest[i] = highest;
    scale(scratch_.lanes + scratch_.kLanes * i, scratch_.kLanes, kept);
    scale(scratch_.values + i * padded_, padded_, kept);
  }

  static void scale(float* values, int64_t count, float factor) {
    for (int64_t i = 0; i < count; i += 16) V::store(values + i, V::mul(V::load(values + i), V::set(factor)));
  }
};

}  // namespace
}  // namespace quire::cpu
