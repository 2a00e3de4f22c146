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

#include "kernels/cpu/tile_kv.h"
#include "kernels/cpu/tile_matmul.h"
#include "kernels/cpu/tile_queries.h"
#include "kernels/cpu/tile_strip.h"

namespace quire::cpu {
namespace {

template <class V>
class AttentionBlock : public AttentionQueries<V> {
  using F = typename V::F;
  using Queries = AttentionQueries<V>;
  using Queries::exp_of, Queries::clear_totals, Queries::merge, Queries::write_partial, Queries::finish;
  using Queries::first_slot, Queries::end_slot, Queries::sink_slots_, Queries::rows_that_see;
  using Queries::group_, Queries::dim_, Queries::padded_, Queries::queries_, Queries::head_,
      Queries::scratch_;
  using Queries::kNothing;
  using Queries::p_, Queries::piece_, Queries::first_row_, Queries::last_row_, Queries::num_rows_,
      Queries::length_;
  using Queries::query, Queries::q_head, Queries::out_head, Queries::uses_dots, Queries::has_paired_values;

 public:
  AttentionBlock(const AttentionPiece& piece, int64_t first_row, int64_t last_row)
      : AttentionQueries<V>(piece, first_row, last_row), tile_(piece, scratch_.tile, scratch_.zero_row) {}

  void attend() {
    clear_totals();
    for (int64_t split = piece_.first_split; split < piece_.last_split; ++split) {
      attend_split(split);
      if (piece_.partials != nullptr) {
        write_partial(split);
      } else {
        for (int64_t i = 0; i < queries_; ++i)
          merge(i, scratch_.highest[i], scratch_.weight[i], scratch_.values + i * padded_);
      }
    }
    if (piece_.partials == nullptr) finish();
  }

  // column_sums += the probabilities of each row, row by row; of one kv head.
  void add_column_sums() {
    for_tiles(piece_.first_split * kSplitSlots, piece_.last_split * kSplitSlots, [&](int64_t tile) {
      const auto [first, last] = rows_that_see(tile);
      asker_.begin(tile_.parts(), head_, head_bytes());
      turn_keys();
      score(tile, first, last);
      for (int64_t row = first; row < last; ++row) {
        for (int64_t g = 0; g < group_; ++g) add_probabilities(tile, row, g);
      }
    });
  }

 private:
  // Calls f(first slot of the tile) for the tiles in [begin, end) that some row of the block sees.
  template <class Function>
  void for_tiles(int64_t begin, int64_t end, Function&& f) {
    const int64_t window_begin = first_slot(first_row_), seen = sink_slots_ > 0 ? 0 : window_begin;
    const int64_t last = std::min(end, end_slot(last_row_ - 1));
    for (int64_t tile = std::max(begin, seen / kTileSlots * kTileSlots); tile < last; tile += kTileSlots) {
      // between the sinks and the window
      if (tile >= sink_slots_ && tile + kTileSlots <= window_begin) continue;
      tile_.enter(tile, std::max(tile, seen), std::min(tile + kTileSlots, last), end_slot(last_row_ - 1));
      f(tile);
    }
  }

  void attend_split(int64_t split) {
    std::fill_n(scratch_.highest, queries_, kNothing);
    std::fill_n(scratch_.weight, queries_, 0.0f);
    std::fill_n(scratch_.values, queries_ * padded_, 0.0f);
    for_tiles(split * kSplitSlots, (split + 1) * kSplitSlots, [&](int64_t tile) {
      const auto [first, last] = rows_that_see(tile);
      if constexpr (V::kHasDot) {
        const bool few = (last - first) * group_ <= kFewQueries;
        if (few && has_paired_values() && tile_.has_strips() && tile >= sink_slots_)
          return attend_few(tile, first, last);
      }
      for (head_ = 0; head_ < piece_.num_kv_heads; ++head_) {
        if (head_ > 0) tile_.next_head();
        asker_.begin(tile_.parts(), head_, head_bytes());
        turn_keys();
        score(tile, first, last);
        store_row_logits(tile, first, last);
        ask_during(kSoftmax, query(last, 0) - query(first, 0), kReadsNothing);
        for (int64_t i = query(first, 0); i < query(last, 0); ++i) {
          weigh(i);
          ask_some();
        }
        add_values(query(first, 0), query(last, 0));
      }
      head_ = 0;
    });
  }

