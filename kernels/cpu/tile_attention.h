// Attention of some rows of one sequence under one kv head. K and V of kTileSlots list slots are widened to
// f32 once for all queries of the piece (K turned on its side, so that lanes are slots), then both products
// run in the register tiles of the matmul.
//
// What makes the result independent of chunks, threads and neighbours: list slots are cut at fixed indices. A
// tile of 64 slots meets a running (highest, weight, values) of its split of 512 slots; splits meet the whole
// in list order, either at once or from partials in memory. A query skips tiles in which it sees nothing, and
// inside a tile slots that it does not see weigh exactly 0.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/tile_matmul.h"

namespace quire::cpu {

template <class V>
class AttentionBlock {
  using F = typename V::F;
  static constexpr float kNothing = -std::numeric_limits<float>::infinity();

 public:
  AttentionBlock(const AttentionPiece& piece, int64_t first_row, int64_t last_row)
      : piece_(piece), p_(*piece.p), first_row_(first_row), last_row_(last_row) {
    group_ = p_.num_q_heads / p_.num_kv_heads;
    dim_ = p_.head_dim;
    padded_ = padded_dim(dim_);
    queries_ = (last_row - first_row) * group_;
    length_ = p_.lengths[piece.sequence * p_.length_stride + piece.kv_head * p_.head_length_stride];
    sequence_row_ = p_.query_start[piece.sequence];
    num_rows_ = p_.query_start[piece.sequence + 1] - sequence_row_;
    sink_slots_ = p_.q_sink == nullptr ? 0 : p_.sink_slots[piece.sequence];
    lay_out_scratch();
  }

  void load_queries() {
    copy_queries(p_.q, q_);
    if (sink_slots_ > 0) copy_queries(p_.q_sink, q_sink_);
  }

  void attend() {
    std::fill_n(total_highest_, queries_, kNothing);
    std::fill_n(total_weight_, queries_, 0.0f);
    std::fill_n(total_values_, queries_ * padded_, 0.0f);
    for (int64_t split = piece_.first_split; split < piece_.last_split; ++split) {
      attend_split(split);
      if (piece_.partials != nullptr) {
        write_partial(split);
      } else {
        for (int64_t i = 0; i < queries_; ++i) merge(i, highest_[i], weight_[i], values_ + i * padded_);
      }
    }
    if (piece_.partials == nullptr) finish();
  }

  void merge_partials() {
    std::fill_n(total_highest_, queries_, kNothing);
    std::fill_n(total_weight_, queries_, 0.0f);
    std::fill_n(total_values_, queries_ * padded_, 0.0f);
    for (int64_t split = piece_.first_split; split < piece_.last_split; ++split) {
      for (int64_t i = 0; i < queries_; ++i) {
        const float* partial = partial_of(split, i);
        merge(i, partial[padded_], partial[padded_ + 1], partial);
      }
    }
    finish();
  }

  // column_sums += the probabilities of each row, row by row.
  void add_column_sums() {
    for_tiles(piece_.first_split * kSplitSlots, piece_.last_split * kSplitSlots, [&](int64_t tile) {
      const auto [first, last] = rows_that_see(tile);
      turn_keys(tile);
      score(tile, first, last);
      for (int64_t row = first; row < last; ++row) {
        for (int64_t g = 0; g < group_; ++g) add_probabilities(tile, row, g);
      }
    });
  }

 private:
  void lay_out_scratch() {
    float* next = piece_.scratch;
    const auto take = [&](int64_t floats) {
      float* begin = next;
      next += floats;
      return begin;
    };
    const int64_t most = std::max(block_queries(group_), queries_);
    q_ = take(most * padded_), q_sink_ = take(most * padded_);
    values_ = take(most * padded_), total_values_ = take(most * padded_);
    highest_ = take(most), weight_ = take(most), total_highest_ = take(most), total_weight_ = take(most);
    scores_ = take(most * kTileSlots), sink_scores_ = take(most * kTileSlots);
    tile_ = take(kTileSlots * padded_);
    zero_row_ = take(padded_);
    std::fill_n(zero_row_, padded_, 0.0f);
  }

  int64_t index_of(int64_t row) const { return length_ - num_rows_ + row; }
  int64_t first_slot(int64_t row) const {
    return p_.window == 0 ? 0 : std::max<int64_t>(0, index_of(row) - p_.window + 1);
  }
  int64_t end_slot(int64_t row) const { return std::max<int64_t>(0, index_of(row) + 1); }
  int64_t query(int64_t row, int64_t g) const { return (row - first_row_) * group_ + g; }
  int64_t out_head(int64_t row, int64_t g) const {
    return (sequence_row_ + row) * p_.num_q_heads + piece_.kv_head * group_ + g;
  }

