// K and V of kTileSlots list slots, found through the block table and laid out for the register tiles.
// A tile's blocks lie anywhere in the pool, so no prefetcher of the machine knows where the next one is: its
// rows are asked for while this one is multiplied, V during the logits and K during the values.
#pragma once

#include <algorithm>
#include <cstring>

#include "kernels/cpu/op_table.h"
#include "kernels/cpu/vector_math.h"

namespace quire::cpu {

// Asks for rows of memory a line at a time. A whole tile at once would fill the core's miss buffers and stop
// it.
template <class V>
class RowAsker {
 public:
  RowAsker() = default;
  RowAsker(const char* const* rows, int64_t count, int64_t offset, int64_t row_bytes)
      : rows_(rows), count_(count), offset_(offset), row_bytes_(row_bytes) {}

  // Lines per step that leave nothing over after `steps` steps.
  int64_t lines_per_step(int64_t steps) const {
    return (count_ * ((row_bytes_ + 63) / 64) + steps - 1) / steps;
  }

  [[gnu::always_inline]] void ask(int64_t lines) {
    for (int64_t i = 0; i < lines && row_ < count_; ++i) {
      __builtin_prefetch(rows_[row_] + offset_ + byte_, 0, 2);
      byte_ += 64;
      if (byte_ >= row_bytes_) byte_ = 0, ++row_;
    }
  }

 private:
  const char* const* rows_ = nullptr;
  int64_t count_ = 0, offset_ = 0, row_bytes_ = 0, row_ = 0, byte_ = 0;
};

template <class V>
class KvTile {
  using F = typename V::F;

 public:
  // `buffer` holds kTileSlots * turned_dim(head_dim) floats, `zero_row` head_dim rounded up to 32.
  KvTile(const AttentionPiece& piece, float* buffer, float* zero_row) : buffer_(buffer), zero_row_(zero_row) {
    const AttentionParams& p = *piece.p;
    const bool own_list = p.head_table_stride != 0;
    layout_ = p.layout;
    table_ = p.block_table + piece.sequence * p.table_stride + piece.kv_head * p.head_table_stride;
    base_ = p.arena + (own_list ? 0 : piece.kv_head) * layout_.head_stride();
    token_bytes_ = layout_.token_bytes();
    dim_ = p.head_dim;
    padded_ = padded_dim(dim_);
    std::fill_n(zero_row_, turned_dim(dim_), 0.0f);
  }

  // Slots [tile, tile + kTileSlots) of the list, of which some query sees [begin, end); more tiles end at
  // `last`.
  void enter(int64_t tile, int64_t begin, int64_t end, int64_t last) {
    if (tile == next_tile_) {
      std::swap(rows_, next_rows_);
    } else {
      find_rows(tile, begin, end, *rows_);
    }
    begin_ = begin - tile, end_ = end - tile;
    next_tile_ = tile + kTileSlots < last ? tile + kTileSlots : -1;
    next_count_ = std::min(kTileSlots, last - tile - kTileSlots);
    if (next_tile_ >= 0)
      find_rows(next_tile_, next_tile_, std::min(last, next_tile_ + kTileSlots), *next_rows_);
  }

  const float* buffer() const { return buffer_; }
  const char* bytes() const { return reinterpret_cast<const char*>(buffer_); }

  // buffer[i][slot] = K[slot][i]
  template <class Kv>
  void turn_keys() {
    float* const buffer = buffer_;
    for (int64_t slot = 0; slot < kTileSlots; slot += 16) {
      const char* const* rows = *rows_ + slot;
      for (int64_t i = 0; i < dim_; i += 16) {
        F square[16];
        for (int j = 0; j < 16; ++j)
          square[j] = load_some<V>(reinterpret_cast<const Kv*>(rows[j]) + i, dim_ - i);
        V::transpose(square);
        for (int j = 0; j < 16; ++j) V::store(buffer + (i + j) * kTileSlots + slot, square[j]);
      }
    }
  }

  // The same from bf16, two dimensions at a time: half the shuffles.
  void turn_bf16_keys() {
    float* const buffer = buffer_;
    for_pair_squares([&](int64_t slot, int64_t i, const typename V::Pairs(&square)[16]) {
      for (int j = 0; j < 16; ++j) {
        V::store(buffer + (i + 2 * j) * kTileSlots + slot, V::even(square[j]));
        V::store(buffer + (i + 2 * j + 1) * kTileSlots + slot, V::odd(square[j]));
      }
    });
  }

