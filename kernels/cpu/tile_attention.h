// Attention of some rows of one sequence under one kv head. K and V of kTileSlots list slots are widened to
// f32 once for all queries of the piece (K turned on its side, so that lanes are slots), then both products
// run in the register tiles of the matmul. A few queries, which wait for memory and not for arithmetic, meet K and V
// strip by strip where they lie (tile_strip.h, tile_strip_f32.h).
//
// What makes the result independent of chunks, threads and neighbours: list slots are cut at fixed indices. A
// tile of 64 slots meets a running (highest, weight, values) of its split of 512 slots; splits meet the whole
// in list order, either at once or from partials in memory. A query skips tiles in which it sees nothing, and
// inside a tile slots that it does not see weigh exactly 0.
#pragma once

#include <algorithm>

#include "kernels/cpu/tile_kv.h"
#include "kernels/cpu/tile_matmul.h"
#include "kernels/cpu/tile_softmax.h"
#include "kernels/cpu/tile_strip.h"
#include "kernels/cpu/tile_strip_f32.h"

namespace quire::cpu {
namespace {

template <class V>
class AttentionBlock : public AttentionSoftmax<V> {
  using F = typename V::F;
  using Queries = AttentionQueries<V>;
  using Softmax = AttentionSoftmax<V>;
  using Queries::clear_totals, Queries::merge, Queries::sums_of, Queries::write_partial, Queries::finish;
  using Queries::first_slot, Queries::end_slot, Queries::sink_slots_, Queries::rows_that_see;
  using Queries::group_, Queries::head_queries_, Queries::dim_, Queries::padded_, Queries::queries_,
      Queries::head_, Queries::scratch_;
  using Queries::kNothing;
  using Queries::p_, Queries::piece_, Queries::first_row_, Queries::last_row_, Queries::length_;
  using Queries::query, Queries::q_head, Queries::out_head, Queries::uses_dots, Queries::has_paired_values;
  using Softmax::logits_of, Softmax::hide_unseen, Softmax::store_row_logits;
  using Softmax::weigh_strip, Softmax::all_seen, Softmax::some_shift_rises, Softmax::end_sums;

 public:
  AttentionBlock(const AttentionPiece& piece, int64_t first_row, int64_t last_row)
      : AttentionSoftmax<V>(piece, first_row, last_row), tile_(piece, scratch_.tile, scratch_.zero_row) {}

