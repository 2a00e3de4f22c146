// K and V of kTileSlots list slots, found through the block table and laid out for the register tiles.
// A tile's blocks lie anywhere in the pool, so no prefetcher of the machine knows where the next one is: lines
// are asked for while the head before is multiplied, in the order in which they will be read. Heads that share a
// list are taken together, tile by tile, so that a block is read whole within a tile's time.
#pragma once

#include <algorithm>
#include <cstring>

#include "kernels/cpu/op_table.h"
#include "kernels/cpu/vector_math.h"

namespace quire::cpu {

// Where K and then V of one head lie in the tile's blocks, in the order in which they are read.
struct HeadPieces {
  const char* starts[2 * (kTileSlots + 1)];
  int64_t count = 0;
  int64_t bytes = 0;  // of each
};

// Asks for memory before it is read, a head's part of a tile at a time, and for every line twice. A core that has
// as many misses on their way as it can hold forgets what else it is asked for (with nothing but requests it
// took 200 GB/s of them where memory gives 40), and each forgotten line stops the products for a whole latency.
// The second request comes near enough to the use to be cheap, and early enough to hide what the first lost:
// one request a line reached 0.76 of a stream, two 0.95, on 8 heads of 128 in bf16 (2 cores at 52 GB/s).
class LineAsker {
 public:
  // `now` is read from here on, after it `next`.
  void begin(const HeadPieces& now, const HeadPieces& next) {
    const int64_t ahead = std::min(now.count, (kNearBytes + now.bytes - 1) / std::max<int64_t>(1, now.bytes));
    near_.begin(now, ahead);
    far_.begin(next, 0);
  }
  // Some lines of what is read next, and some of what is read a head later.
  [[gnu::always_inline]] void ask(int64_t near_lines, int64_t far_lines) {
    near_.ask(near_lines);
    far_.ask(far_lines);
  }

 private:
  static constexpr int64_t kNearBytes = 8 << 10;  // 2 to 8 KiB measured alike

  struct Cursor {
    const HeadPieces* pieces = nullptr;
    int64_t piece = 0;
    const char* next = nullptr;
    const char* end = nullptr;

    void begin(const HeadPieces& of, int64_t first) {
      pieces = &of, piece = first;
      begin_piece();
    }
    void begin_piece() {
      if (piece >= pieces->count) return void(next = nullptr);
      next = pieces->starts[piece], end = next + pieces->bytes;
    }
    [[gnu::always_inline]] void ask(int64_t lines) {
      if (next == nullptr) return;
      for (int64_t i = 0; i < lines; ++i) __builtin_prefetch(next + 64 * i, 0, 3);
      next += 64 * lines;  // a line or two past the end of a piece are the next one's, or wasted
      if (next >= end) ++piece, begin_piece();
    }
  };
  Cursor near_, far_;
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

  // Of head `head` of the piece, in the tile that starts at `tile`; nothing where the list ends at `last`.
  void find_pieces(int64_t tile, int64_t head, int64_t last, HeadPieces& pieces) const {
    const int64_t tokens = layout_.block_tokens;
    pieces.count = 0, pieces.bytes = std::min(tokens, kTileSlots) * token_bytes_;
    if (tile >= last) return;
    const int64_t first = tile / tokens, end = (std::min(last, tile + kTileSlots) + tokens - 1) / tokens;
    const char* const base = base_ + (tile - first * tokens) * token_bytes_ + head * layout_.head_stride();
    for (const int64_t of_kind : {int64_t{0}, layout_.kv_stride()}) {
      for (int64_t block = first; block < end; ++block)
        pieces.starts[pieces.count++] = base + table_[block] * layout_.block_bytes() + of_kind;
    }
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