  // The same of a few queries, with K and V read where they lie, in the order of memory: that is what is waited for.
  void attend_few(int64_t tile, int64_t first, int64_t last) {
    part_asker_.begin(tile_.parts());
    for_strips_and_heads([&](int64_t slot) {
      const int64_t begin = query(first, 0), end = query(last, 0);
      score_strip(slot, begin, end);
      if (slot + kStripSlots < kTileSlots) return;
      // Here, between two readings, not for all heads at once: little of what was asked for is left after that.
      hide_unseen(tile, first, last);
      store_row_logits(tile, first, last);
      for (int64_t i = begin; i < end; ++i) weigh(i);
    });
    for_strips_and_heads([&](int64_t slot) { add_strip_values(slot, query(first, 0), query(last, 0)); });
    head_ = 0;
  }

  template <class Function>
  void for_strips_and_heads(Function&& f) {
    for (int64_t slot = 0; slot < kTileSlots; slot += kStripSlots) {
      for (head_ = 0; head_ < piece_.num_kv_heads; ++head_) f(slot);
    }
  }

  void score_strip(int64_t slot, int64_t first, int64_t last) {
    const auto [rows, offset] = tile_.strip(tile_.keys(), slot, head_);
    const int64_t q_bytes = query_bytes(dim_);
    const LinesAhead ahead = part_asker_.take();
    for_row_tiles<kStripQueries>(last - first, [&, rows = rows, offset = offset](int64_t i, auto tile_rows) {
      constexpr int R = tile_rows;
      F sum[R];
      const char* const q = reinterpret_cast<const char*>(scratch_.q) + (first + i) * q_bytes;
      if (i == 0)
        dot_strip<V, R>(q, q_bytes, rows, offset, dim_, sum, ahead);
      else
        dot_strip<V, R>(q, q_bytes, rows, offset, dim_, sum, NothingAhead{});
      for (int r = 0; r < R; ++r)
        V::store(scratch_.scores + (first + i + r) * kTileSlots + slot, logits_of(sum[r]));
    });
  }

  // ---- logits ---------------------------------------------------------------------------------------------

  // scratch_.scores[query][slot] of rows [first, last), -inf where the row does not see the slot.
  void score(int64_t tile, int64_t first, int64_t last) {
    ask_during(kLogits, uses_dots() ? 4 : dim_, kReadsNothing);
    multiply_keys(scratch_.q, scratch_.scores, query(first, 0), query(last, 0));
    if (tile < sink_slots_) {
      multiply_keys(scratch_.q_sink, scratch_.sink_scores, query(first, 0), query(last, 0));
      const int64_t sinks = std::min<int64_t>(kTileSlots, sink_slots_ - tile);
      for (int64_t i = query(first, 0); i < query(last, 0); ++i) {
        std::copy_n(scratch_.sink_scores + i * kTileSlots, sinks, scratch_.scores + i * kTileSlots);
      }
    }
    hide_unseen(tile, first, last);
  }

  void hide_unseen(int64_t tile, int64_t first, int64_t last) {
    const bool all_seen = end_slot(first) >= tile + kTileSlots && first_slot(last - 1) <= tile;
    if (all_seen || first == last) return;
    for (int64_t row = first; row < last; ++row) {
      const int64_t sinks = std::clamp<int64_t>(sink_slots_ - tile, 0, kTileSlots);
      const int64_t begin = std::clamp<int64_t>(first_slot(row) - tile, sinks, kTileSlots);
      const int64_t end = std::min<int64_t>(kTileSlots, end_slot(row) - tile);
      for (int64_t g = 0; g < group_; ++g) {
        float* scores = scratch_.scores + query(row, g) * kTileSlots;
        std::fill(scores + sinks, scores + begin, kNothing);
        std::fill(scores + end, scores + kTileSlots, kNothing);
      }
    }
  }

  void turn_keys() {
    const bool pairs = p_.layout.dtype == DType::kBF16;
    const auto between = [&]() __attribute__((always_inline)) { ask_some(); };
    if constexpr (V::kHasDot) {
      if (uses_dots()) {
        ask_during(kTurn, kTileSlots / 4, kReads);
        return tile_.turn_quarters(between);
      }
    }
    ask_during(kTurn, kTileSlots / 16 * (pairs ? (dim_ + 31) / 32 : (dim_ + 15) / 16), kReads);
    if (pairs) return tile_.turn_bf16_keys(between);
    if (p_.layout.dtype == DType::kF16) return tile_.template turn_keys<F16>(between);
    tile_.template turn_keys<float>(between);
  }

