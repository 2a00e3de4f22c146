// K and V of kTileSlots list slots, found through the block table and laid out for the register tiles.
// A tile's blocks lie anywhere in the pool, so no prefetcher of the machine knows where the next one is: lines
// are asked for while the head before is multiplied, in the order in which they will be read. Heads that share a
// list are taken together, tile by tile, so that a block is read whole within a tile's time.
#pragma once

#include <algorithm>
#include <cstring>
#include <span>

#include "kernels/cpu/op_table.h"
#include "kernels/cpu/vector_math.h"

namespace quire::cpu {
namespace {

// Where K of a tile and of the next one lies, of the piece's first head, in parts that are contiguous: strips where
// a block is of whole ones.
struct TileParts {
  const char* starts[2 * kTileSlots];  // null: no such slots
  int64_t per_tile = 0, bytes = 0;
  int64_t heads = 0, head_stride = 0, kv_stride = 0;
};

// A place in the order in which lines are read: K and then V of one head, part by part, then of the next head, then
// of the next tile.
class LineCursor {
 public:
  LineCursor() = default;
  LineCursor(const TileParts& parts, int64_t head, int64_t bytes_ahead) : parts_(&parts), head_(head) {
    find();
    for (; bytes_ahead > 0 && next_ != nullptr; bytes_ahead -= parts.bytes) step();
  }

  [[gnu::always_inline]] void ask(int64_t lines) {
    if (next_ == nullptr) return;
    for (int64_t i = 0; i < lines; ++i) __builtin_prefetch(next_ + 64 * i, 0, 3);
    next_ += 64 * lines;  // a line or two past the end of a part are the next one's, or wasted
    if (next_ >= end_) step();
  }

 private:
  [[gnu::noinline]] void step() {
    do {
      step_once();
      find();
    } while (next_ == nullptr && tile_ < 2);
  }
  void step_once() {
    if (++part_ < parts_->per_tile) return;
    part_ = 0, values_ = !values_;
    if (values_ || ++head_ < parts_->heads) return;
    head_ = 0, ++tile_;
  }
  void find() {
    next_ = tile_ == 2 ? nullptr : parts_->starts[tile_ * parts_->per_tile + part_];
    if (next_ == nullptr) return;
    next_ += head_ * parts_->head_stride + (values_ ? parts_->kv_stride : 0);
    end_ = next_ + parts_->bytes;
  }

  const TileParts* parts_ = nullptr;
  int64_t tile_ = 0, part_ = 0, head_ = 0;
  bool values_ = false;
  const char* next_ = nullptr;
  const char* end_ = nullptr;
};

// Parts of which a line each is asked for when a line of the present one is read.
template <int N>
struct LinesAhead {
  const char* parts[N];
  [[gnu::always_inline]] void ask(int64_t byte) const {
#pragma GCC unroll 8
    for (const char* part : parts) __builtin_prefetch(part + byte, 0, 3);
  }
};
struct NothingAhead {
  void ask(int64_t) const {}
};

// Asks for memory before it is read, and for every line more than once. A core that has as many misses on their way
// as it can hold forgets what else it is asked for (with nothing but requests it took 200 GB/s of them where memory
// gives 40), and each forgotten line stops the products for a whole latency. So a line is asked for again nearer to
// its use; what has come costs an instruction. Measured on 8 heads of 128 in bf16 by a few queries: README.md.
class LineAsker {
 public:
  // From a head of the tile on, for many queries: a head ahead, and once more.
  void begin(const TileParts& parts, int64_t head, int64_t head_bytes) {
    near_ = LineCursor(parts, head, kNearBytes);
    far_ = LineCursor(parts, head, head_bytes);
  }
  // Some lines of what is read next, and some of what is read a head later.
  [[gnu::always_inline]] void ask(int64_t near_lines, int64_t far_lines) {
    near_.ask(near_lines);
    far_.ask(far_lines);
  }

 private:
  static constexpr int64_t kNearBytes = 8 << 10;
  LineCursor near_, far_;
};

// The same where memory is read in its own order, part by part: K of all heads of a part, V of all its heads, then the
// next part.
class PartCursor {
 public:
  PartCursor() = default;
  explicit PartCursor(const TileParts& parts) : parts_(&parts) { find(); }

  // One head's share of a part, or null after the list's last or the next tile's; on to the next head's.
  const char* take() {
    const char* const share = next_;
    if (share == nullptr) return nullptr;
    next_ += parts_->head_stride;
    if (++head_ == parts_->heads) step();
    return share;
  }