  void attend() {
    clear_totals();
    for (int64_t split = piece_.first_split; split < piece_.last_split; ++split) {
      attend_split(split);
      if (piece_.partials != nullptr) {
        write_partial(split);
      } else {
        for (int64_t i = 0; i < queries_; ++i) merge(i, sums_of(i), scratch_.values + i * padded_);
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
    std::fill_n(scratch_.lanes, queries_ * scratch_.kLanes, 0.0f);
    std::fill_n(scratch_.values, queries_ * padded_, 0.0f);
    for_tiles(split * kSplitSlots, (split + 1) * kSplitSlots, [&](int64_t tile) {
      const auto [first, last] = rows_that_see(tile);
      if constexpr (V::kReadsStrips) {
        const bool few = (last - first) * group_ <= kFewQueries;
        if (few && dim_ % 32 == 0 && tile_.has_strips() && tile >= sink_slots_)
          return with_pairing([&, first = first, last = last](auto paired) {
            with_dim(paired, [&](auto dim) { attend_few(tile, first, last, dim, paired); });
          });
      }
      for (head_ = 0; head_ < piece_.num_kv_heads; ++head_) {
        if (head_ > 0) tile_.next_head();
        asker_.begin(tile_.parts(), head_, head_bytes());
        turn_keys();
        score(tile, first, last);
        store_row_logits(tile, 0, kTileSlots, first, last);
        weigh_and_add(query(first, 0), query(last, 0));
      }
      head_ = 0;
    });
    end_sums();
  }

  // The same of a few queries, with K and V read where they lie, in the order of memory: that is what is waited for.
  template <class Dim, bool kPaired>
  void attend_few(int64_t tile, int64_t first, int64_t last, Dim dim, std::bool_constant<kPaired>) {
    const int64_t count = (last - first) * group_, of_first_head = query(first, 0);
    part_asker_.begin(tile_.parts(), count, kStripQueries);
    for (int64_t slot = 0; slot < kTileSlots; slot += kStripSlots) {
      const bool seen = tile_.is_seen(slot, kStripSlots);
      const bool whole = all_seen(tile, slot, kStripSlots, first, last) && p_.row_logits == nullptr;
      int64_t weighed = of_first_head;
      for (head_ = 0; head_ < piece_.num_kv_heads; ++head_) {
        part_asker_.take();
        if (!seen) continue;
        const int64_t begin = of_first_head + head_ * head_queries_;
        score_strip<kPaired>(slot, begin, count, dim);
        if (!whole) {
          hide_unseen(tile, slot, kStripSlots, first, last);
          store_row_logits(tile, slot, kStripSlots, first, last);
        }
        // A head later, so that nothing waits for logits.
        if (count == head_queries_) {
          for (; weighed + 4 <= begin; weighed += 4) this->template weigh_stored<kPaired, 4>(weighed, slot);
        } else if (head_ > 0) {
          this->template weigh_strip<kPaired>(begin - head_queries_, begin - head_queries_ + count, slot);
        }
      }
      const int64_t end = of_first_head + (piece_.num_kv_heads - 1) * head_queries_ + count;
      if (seen)
        this->template weigh_strip<kPaired>(count == head_queries_ ? weighed : end - count, end, slot);
      for (head_ = 0; head_ < piece_.num_kv_heads; ++head_) {
        part_asker_.take();
        if (seen) add_strip_values<kPaired>(slot, of_first_head + head_ * head_queries_, count, dim);
      }
      head_ = 0;
    }
  }

  template <class Function>
  [[gnu::always_inline]] static void for_few_rows(int64_t count, Function&& f) {
    for (int64_t i = 0; i < count; i += kStripQueries)
      with_rows<kStripQueries>(std::min(count - i, kStripQueries), [&](auto rows) { f(i, rows); });
  }

  // What the register tile of R queries from the ith of `count` on asks for.
  template <int R, class Function>
  [[gnu::always_inline]] void with_ahead(int64_t i, int64_t count, Function&& f) {
    if (count > kStripQueries)
      return i < 2 * kStripQueries
                 ? f(part_asker_.lines<PartAsker::kOfTile>(PartAsker::kOfTile * (i / kStripQueries)))
                 : f(NothingAhead{});
    if constexpr (R == 1) return f(part_asker_.lines<PartAsker::kOfOne>(0));
    f(part_asker_.lines<PartAsker::kOfFew>(0));
  }

  template <bool kPaired, class Dim>
  void score_strip(int64_t slot, int64_t first, int64_t count, Dim dim) {
    const char* const keys = tile_.strip_keys(slot, head_);
    for_few_rows(count, [&](int64_t i, auto rows) {
      constexpr int R = rows;
      F sum[R];
      with_ahead<R>(i, count,
                    [&](auto ahead) { multiply_few<kPaired, R>(first + i, keys, dim, sum, ahead); });
      for (int r = 0; r < R; ++r)
        V::store(scratch_.scores + (first + i + r) * kTileSlots + slot, logits_of(sum[r]));
    });
  }

  template <bool kPaired, int R, class Dim, class Ahead>
  [[gnu::always_inline]] void multiply_few(int64_t i, const char* keys, Dim dim, F (&sum)[R],
                                           const Ahead& ahead) {
    if constexpr (kPaired) {
      const int64_t q_bytes = query_bytes(dim);
      dot_strip<V, R>(reinterpret_cast<const char*>(scratch_.q) + i * q_bytes, q_bytes, keys, dim, sum,
                      ahead);
    } else {
      with_element(p_.layout.dtype, [&](auto element) {
        multiply_strip<V, decltype(element), R>(scratch_.q + i * padded_, padded_, keys, dim, sum, ahead);
      });
    }
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
    hide_unseen(tile, 0, kTileSlots, first, last);
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
        clear<R, N, V>(sum);
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

  // ---- values ---------------------------------------------------------------------------------------------

  // Strip by strip as a few queries do it, but for V, which is met in one go where no shift rises in between.
  void weigh_and_add(int64_t first, int64_t last) {
    ask_during(kSoftmax, last - first, kReadsNothing);
    int64_t added = 0;
    for (int64_t slot = 0; slot < kTileSlots; slot += kStripSlots) {
      if (slot > added && some_shift_rises(first, last, slot)) {
        add_values(first, last, added, slot);
        added = slot;
      }
      for (int64_t i = first; i < last; i += 4) {
        with_pairing(
            [&](auto paired) { this->template weigh_strip<paired>(i, std::min(i + 4, last), slot); });
        ask_some();
      }
    }
    add_values(first, last, added, kTileSlots);
  }

  // values[query] += weights of slots [begin, end) of the tile times their V, summed in f32. An output meets the same products in the
  // same order however many queries there are. In f32 a few queries read V where it lies; for many it is widened once.
  void add_values(int64_t first, int64_t last, int64_t begin, int64_t end) {
    if constexpr (V::kHasDot) {
      if (has_paired_values()) return add_paired_values(first, last, begin, end);
    }
    ask_during(kValues, kTileSlots * std::max<int64_t>(1, padded_ / 64), kReads);
    with_element(p_.layout.dtype, [&](auto element) {
      using Kv = decltype(element);
      if (last - first <= kFewQueries && dim_ % 16 == 0) {
        const auto runs = [&](auto&& f) { tile_.for_value_runs(begin, end, f); };
        return add_values_from<FloatProduct<V, Kv>>(first, last, tile_.token_bytes(), runs);
      }
      if (begin == 0) tile_.template widen_values<Kv>();
      const int64_t row_bytes = padded_ * static_cast<int64_t>(sizeof(float));
      const auto whole = [&](auto&& f) { f(begin, end - begin, tile_.bytes() + begin * row_bytes); };
      add_values_from<FloatProduct<V, float>>(first, last, row_bytes, whole);
    });
  }

  // Calls f with the head's size, as a constant where that is worth code of its own: addresses are then known.
  template <bool kPaired, class Function>
  void with_dim(std::bool_constant<kPaired>, Function&& f) const {
    if constexpr (kPaired) {
      if (dim_ == 128) return f(std::integral_constant<int64_t, 128>{});
      if (dim_ == 64) return f(std::integral_constant<int64_t, 64>{});
    }
    f(dim_);
  }
  // Calls f with whether V is met in pairs of slots.
  template <class Function>
  [[gnu::always_inline]] void with_pairing(Function&& f) const {
    if constexpr (V::kHasDot) {
      if (has_paired_values()) return f(std::true_type{});
    }
    f(std::false_type{});
  }

  // Weights of slots [begin, end) of the tile times their V, for many queries.
  void add_paired_values(int64_t first, int64_t last, int64_t begin, int64_t end) {
    with_dim(std::true_type{}, [&](auto dim) {
      const auto add = [&](auto vectors, int64_t column) {
        const auto value_of = [&](int64_t slot) { return tile_.values()[begin + slot] + 2 * column; };
        for_row_tiles<6>(last - first, [&](int64_t i, auto tile_rows) {
          add_weighted<V, tile_rows, vectors>(scratch_.scores + (first + i) * kTileSlots + begin / 2,
                                              value_of, end - begin, values_of(first + i) + column, dim,
                                              NothingAhead{}, 0);
        });
      };
      int64_t column = 0;
      for (; column + 64 <= dim; column += 64) add(std::integral_constant<int, 4>{}, column);
      for (; column < dim; column += 32) add(std::integral_constant<int, 2>{}, column);
    });
  }

  // Weights of a strip times its V, for few.
  template <bool kPaired, class Dim>
  void add_strip_values(int64_t slot, int64_t first, int64_t count, Dim dim) {
    const char* const of_strip = tile_.strip_values(slot, head_);
    for_few_rows(count, [&](int64_t i, auto rows) {
      const int64_t word = kPaired ? slot / 2 : slot;
      const StripQueries queries{scratch_.scores + (first + i) * kTileSlots + word, values_of(first + i)};
      with_ahead<rows>(i, count, [&](auto ahead) {
        if constexpr (kPaired) {
          add_paired_strip<rows>(queries, of_strip, dim, ahead);
        } else {
          with_element(p_.layout.dtype, [&](auto element) {
            add_strip<V, decltype(element), rows>(queries.weights, of_strip, dim, queries.values, ahead);
          });
        }
      });
    });
  }

  // Some queries that meet a strip: their weights of it, their values so far.
  struct StripQueries {
    const float* weights;
    float* values;
  };

  // As many columns at a time as leave registers for all of the queries.
  template <int R, class Dim, class Ahead>
  void add_paired_strip(const StripQueries& queries, const char* of_strip, Dim dim, const Ahead& ahead) {
    int64_t column = 0;
    const auto add = [&](auto vectors) __attribute__((always_inline)) {
      const auto value_of = [&](int64_t slot) __attribute__((always_inline)) {
        return of_strip + slot * 2 * dim + 2 * column;
      };
      add_weighted<V, R, vectors>(queries.weights, value_of, std::integral_constant<int64_t, kStripSlots>{},
                                  queries.values + column, dim, ahead, 2 * kStripSlots * column);
    };
    if constexpr (R <= 3)
      for (; column + 128 <= dim; column += 128) add(std::integral_constant<int, 8>{});
    for (; column + 64 <= dim; column += 64) add(std::integral_constant<int, 4>{});
    for (; column < dim; column += 32) add(std::integral_constant<int, 2>{});
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
  static constexpr int64_t kStripQueries = 4;  // of a register tile: more leave too few registers
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