  void copy_queries(const void* source, float* target) {
    with_element(piece_.activations, [&](auto element) {
      using Act = decltype(element);
      for (int64_t row = first_row_; row < last_row_; ++row) {
        for (int64_t g = 0; g < group_; ++g) {
          const Act* q = static_cast<const Act*>(source) + (sequence_row_ + row) * p_.q_stride +
                         (piece_.kv_head * group_ + g) * dim_;
          for (int64_t i = 0; i < dim_; i += 16) {
            V::store(target + query(row, g) * padded_ + i, load_some<V>(q + i, dim_ - i));
          }
        }
      }
    });
  }

  // Calls f(first slot of the tile) for the tiles in [begin, end) that some row of the block sees.
  template <class Function>
  void for_tiles(int64_t begin, int64_t end, Function&& f) {
    const int64_t first = std::max(begin, first_slot(first_row_) / kTileSlots * kTileSlots);
    const int64_t last = std::min(end, end_slot(last_row_ - 1));
    for (int64_t tile = first; tile < last; tile += kTileSlots) f(tile);
  }

  // Rows in order see ever later slots: those that see some of the tile are neighbours.
  std::pair<int64_t, int64_t> rows_that_see(int64_t tile) const {
    int64_t first = first_row_, last = last_row_;
    while (first < last && end_slot(first) <= tile) ++first;
    while (first < last && first_slot(last - 1) >= tile + kTileSlots) --last;
    return {first, last};
  }

  void attend_split(int64_t split) {
    std::fill_n(highest_, queries_, kNothing);
    std::fill_n(weight_, queries_, 0.0f);
    std::fill_n(values_, queries_ * padded_, 0.0f);
    for_tiles(split * kSplitSlots, (split + 1) * kSplitSlots, [&](int64_t tile) {
      const auto [first, last] = rows_that_see(tile);
      turn_keys(tile);
      score(tile, first, last);
      store_row_logits(tile, first, last);
      for (int64_t i = query(first, 0); i < query(last, 0); ++i) weigh(i);
      widen_values(tile);
      add_values(query(first, 0), query(last, 0));
    });
  }

  // ---- K and V of a tile
  // -------------------------------------------------------------------------------------------

  // Where the 64 keys of a tile lie. Slots that no row of the block sees read zeros: they may not exist, or
  // hold anything.
  void find_rows(int64_t tile, int64_t offset, const char* (&rows)[kTileSlots]) const {
    const bool own_list = p_.head_table_stride != 0;
    const int32_t* table =
        p_.block_table + piece_.sequence * p_.table_stride + piece_.kv_head * p_.head_table_stride;
    const char* base = p_.arena + (own_list ? 0 : piece_.kv_head) * p_.layout.head_stride() + offset;
    const int64_t tokens = p_.layout.block_tokens, token_bytes = p_.layout.token_bytes();
    const int64_t block_bytes = p_.layout.block_bytes();
    const int64_t begin = std::max(tile, first_slot(first_row_));
    const int64_t end = std::min(tile + kTileSlots, end_slot(last_row_ - 1));
    std::fill_n(rows, kTileSlots, reinterpret_cast<const char*>(zero_row_));
    for (int64_t slot = begin; slot < end;) {
      const char* block = base + table[slot / tokens] * block_bytes;
      const int64_t block_end = std::min(end, (slot / tokens + 1) * tokens);
      for (; slot < block_end; ++slot) rows[slot - tile] = block + slot % tokens * token_bytes;
    }
  }

  // tile_[i][slot] = K[slot][i]
  void turn_keys(int64_t tile) {
    const char* rows[kTileSlots];
    find_rows(tile, 0, rows);
    fetch_ahead(tile, 0);
    if (p_.layout.dtype == DType::kF32) return turn<float>(rows, 0);
    if (p_.layout.dtype == DType::kF16) return turn<F16>(rows, 0);
    turn<Bf16>(rows, turn_pairs(rows));
  }