 private:
  [[gnu::noinline]] void step() {
    head_ = 0, values_ = !values_;
    if (!values_) ++part_;
    find();
  }
  void find() {
    next_ = part_ == 2 * parts_->per_tile ? nullptr : parts_->starts[part_];
    if (next_ != nullptr && values_) next_ += parts_->kv_stride;
  }

  const TileParts* parts_ = nullptr;
  int64_t part_ = 0, head_ = 0;  // parts of the tile and of the next
  bool values_ = false;
  const char* next_ = nullptr;
};

// How far ahead a few queries ask, and how often a line, was measured (README.md): one query asks for less, or it asks
// faster than memory gives; where queries meet a line in two register tiles each of them asks for half.
class PartAsker {
 public:
  static constexpr int kOfOne = 2, kOfFew = 5, kOfTile = 2;

  void begin(const TileParts& parts, int64_t queries, int64_t tile_queries) {
    const std::span<const int64_t> ahead = queries == 1              ? std::span<const int64_t>(kOneAhead)
                                           : queries <= tile_queries ? std::span<const int64_t>(kFewAhead)
                                                                     : std::span<const int64_t>(kTilesAhead);
    farthest_ = PartCursor(parts), first_ = parts.starts[0], taken_ = 0, most_ = 0;
    count_ = static_cast<int>(ahead.size());
    for (int i = 0; i < count_; ++i) {
      ahead_[i] = std::min((ahead[i] + parts.bytes - 1) / parts.bytes, kShares - 1);
      most_ = std::max(most_, ahead_[i]);
    }
    for (int64_t i = 0; i < most_; ++i) shares_[i] = next_share();
  }
  // On to the next head's share of a part.
  void take() {
    shares_[(taken_ + most_) % kShares] = next_share();
    for (int i = 0; i < count_; ++i) lines_[i] = shares_[(taken_ + ahead_[i]) % kShares];
    ++taken_;
  }
  // What to ask for while it is read: N of the shares ahead, from the `from`th on.
  template <int N>
  LinesAhead<N> lines(int64_t from) const {
    LinesAhead<N> lines;
    std::copy_n(lines_ + from, N, lines.parts);
    return lines;
  }

 private:
  static constexpr int64_t kShares = 64;
  static constexpr int64_t kOneAhead[kOfOne] = {4 << 10, 8 << 10};
  static constexpr int64_t kFewAhead[kOfFew] = {4 << 10, 8 << 10, 12 << 10, 20 << 10, 32 << 10};
  static constexpr int64_t kTilesAhead[2 * kOfTile] = {4 << 10, 12 << 10, 8 << 10, 16 << 10};

  const char* next_share() {
    const char* const share = farthest_.take();
    return share == nullptr ? first_ : share;  // asked for again where nothing comes
  }

  PartCursor farthest_;
  const char* first_ = nullptr;
  int count_ = 0;
  int64_t taken_ = 0, most_ = 0;
  int64_t ahead_[kOfFew];
  const char* shares_[kShares];  // a ring: the next ones
  const char* lines_[kOfFew];
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
    heads_ = piece.num_kv_heads;
    table_ = p.block_table + piece.sequence * p.table_stride + piece.kv_head * p.head_table_stride;
    base_ = p.arena + (own_list ? 0 : piece.kv_head) * layout_.head_stride();
    token_bytes_ = layout_.token_bytes();
    dim_ = p.head_dim;
    padded_ = padded_dim(dim_);
    const int64_t part_slots = std::min<int64_t>(kStripSlots, layout_.block_tokens);
    parts_.per_tile = kTileSlots / part_slots;
    parts_.bytes = part_slots * token_bytes_, parts_.heads = heads_;
    parts_.head_stride = layout_.head_stride(), parts_.kv_stride = layout_.kv_stride();
    std::fill_n(zero_row_, turned_dim(dim_), 0.0f);
  }

