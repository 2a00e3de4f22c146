// K and V of kTileSlots list slots, found through the block table and laid out for the register tiles.
// A tile's blocks lie anywhere in the pool, so no prefetcher of the machine knows where the next one is: its
// lines are asked for while this one is multiplied, in the order in which they lie in memory. Heads that share
// a list lie beside each other, so that a block is one run for all of them (measured on 8 heads of 128 in
// bf16, blocks of 16: head after head over a whole list reads at 0.78 of a stream, tile after tile at 0.97).
#pragma once

#include <algorithm>
#include <cstring>

#include "kernels/cpu/op_table.h"
#include "kernels/cpu/vector_math.h"

namespace quire::cpu {

// Asks for the lines of a tile, in the order of memory. All at once would fill the core's miss buffers and stop
// it.
class TileAsker {
 public:
  TileAsker() = default;
  // K and V of blocks table[0] to table[num_blocks], from `base` on: of each, `heads` pieces of piece_bytes.
  TileAsker(const KvLayout& layout, const char* base, const int32_t* table, int64_t num_blocks, int64_t heads,
            int64_t piece_bytes)
      : table_(table),
        end_(table + num_blocks),
        base_(base),
        block_bytes_(layout.block_bytes()),
        kv_stride_(layout.kv_stride()),
        head_stride_(layout.head_stride()),
        piece_bytes_(piece_bytes),
        heads_(heads) {
    if (table_ < end_) begin_piece();
  }

  [[gnu::always_inline]] void ask(int64_t lines) {
    if (table_ == end_) return;
    for (int64_t i = 0; i < lines; ++i) __builtin_prefetch(next_ + 64 * i, 0, 2);
    next_ += 64 * lines;  // a line or two past the end of a piece is the next one's, or wasted
    if (next_ >= piece_end_) end_piece();
  }

 private:
  void begin_piece() {
    next_ = base_ + *table_ * block_bytes_ + (values_ ? kv_stride_ : 0) + head_ * head_stride_;
    piece_end_ = next_ + piece_bytes_;
  }
  void end_piece() {
    if (++head_ == heads_) {
      head_ = 0;
      if (values_) ++table_;
      values_ = !values_;
    }
    if (table_ < end_) begin_piece();
  }

  const int32_t* table_ = nullptr;
  const int32_t* end_ = nullptr;
  const char* base_ = nullptr;
  const char* next_ = nullptr;
  const char* piece_end_ = nullptr;
  int64_t block_bytes_ = 0, kv_stride_ = 0, head_stride_ = 0, piece_bytes_ = 0, heads_ = 0, head_ = 0;
  bool values_ = false;
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

  // Slots [tile, tile + kTileSlots) of the list, of which some query sees [begin, end), under the piece's first
  // head.
  void enter(int64_t tile, int64_t begin, int64_t end) {
    tile_ = tile, begin_ = begin - tile, end_ = end - tile;
    // Slots that nobody sees may not exist, or hold anything.
    std::fill_n(keys_, kTileSlots, reinterpret_cast<const char*>(zero_row_));
    std::fill_n(values_, kTileSlots, reinterpret_cast<const char*>(zero_row_));
    find_rows();
  }
  // From here on K and V are those of the next head.
  void next_head() {
    const int64_t step = layout_.head_stride();
    for (int64_t slot = begin_; slot < end_; ++slot) keys_[slot] += step, values_[slot] += step;
  }

  // Lines of the next tile for `heads` heads; of none where the list ends at `last`.
  TileAsker next_lines(int64_t last, int64_t heads) const {
    const int64_t next = tile_ + kTileSlots, tokens = layout_.block_tokens;
    if (next >= last) return {};
    const int64_t first = next / tokens, end = (std::min(last, next + kTileSlots) + tokens - 1) / tokens;
    return {layout_, base_ + (next - first * tokens) * token_bytes_, table_ + first, end - first,
            heads,   std::min(tokens, kTileSlots) * token_bytes_};
  }

  const float* buffer() const { return buffer_; }
  const char* bytes() const { return reinterpret_cast<const char*>(buffer_); }

  // In all of these between() runs after each piece of the work: a place to ask for memory that comes next.

  // buffer[i][slot] = K[slot][i]
  template <class Kv, class Between>
  void turn_keys(Between between) {
    float* const buffer = buffer_;
    for (int64_t slot = 0; slot < kTileSlots; slot += 16) {
      const char* const* rows = keys_ + slot;
      for (int64_t i = 0; i < dim_; i += 16) {
        F square[16];
        for (int j = 0; j < 16; ++j)
          square[j] = load_some<V>(reinterpret_cast<const Kv*>(rows[j]) + i, dim_ - i);
        V::transpose(square);
        for (int j = 0; j < 16; ++j) V::store(buffer + (i + j) * kTileSlots + slot, square[j]);
        between();
      }
    }
  }