  template <class Kv>
  void turn(const char* const (&rows)[kTileSlots], int64_t first_dim) {
    for (int64_t i = first_dim; i < dim_; i += 16) {
      for (int64_t slot = 0; slot < kTileSlots; slot += 16) {
        F square[16];
        for (int64_t j = 0; j < 16; ++j) {
          square[j] = load_some<V>(reinterpret_cast<const Kv*>(rows[slot + j]) + i, dim_ - i);
        }
        V::transpose(square);
        for (int64_t j = 0; j < 16; ++j) V::store(tile_ + (i + j) * kTileSlots + slot, square[j]);
      }
    }
  }

  // bf16 two dimensions at a time, half the shuffles. Returns the dimensions done, a multiple of 32.
  int64_t turn_pairs(const char* const (&rows)[kTileSlots]) {
    int64_t i = 0;
    for (; i + 32 <= dim_; i += 32) {
      for (int64_t slot = 0; slot < kTileSlots; slot += 16) {
        typename V::Pairs square[16];
        for (int64_t j = 0; j < 16; ++j) square[j] = V::load_pairs(rows[slot + j] + i * 2);
        V::transpose(square);
        for (int64_t j = 0; j < 16; ++j) {
          V::store(tile_ + (i + 2 * j) * kTileSlots + slot, V::even(square[j]));
          V::store(tile_ + (i + 2 * j + 1) * kTileSlots + slot, V::odd(square[j]));
        }
      }
    }
    return i;
  }

  // tile_[slot][i] = V[slot][i]
  void widen_values(int64_t tile) {
    const char* rows[kTileSlots];
    find_rows(tile, p_.layout.kv_stride(), rows);
    fetch_ahead(tile, p_.layout.kv_stride());
    with_element(p_.layout.dtype, [&](auto element) {
      for (int64_t slot = 0; slot < kTileSlots; ++slot) {
        const auto* row = reinterpret_cast<const decltype(element)*>(rows[slot]);
        for (int64_t i = 0; i < dim_; i += 16)
          V::store(tile_ + slot * padded_ + i, load_some<V>(row + i, dim_ - i));
      }
    });
  }

  // The next tile lies elsewhere in the pool, where the prefetcher cannot know: ask for it while this one is
  // worked on.
  void fetch_ahead(int64_t tile, int64_t offset) {
    if (tile + kTileSlots >= end_slot(last_row_ - 1)) return;
    const char* rows[kTileSlots];
    find_rows(tile + kTileSlots, offset, rows);
    for (const char* row : rows) {
      for (int64_t byte = 0; byte < p_.layout.token_bytes(); byte += 64) __builtin_prefetch(row + byte, 0, 2);
    }
  }

  // ---- logits
  // ------------------------------------------------------------------------------------------------------

  // scores_[query][slot] of rows [first, last), -inf where the row does not see the slot.
  void score(int64_t tile, int64_t first, int64_t last) {
    multiply_keys(q_, scores_, query(first, 0), query(last, 0));
    if (tile < sink_slots_) {
      multiply_keys(q_sink_, sink_scores_, query(first, 0), query(last, 0));
      const int64_t sinks = std::min<int64_t>(kTileSlots, sink_slots_ - tile);
      for (int64_t i = query(first, 0); i < query(last, 0); ++i) {
        std::copy_n(sink_scores_ + i * kTileSlots, sinks, scores_ + i * kTileSlots);
      }
    }
    for (int64_t row = first; row < last; ++row) {
      const int64_t begin = std::max<int64_t>(0, first_slot(row) - tile);
      const int64_t end = std::min<int64_t>(kTileSlots, end_slot(row) - tile);
      for (int64_t g = 0; g < group_; ++g) {
        float* scores = scores_ + query(row, g) * kTileSlots;
        std::fill(scores, scores + begin, kNothing);
        std::fill(scores + end, scores + kTileSlots, kNothing);
      }
    }
  }