  void multiply_keys(const float* q, float* scores, int64_t first, int64_t last) {
    if constexpr (V::kHasDot) {
      if (uses_dots()) return multiply_turned(reinterpret_cast<const char*>(q), scores, first, last);
    }
    multiply<FloatProduct<V, float>>(q, scores, first, last);
  }

  // What part of the next head's lines each part of a tile's work asks for, in 32nds: about its part of the time.
  // Asked for in the products alone they came faster than memory gives them, and nothing was on its way while
  // K was turned. Lines that are about to be read are asked for where K or V is read, as fast as it is.
  static constexpr int64_t kTurn = 7, kLogits = 8, kSoftmax = 5, kValues = 12;
  static constexpr bool kReads = true, kReadsNothing = false;
  int64_t head_bytes() const { return 2 * kTileSlots * tile_.token_bytes(); }
  void ask_during(int64_t part, int64_t steps, bool reads) {
    const int64_t lines = 2 * kTileSlots * ((tile_.token_bytes() + 63) / 64);
    const int64_t shares = std::max<int64_t>(1, steps);  // no step where no row sees the tile
    far_lines_ = (lines * part + 32 * shares - 1) / (32 * shares);
    near_lines_ = reads ? (lines / 2 + shares - 1) / shares : 0;
  }
  [[gnu::always_inline]] void ask_some() { asker_.ask(near_lines_, far_lines_); }

  void multiply_turned(const char* q, float* scores, int64_t first, int64_t last) {
    const int64_t q_bytes = query_bytes(dim_);
    for_row_tiles<V::kTileRows>(last - first, [&](int64_t i, auto tile_rows) {
      constexpr int R = tile_rows;
      for (int64_t slot = 0; slot < kTileSlots; slot += 16) {
        ask_some();
        F sum[R];
        dot_turned<V, R>(q + (first + i) * q_bytes, q_bytes, tile_.bytes() + 16 * slot,
                         KvTile<V>::turned_step_bytes(), dim_, sum);
        for (int r = 0; r < R; ++r) V::store(scores + (first + i + r) * kTileSlots + slot, logits_of(sum[r]));
      }
    });
  }