  // buffer[i / 2][slot] = the bf16 pair K[slot][i], K[slot][i + 1], for dot instructions
  void pair_keys() {
    float* const buffer = buffer_;
    for_pair_squares([&](int64_t slot, int64_t i, const typename V::Pairs(&square)[16]) {
      for (int j = 0; j < 16; ++j) V::store_pairs(buffer + (i / 2 + j) * kTileSlots + slot, square[j]);
    });
  }

  // buffer[slot][i] = V[slot][i], zeros in slots that nobody sees
  template <class Kv>
  void widen_values() {
    float* const buffer = buffer_;
    for (int64_t slot = 0; slot < kTileSlots; ++slot) {
      const bool seen = slot >= begin_ && slot < end_;
      const char* row =
          seen ? (*rows_)[slot] + layout_.kv_stride() : reinterpret_cast<const char*>(zero_row_);
      for (int64_t i = 0; i < dim_; i += 16) {
        V::store(buffer + slot * padded_ + i, load_some<V>(reinterpret_cast<const Kv*>(row) + i, dim_ - i));
      }
    }
  }

  // Calls f(slot, count, V of the first) for the runs of seen slots that lie at token_bytes from each other.
  template <class Function>
  [[gnu::always_inline]] void for_value_runs(Function&& f) const {
    for (int64_t slot = begin_; slot < end_;) {
      int64_t last = slot + 1;
      while (last < end_ && (*rows_)[last] == (*rows_)[last - 1] + token_bytes_) ++last;
      f(slot, last - slot, (*rows_)[slot] + layout_.kv_stride());
      slot = last;
    }
  }

  int64_t token_bytes() const { return token_bytes_; }

  // The rows of the next tile, if there is one.
  RowAsker<V> next_keys() const { return next_rows(0); }
  RowAsker<V> next_values() const { return next_rows(layout_.kv_stride()); }

 private:
  using Rows = const char* [kTileSlots];

  void find_rows(int64_t tile, int64_t begin, int64_t end, Rows& rows) const {
    const int64_t tokens = layout_.block_tokens, block_bytes = layout_.block_bytes();
    // Slots that nobody sees may not exist, or hold anything.
    std::fill_n(rows, kTileSlots, reinterpret_cast<const char*>(zero_row_));
    for (int64_t slot = begin; slot < end;) {  // a division each slot was a fifth of the keys' time
      const int64_t block = slot / tokens, block_end = std::min(end, (block + 1) * tokens);
      const char* row = base_ + table_[block] * block_bytes + (slot - block * tokens) * token_bytes_;
      for (; slot < block_end; ++slot, row += token_bytes_) rows[slot - tile] = row;
    }
  }

  template <class Function>
  [[gnu::always_inline]] void for_pair_squares(Function&& f) {
    for (int64_t slot = 0; slot < kTileSlots; slot += 16) {
      const char* const* rows = *rows_ + slot;
      for (int64_t i = 0; i < dim_; i += 32) {
        typename V::Pairs square[16];
        if (dim_ - i >= 32) {
          for (int j = 0; j < 16; ++j) square[j] = V::load_pairs(rows[j] + 2 * i);
        } else {
          for (int j = 0; j < 16; ++j) square[j] = last_pairs(rows[j] + 2 * i, dim_ - i);
        }
        V::transpose(square);
        f(slot, i, square);
      }
    }
  }

  static typename V::Pairs last_pairs(const char* row, int64_t count) {
    uint16_t whole[32] = {};
    std::memcpy(whole, row, static_cast<size_t>(count) * sizeof(uint16_t));
    return V::load_pairs(whole);
  }

  RowAsker<V> next_rows(int64_t offset) const {
    return next_tile_ < 0 ? RowAsker<V>() : RowAsker<V>(*next_rows_, next_count_, offset, token_bytes_);
  }

  KvLayout layout_;
  const int32_t* table_;
  const char* base_;
  int64_t token_bytes_, dim_, padded_;
  float* buffer_;
  float* zero_row_;
  Rows store_[2];
  Rows* rows_ = &store_[0];
  Rows* next_rows_ = &store_[1];
  int64_t begin_ = 0, end_ = 0, next_tile_ = -1, next_count_ = 0;
};

}  // namespace quire::cpu