  void multiply_keys(const float* q, float* scores, int64_t first, int64_t last) {
    for_row_tiles<V>(last - first, [&](int64_t i, auto tile_rows) {
      constexpr int R = tile_rows;
      constexpr int N = V::tile_vectors(R);
      for (int64_t slot = 0; slot < kTileSlots; slot += 16 * N) {
        F sum[R][N];
        clear(sum);
        add_products<V, FloatProduct<V, float>, R, N>(q + (first + i) * padded_, padded_,
                                                      reinterpret_cast<const char*>(tile_ + slot),
                                                      kTileSlots * sizeof(float), dim_, sum);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n) {
            V::store(scores + (first + i + r) * kTileSlots + slot + 16 * n, logits_of(sum[r][n]));
          }
        }
      }
    });
  }

  template <int R, int N>
  static void clear(F (&sum)[R][N]) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[r][n] = V::zero();
    }
  }

  F logits_of(F products) const {
    const F scaled = V::mul(products, V::set(p_.scale));
    if (p_.soft_cap == 0) return scaled;
    return V::mul(V::set(p_.soft_cap), tanh<V>(V::div(scaled, V::set(p_.soft_cap))));
  }

  void store_row_logits(int64_t tile, int64_t first, int64_t last) {
    if (p_.row_logits == nullptr || last != num_rows_ || first == last) return;
    const int64_t count = std::min(kTileSlots, length_ - tile);
    for (int64_t g = 0; g < group_; ++g) {
      const int64_t head = piece_.sequence * p_.num_q_heads + piece_.kv_head * group_ + g;
      std::copy_n(scores_ + query(last - 1, g) * kTileSlots, count,
                  p_.row_logits + head * p_.row_logits_stride + tile);
    }
  }

  // ---- softmax and values
  // ------------------------------------------------------------------------------------------

  static float exp_of(float x) {
    float lanes[16];
    V::store(lanes, exp<V>(V::set(x)));
    return lanes[0];
  }

  // Turns the logits of query i into weights relative to the split's new highest, and rescales what it has so
  // far.
  void weigh(int64_t i) {
    float* scores = scores_ + i * kTileSlots;
    const F s[4] = {V::load(scores), V::load(scores + 16), V::load(scores + 32), V::load(scores + 48)};
    const float tile_highest = V::highest(V::max(V::max(s[0], s[1]), V::max(s[2], s[3])));
    const float highest = std::max(highest_[i], tile_highest);
    const F shift = V::set(highest);
    F sum = V::zero();
    for (int n = 0; n < 4; ++n) {
      const F w = exp<V>(V::sub(s[n], shift));
      V::store(scores + 16 * n, w);
      sum = V::add(sum, w);
    }
    const float kept = exp_of(highest_[i] - highest);
    weight_[i] = weight_[i] * kept + V::sum(sum);
    highest_[i] = highest;
    if (kept != 1) scale_values(values_ + i * padded_, kept);
  }

  void scale_values(float* values, float factor) {
    for (int64_t i = 0; i < padded_; i += 16)
      V::store(values + i, V::mul(V::load(values + i), V::set(factor)));
  }

  // values_[query] += weights of the tile times its V.
  void add_values(int64_t first, int64_t last) {
    for_row_tiles<V>(last - first, [&](int64_t i, auto tile_rows) {
      constexpr int R = tile_rows;
      constexpr int N = V::tile_vectors(R);
      int64_t column = 0;
      for (; column + 16 * N <= padded_; column += 16 * N) add_value_columns<R, N>(first + i, column);
      for (; column < padded_; column += 16) add_value_columns<R, 1>(first + i, column);
    });
  }

  template <int R, int N>
  void add_value_columns(int64_t i, int64_t column) {
    F sum[R][N];
    float* values = values_ + i * padded_ + column;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[r][n] = V::load(values + r * padded_ + 16 * n);
    }
    add_products<V, FloatProduct<V, float>, R, N>(
        scores_ + i * kTileSlots, kTileSlots, reinterpret_cast<const char*>(tile_ + column),
        padded_ * static_cast<int64_t>(sizeof(float)), kTileSlots, sum);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) V::store(values + r * padded_ + 16 * n, sum[r][n]);
    }
  }

  // ---- splits and the end
  // ------------------------------------------------------------------------------------------

  float* partial_of(int64_t split, int64_t i) const {
    return piece_.partials + ((split - piece_.partials_split) * queries_ + i) * partial_floats(dim_);
  }

  void write_partial(int64_t split) {
    for (int64_t i = 0; i < queries_; ++i) {
      float* partial = partial_of(split, i);
      std::copy_n(values_ + i * padded_, padded_, partial);
      partial[padded_] = highest_[i];
      partial[padded_ + 1] = weight_[i];
    }
  }

  // A split in which the query saw nothing changes nothing.
  void merge(int64_t i, float highest, float weight, const float* values) {
    if (highest == kNothing) return;
    const float most = std::max(total_highest_[i], highest);
    const float kept = exp_of(total_highest_[i] - most), share = exp_of(highest - most);
    total_weight_[i] = total_weight_[i] * kept + weight * share;
    total_highest_[i] = most;
    float* total = total_values_ + i * padded_;
    for (int64_t c = 0; c < padded_; c += 16) {
      const F scaled = V::mul(V::load(total + c), V::set(kept));
      V::store(total + c, V::fma(V::load(values + c), V::set(share), scaled));
    }
  }

  void finish() {
    for (int64_t row = first_row_; row < last_row_; ++row) {
      for (int64_t g = 0; g < group_; ++g) finish_query(row, g);
    }
    if (p_.row_logits != nullptr && last_row_ == num_rows_) hide_unseen_logits();
  }

  void finish_query(int64_t row, int64_t g) {
    const int64_t i = query(row, g);
    const int64_t head = out_head(row, g);
    float most = total_highest_[i], weight = total_weight_[i], kept = 1;
    if (p_.lse != nullptr) p_.lse[head] = weight > 0 ? most + std::log(weight) : kNothing;
    if (p_.sinks != nullptr) {  // one more slot, without a value
      const float sink = p_.sinks[piece_.kv_head * group_ + g];
      most = std::max(most, sink);
      kept = exp_of(total_highest_[i] - most);
      weight = weight * kept + exp_of(sink - most);
    }
    if (piece_.log_totals != nullptr)
      piece_.log_totals[head] = weight > 0 ? most + std::log(weight) : kNothing;
    write_values(head, total_values_ + i * padded_, weight > 0 ? kept / weight : 0);
  }

  void write_values(int64_t head, const float* values, float factor) {
    with_element(piece_.activations, [&](auto element) {
      auto* out = static_cast<decltype(element)*>(p_.out) + head * dim_;
      for (int64_t c = 0; c < dim_; c += 16) {
        store_some<V>(out + c, V::mul(V::load(values + c), V::set(factor)), dim_ - c);
      }
    });
  }

  // Tiles before the last row's window were never scored.
  void hide_unseen_logits() {
    const int64_t unseen = std::min(length_, first_slot(num_rows_ - 1) / kTileSlots * kTileSlots);
    for (int64_t g = 0; g < group_; ++g) {
      const int64_t head = piece_.sequence * p_.num_q_heads + piece_.kv_head * group_ + g;
      std::fill_n(p_.row_logits + head * p_.row_logits_stride, unseen, kNothing);
    }
  }

  void add_probabilities(int64_t tile, int64_t row, int64_t g) {
    const int64_t head = piece_.sequence * p_.num_q_heads + piece_.kv_head * group_ + g;
    float* sums = p_.column_sums + head * p_.column_sums_stride + tile;
    const float* scores = scores_ + query(row, g) * kTileSlots;
    const F total = V::set(piece_.log_totals[out_head(row, g)]);
    const int64_t count = std::min(kTileSlots, length_ - tile);
    for (int64_t j = 0; j < count; j += 16) {
      const F probability = exp<V>(V::sub(V::load(scores + j), total));
      store_some<V>(sums + j, V::add(load_some<V>(sums + j, count - j), probability), count - j);
    }
  }

  const AttentionPiece& piece_;
  const AttentionParams& p_;
  int64_t first_row_, last_row_;
  int64_t group_, dim_, padded_, queries_, length_, sequence_row_, num_rows_, sink_slots_;
  float *q_, *q_sink_;             // [queries][padded]
  float *values_, *total_values_;  // [queries][padded], of the split and of all before it
  float *highest_, *weight_, *total_highest_, *total_weight_;  // [queries]
  float *scores_, *sink_scores_;                               // [queries][64]
  float* tile_;                                                // K as [dim][64] or V as [64][padded]
  float* zero_row_;                                            // [padded]
};

template <class V>
void attend(const AttentionPiece& piece) {
  AttentionBlock<V> block(piece, piece.first_row, piece.last_row);
  block.load_queries();
  block.attend();
}

template <class V>
void merge_partials(const AttentionPiece& piece) {
  AttentionBlock<V>(piece, piece.first_row, piece.last_row).merge_partials();
}

template <class V>
void add_column_sums(const AttentionPiece& piece) {
  const int64_t step = block_queries(piece.p->num_q_heads / piece.p->num_kv_heads) * piece.p->num_kv_heads /
                       piece.p->num_q_heads;
  for (int64_t row = piece.first_row; row < piece.last_row; row += step) {
    AttentionBlock<V> block(piece, row, std::min(piece.last_row, row + step));
    block.load_queries();
    block.add_column_sums();
  }
}

}  // namespace quire::cpu