  template <class Product>
  void multiply(const typename Product::X* q, float* scores, int64_t first, int64_t last) {
    for_row_tiles<V::kTileRows>(last - first, [&](int64_t i, auto tile_rows) {
      constexpr int R = tile_rows;
      constexpr int N = V::tile_vectors(R);
      for (int64_t slot = 0; slot < kTileSlots; slot += 16 * N) {
        F sum[R][N];
        clear(sum);
        add_products<V, Product, R, N>(q + (first + i) * padded_, padded_,
                                       reinterpret_cast<const char*>(tile_.buffer() + slot),
                                       kTileSlots * static_cast<int64_t>(sizeof(float)), dim_, sum,
                                       [&]() __attribute__((always_inline)) { ask_some(); });
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
      const int64_t head = piece_.sequence * p_.num_q_heads + q_head(g);
      std::copy_n(scratch_.scores + query(last - 1, g) * kTileSlots, count,
                  p_.row_logits + head * p_.row_logits_stride + tile);
    }
  }

  // ---- softmax and values ---------------------------------------------------------------------------------

  // Turns the logits of query i into weights relative to the split's new highest, and rescales what it has so
  // far.
  void weigh(int64_t i) {
    float* scores = scratch_.scores + i * kTileSlots;
    const F s[4] = {V::load(scores), V::load(scores + 16), V::load(scores + 32), V::load(scores + 48)};
    const float tile_highest = V::highest(V::max(V::max(s[0], s[1]), V::max(s[2], s[3])));
    const float highest = std::max(scratch_.highest[i], tile_highest);
    const F shift = V::set(highest);
    F sum = V::zero(), w[4];
#pragma GCC unroll 4
    for (int n = 0; n < 4; ++n) {
      w[n] = exp<V>(V::sub(s[n], shift));
      sum = V::add(sum, w[n]);
    }
    store_weights(scores, w);
    // Mostly the highest is one of an earlier tile; exp(0) is exactly 1.
    const float kept = highest == scratch_.highest[i] ? 1.0f : exp_of(scratch_.highest[i] - highest);
    scratch_.weight[i] = scratch_.weight[i] * kept + V::sum(sum);
    scratch_.highest[i] = highest;
    if (kept != 1) scale_values(scratch_.values + i * padded_, kept);
  }

  void store_weights(float* scores, const F (&w)[4]) const {
    if constexpr (V::kHasDot) {
      if (has_paired_values()) {
        V::store_rounded(scores, w[0], w[1]);
        return V::store_rounded(scores + 16, w[2], w[3]);
      }
    }
    for (int n = 0; n < 4; ++n) V::store(scores + 16 * n, w[n]);
  }

  void scale_values(float* values, float factor) {
    for (int64_t i = 0; i < padded_; i += 16)
      V::store(values + i, V::mul(V::load(values + i), V::set(factor)));
  }

  // values[query] += weights of the tile times its V, summed in f32. An output meets the same products in the same
  // order however many queries there are. A few queries read V where it lies; for many it is widened once.
  void add_values(int64_t first, int64_t last) {
    ask_during(kValues, kTileSlots * std::max<int64_t>(1, padded_ / 64), kReads);
    if constexpr (V::kHasDot) {
      if (has_paired_values()) return add_paired_values(first, last);
    }
    with_element(p_.layout.dtype, [&](auto element) {
      using Kv = decltype(element);
      if (last - first <= kFewQueries && dim_ % 16 == 0) {
        const auto runs = [&](auto&& f) { tile_.for_value_runs(f); };
        return add_values_from<FloatProduct<V, Kv>>(first, last, tile_.token_bytes(), runs);
      }
      tile_.template widen_values<Kv>();
      const auto whole = [&](auto&& f) { f(int64_t{0}, kTileSlots, tile_.bytes()); };
      add_values_from<FloatProduct<V, float>>(first, last, padded_ * static_cast<int64_t>(sizeof(float)),
                                              whole);
    });
  }

  // Calls f with the head's size, as a constant where that is worth code of its own: addresses are then known.
  template <class Function>
  void with_dim(Function&& f) const {
    if (dim_ == 128) return f(std::integral_constant<int64_t, 128>{});
    f(dim_);
  }

  // Weights of the whole tile times its V, for many queries.
  void add_paired_values(int64_t first, int64_t last) {
    with_dim([&](auto dim) {
      const auto add = [&](auto vectors, int64_t column) {
        for_row_tiles<6>(last - first, [&](int64_t i, auto tile_rows) {
          add_weighted<V, tile_rows, vectors>(scratch_.scores + (first + i) * kTileSlots, tile_.values(),
                                              kTileSlots, 2 * column, values_of(first + i) + column, dim,
                                              NothingAhead{}, 0);
        });
      };
      int64_t column = 0;
      for (; column + 64 <= dim; column += 64) add(std::integral_constant<int, 4>{}, column);
      for (; column < dim; column += 32) add(std::integral_constant<int, 2>{}, column);
    });
  }

  // Weights of a strip times its V, for few.
  void add_strip_values(int64_t slot, int64_t first, int64_t last) {
    const LinesAhead ahead = part_asker_.take();
    if (!tile_.is_seen(slot, kStripSlots)) return;
    const auto [rows, offset] = tile_.strip(tile_.values(), slot, head_);
    const int64_t columns = last - first <= kWideRows ? 128 : 64;
    // A strip at once where that is in the order of memory, or halves.
    const int64_t step = dim_ <= columns ? kStripSlots : kStripSlots / 2;
    with_dim([&, rows = rows, offset = offset](auto dim) {
      for (int64_t s = 0; s < kStripSlots; s += step)
        add_strip_slots({rows + s, offset, slot + s, step, s * 2 * dim, ahead}, first, last, dim);
    });
  }

  // Slots of a strip: where V lies, from which of the tile on, and the first byte to ask for.
  struct StripSlots {
    const char* const* rows;
    int64_t offset, slot, count, ahead_byte;
    LinesAhead ahead;
  };

  // As many columns at a time as leave registers for all of a small group.
  static constexpr int kWideRows = 3;
  template <class Dim>
  void add_strip_slots(const StripSlots& slots, int64_t first, int64_t last, Dim dim) {
    int64_t column = 0;
    if (last - first <= kWideRows)
      for (; column + 128 <= dim; column += 128)
        add_strip_columns<kWideRows, 8>(slots, first, last, column, dim);
    for (; column + 64 <= dim; column += 64) add_strip_columns<6, 4>(slots, first, last, column, dim);
    for (; column < dim; column += 32) add_strip_columns<6, 2>(slots, first, last, column, dim);
  }

  template <int Rows, int N, class Dim>
  void add_strip_columns(const StripSlots& slots, int64_t first, int64_t last, int64_t column, Dim dim) {
    for_row_tiles<Rows>(last - first, [&](int64_t i, auto tile_rows) {
      const auto add = [&](auto ahead) __attribute__((always_inline)) {
        add_weighted<V, tile_rows, N>(scratch_.scores + (first + i) * kTileSlots + slots.slot / 2, slots.rows,
                                      slots.count, slots.offset + 2 * column, values_of(first + i) + column,
                                      dim, ahead, slots.ahead_byte + 2 * column);
      };
      if (i == 0) return add(slots.ahead);  // the first pass over these lines asks
      add(NothingAhead{});
    });
  }

  float* values_of(int64_t i) { return scratch_.values + i * padded_; }

  // `runs` calls its argument with (slot, count, V of the slot) for runs of slots in order, row_bytes apart.
  template <class Product, class Runs>
  void add_values_from(int64_t first, int64_t last, int64_t row_bytes, const Runs& runs) {
    for_row_tiles<V::kTileRows>(last - first, [&](int64_t i, auto tile_rows) {
      constexpr int R = tile_rows;
      constexpr int N = V::tile_vectors(R);
      int64_t column = 0;
      for (; column + 16 * N <= padded_; column += 16 * N) {
        add_value_columns<Product, R, N>(first + i, column, row_bytes, runs);
      }
      for (; column < padded_; column += 16)
        add_value_columns<Product, R, 1>(first + i, column, row_bytes, runs);
    });
  }

  template <class Product, int R, int N, class Runs>
  void add_value_columns(int64_t i, int64_t column, int64_t row_bytes, const Runs& runs) {
    F sum[R][N];
    float* values = scratch_.values + i * padded_ + column;
    const float* weights = scratch_.scores + i * kTileSlots;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[r][n] = V::load(values + r * padded_ + 16 * n);
    }
    runs([&](int64_t slot, int64_t count, const char* rows) __attribute__((always_inline)) {
      add_products<V, Product, R, N>(weights + slot, kTileSlots, rows + column / 16 * Product::kVectorBytes,
                                     row_bytes, count, sum,
                                     [&]() __attribute__((always_inline)) { ask_some(); });
    });
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) V::store(values + r * padded_ + 16 * n, sum[r][n]);
    }
  }