  // Slots [tile, tile + kTileSlots) of the list, of which some query sees [begin, end), under the piece's first
  // head. The list ends at `last`.
  void enter(int64_t tile, int64_t begin, int64_t end, int64_t last) {
    tile_ = tile, begin_ = begin - tile, end_ = end - tile;
    find_parts(last);
    // Slots that nobody sees may not exist, or hold anything.
    std::fill_n(keys_, kTileSlots, zero_row());
    std::fill_n(values_, kTileSlots, zero_row());
    find_rows();
  }
  // From here on K and V are those of the next head.
  void next_head() {
    const int64_t step = layout_.head_stride();
    for (int64_t slot = begin_; slot < end_; ++slot) keys_[slot] += step, values_[slot] += step;
  }
  // K, or V, of a strip under a head counted from the present one, slot after slot: where it lies, or a copy where not
  // all of its slots are seen, zeros for those that are not.
  const char* strip_keys(int64_t slot, int64_t head) { return strip(keys_, slot, head); }
  const char* strip_values(int64_t slot, int64_t head) { return strip(values_, slot, head); }
  // Strips are parts of blocks.
  bool has_strips() const { return parts_.per_tile == kTileSlots / kStripSlots; }
  bool is_seen(int64_t slot, int64_t count) const { return slot < end_ && slot + count > begin_; }
  const char* const* values() const { return values_; }

  const TileParts& parts() const { return parts_; }

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

  // For dots (tile_strip.h): for each 64 bytes of K four steps of turned_step_bytes(), in each all slots by fours.
  static constexpr int64_t turned_step_bytes() { return 16 * kTileSlots; }
  template <class Between>
  void turn_quarters(Between between) {
    char* const buffer = reinterpret_cast<char*>(buffer_);
    for (int64_t slot = 0; slot < kTileSlots; slot += 4) {
      for (int64_t i = 0; i < dim_; i += 32) {
        typename V::Pairs rows[4], turned[4];
        for (int j = 0; j < 4; ++j) rows[j] = some_pairs(keys_[slot + j] + 2 * i, dim_ - i);
        V::turn_quarters(rows[0], rows[1], rows[2], rows[3], turned);
        char* const target = buffer + i / 8 * turned_step_bytes() + 16 * slot;
        for (int c = 0; c < 4; ++c) V::store_pairs(target + c * turned_step_bytes(), turned[c]);
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

  // Calls f(slot, count, V of the first) for the runs of seen slots in [begin, end) that lie at token_bytes from each other.
  template <class Function>
  [[gnu::always_inline]] void for_value_runs(int64_t begin, int64_t end, Function&& f) const {
    end = std::min(end, end_);
    for (int64_t slot = std::max(begin, begin_); slot < end;) {
      int64_t last = slot + 1;
      while (last < end && values_[last] == values_[last - 1] + token_bytes_) ++last;
      f(slot, last - slot, values_[slot]);
      slot = last;
    }
  }

  int64_t token_bytes() const { return token_bytes_; }

  static typename V::Pairs some_pairs(const char* row, int64_t count) {
    return count >= 32 ? V::load_pairs(row) : last_pairs(row, count);
  }
  static typename V::Pairs last_pairs(const char* row, int64_t count) {
    uint16_t whole[32] = {};
    std::memcpy(whole, row, static_cast<size_t>(count) * sizeof(uint16_t));
    return V::load_pairs(whole);
  }

 private:
  const char* zero_row() const { return reinterpret_cast<const char*>(zero_row_); }

  const char* strip(const char* const* of, int64_t slot, int64_t head) {
    const int64_t step = head * layout_.head_stride();
    if (begin_ <= slot && slot + kStripSlots <= end_) return of[slot] + step;
    char* const copy = reinterpret_cast<char*>(buffer_);
    for (int64_t i = 0; i < kStripSlots; ++i) {
      const char* const row = of[slot + i] == zero_row() ? zero_row() : of[slot + i] + step;
      std::memcpy(copy + i * token_bytes_, row, static_cast<size_t>(token_bytes_));
    }
    return copy;
  }

  void find_parts(int64_t last) {
    const int64_t tokens = layout_.block_tokens, part_slots = kTileSlots / parts_.per_tile;
    for (int64_t part = 0; part < 2 * parts_.per_tile; ++part) {
      const int64_t slot = tile_ + part * part_slots, block = slot / tokens;
      parts_.starts[part] = slot >= last ? nullptr
                                         : base_ + table_[block] * layout_.block_bytes() +
                                               (slot - block * tokens) * token_bytes_;
    }
  }

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

  KvLayout layout_;
  const int32_t* table_;
  const char* base_;
  int64_t token_bytes_, dim_, padded_, heads_;
  TileParts parts_;
  float* buffer_;
  float* zero_row_;
  const char* keys_[kTileSlots];
  const char* values_[kTileSlots];
  int64_t tile_ = 0, begin_ = 0, end_ = 0;
};

}  // namespace
}  // namespace quire::cpu