  // The same from bf16, two dimensions at a time: half the shuffles.
  template <class Between>
  void turn_bf16_keys(Between between) {
    float* const buffer = buffer_;
    for_pair_squares([&](int64_t slot, int64_t i, const typename V::Pairs(&square)[16]) {
      for (int j = 0; j < 16; ++j) {
        V::store(buffer + (i + 2 * j) * kTileSlots + slot, V::even(square[j]));
        V::store(buffer + (i + 2 * j + 1) * kTileSlots + slot, V::odd(square[j]));
      }
      between();
    });
  }

  // buffer[i / 2][slot] = the bf16 pair K[slot][i], K[slot][i + 1], for dot instructions
  template <class Between>
  void pair_keys(Between between) {
    float* const buffer = buffer_;
    for_pair_squares([&](int64_t slot, int64_t i, const typename V::Pairs(&square)[16])
                         __attribute__((always_inline)) {
                           float* const column = buffer + i / 2 * kTileSlots + slot;
#pragma GCC unroll 16
                           for (int j = 0; j < 16; ++j) V::store_pairs(column + j * kTileSlots, square[j]);
                           between();
                         });
  }

  // buffer[slot / 2][i] = the bf16 pair V[slot][i], V[slot + 1][i], for dot instructions; zeros in slots that
  // nobody sees. Dimensions lie as V::zip leaves them.
  template <class Between>
  void pair_values(Between between) {
    float* const buffer = buffer_;
    const int64_t dim = dim_, width = turned_dim(dim);
    for (int64_t slot = 0; slot < kTileSlots; slot += 2) {
      const char* const even = values_[slot];
      const char* const odd = values_[slot + 1];
      float* const row = buffer + slot / 2 * width;
      int64_t i = 0;
      typename V::Pairs low, high;
      for (; i + 32 <= dim; i += 32) {
        V::zip(V::load_pairs(even + 2 * i), V::load_pairs(odd + 2 * i), low, high);
        V::store_pairs(row + i, low);
        V::store_pairs(row + i + 16, high);
      }
      if (i < dim) {
        V::zip(last_pairs(even + 2 * i, dim - i), last_pairs(odd + 2 * i, dim - i), low, high);
        V::store_pairs(row + i, low);
        V::store_pairs(row + i + 16, high);
      }
      between();
    }
  }

  // buffer[slot][i] = V[slot][i], zeros in slots that nobody sees
  template <class Kv>
  void widen_values() {
    float* const buffer = buffer_;
    for (int64_t slot = 0; slot < kTileSlots; ++slot) {
      const char* row = values_[slot];
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
      while (last < end_ && values_[last] == values_[last - 1] + token_bytes_) ++last;
      f(slot, last - slot, values_[slot]);
      slot = last;
    }
  }

  // V of each slot, where it lies.
  const char* const* value_rows() const { return values_; }

  int64_t token_bytes() const { return token_bytes_; }

 private:
  void find_rows() {
    const int64_t tokens = layout_.block_tokens, block_bytes = layout_.block_bytes(),
                  kv_stride = layout_.kv_stride();
    const int64_t end = tile_ + end_;
    for (int64_t slot = tile_ + begin_; slot < end;) {  // a division each slot was a fifth of the keys' time
      const int64_t block = slot / tokens, block_end = std::min(end, (block + 1) * tokens);
      const char* row = base_ + table_[block] * block_bytes + (slot - block * tokens) * token_bytes_;
      for (; slot < block_end; ++slot, row += token_bytes_)
        keys_[slot - tile_] = row, values_[slot - tile_] = row + kv_stride;
    }
  }

  template <class Function>
  [[gnu::always_inline]] void for_pair_squares(Function&& f) {
    const int64_t dim = dim_;
    for (int64_t slot = 0; slot < kTileSlots; slot += 16) {
      const char* rows[16];
      std::copy_n(keys_ + slot, 16, rows);
      typename V::Pairs square[16];
      int64_t i = 0;
      for (; i + 32 <= dim; i += 32) {
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j) square[j] = V::load_pairs(rows[j] + 2 * i);
        V::transpose(square);
        f(slot, i, square);
      }
      if (i == dim) continue;
      for (int j = 0; j < 16; ++j) square[j] = last_pairs(rows[j] + 2 * i, dim - i);
      V::transpose(square);
      f(slot, i, square);
    }
  }

  static typename V::Pairs last_pairs(const char* row, int64_t count) {
    uint16_t whole[32] = {};
    std::memcpy(whole, row, static_cast<size_t>(count) * sizeof(uint16_t));
    return V::load_pairs(whole);
  }

  KvLayout layout_;
  const int32_t* table_;
  const char* base_;
  int64_t token_bytes_, dim_, padded_;
  float* buffer_;
  float* zero_row_;
  const char* keys_[kTileSlots];
  const char* values_[kTileSlots];
  int64_t tile_ = 0, begin_ = 0, end_ = 0;
};

}  // namespace quire::cpu