  void add_probabilities(int64_t tile, int64_t row, int64_t g) {
    const int64_t head = piece_.sequence * p_.num_q_heads + q_head(g);
    float* sums = p_.column_sums + head * p_.column_sums_stride + tile;
    const float* scores = scratch_.scores + query(row, g) * kTileSlots;
    const F total = V::set(piece_.log_totals[out_head(row, g)]);
    const int64_t count = std::min(kTileSlots, length_ - tile);
    for (int64_t j = 0; j < count; j += 16) {
      const F probability = exp<V>(V::sub(V::load(scores + j), total));
      store_some<V>(sums + j, V::add(load_some<V>(sums + j, count - j), probability), count - j);
    }
  }

  KvTile<V> tile_;
  static constexpr int kStripQueries = 8;  // of a register tile while K is turned on the way
  LineAsker asker_;
  PartAsker part_asker_;
  int64_t near_lines_ = 0, far_lines_ = 0;
};

template <class V>
void attend(const AttentionPiece& piece) {
  AttentionBlock<V> block(piece, piece.first_row, piece.last_row);
  block.load_queries();
  block.attend();
}

template <class V>
void merge_partials(const AttentionPiece& piece) {
  AttentionQueries<V>(piece, piece.first_row, piece.last_row).merge_partials();
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

}  // namespace
}  // namespace quire::cpu
