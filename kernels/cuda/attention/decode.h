// Decode attention: sequences of one query row each, read-bound. See README.md beside this folder for
// figures.
//
// What a block works on: an equal range of 16-token tiles over all (list, kv head) units, whatever units they
// belong to; a unit counts for at least kLeastSpan tiles. Which range, a plan says that one small kernel makes for all
// layers of a step (decode_plan.cu): a block reads its record of 64 bytes and asks for its first tiles. Within a unit
// its warps take every warps-th tile, each through a ring of its own filled by 16-byte asynchronous copies that run on
// across unit borders. Query heads are the n side of m16n8k16 (K tile x q, then V tile^T x p), so a group of up to 8
// heads wastes nothing. Warps merge in shared memory, blocks through float32 partials: a warp stores its block's
// part of a head, and the last to do so merges the head. Bound: device memory; bytes = K and V of every live slot, once.
#pragma once

#include "kernels/cuda/attention/paged_kv.h"
#include "kernels/cuda/attention/prefix_partials.h"
#include "kernels/cuda/attention/work_split.h"

namespace quire::QUIRE_SIDE {

inline constexpr int kTileTokens = 16;
inline constexpr int kHeadBlock = 8;  // n of an mma
inline constexpr float kLazyRescale =
    8.0f;  // log2: values are rescaled only when a logit passes the largest by this
inline constexpr int kMaxDecodeStages = 4;
// A unit's start and merge take a block about 3 us, its share of the memory 0.3 us a tile: a unit of fewer tiles
// takes as long as one of so many, and one of more not quite as long as both one after another (DecodeTuning::unit_cost). Counted by tiles alone, 48 short units were one block's share (H100: 61 lists of
// 1 to 3000 slots 207 us; 136 counted as 6).
inline constexpr int kLeastSpan = 10;

// What a list's units need to know.
struct alignas(16) DecodeList {
  int32_t row;         // the sequence's query row
  int32_t length;      // live slots; 0 where the sequence has not one row
  int32_t first_slot;  // the first in the row's window that no other kernel reads
  int32_t sink_slots;  // seen whatever the window

  __device__ int first_tile() const { return sink_slots > 0 ? 0 : first_slot / kTileTokens; }
  __device__ int tiles() const { return max(0, (length + kTileTokens - 1) / kTileTokens - first_tile()); }
  __device__ bool sees(int slot) const { return slot < length && (slot >= first_slot || slot < sink_slots); }
};

// A unit: one list, KV head and pass of query heads, and its place in the order of all units.
struct UnitPlace {
  int32_t sequence, kv_head, pass;
  int32_t begin;  // spans of all units before it
};

// One block's range of the tiles of all units, one after another.
struct alignas(16) DecodeShare {
  DecodeList list;    // of the unit that it begins with
  UnitPlace start;    // that unit
  int32_t from, to;   // equal: no work
  int32_t stop;       // the walk ends here: at `to`, or where its last unit begins, which then came first
  int32_t back_last;  // the last block that shares the unit before `to`
  UnitPlace then;     // where the walk goes on behind a last unit that came first
  int32_t front_first, front_last;  // the blocks that share the unit at `from`
  int32_t front_inside;             // the first one's range begins before that unit
};

struct DecodePlan {
  DecodeShare* shares;  // [blocks]
  DecodeList* lists;    // [entries]
};

struct DecodeParams {
  AttentionView view;
  PrefixPartials prefix;  // results of shared prefixes to fold in, or none
  DecodePlan plan;
  float* partials;    // [blocks][2][heads][head_dim + 4]
  int32_t* counters;  // [num_sequences, num_q_heads], zero between launches
  int32_t blocks;     // of threads, that the tiles are shared out over
  int32_t lists;      // per sequence: 1, or num_kv_heads
  int32_t passes;     // query heads of a group over the heads of a pass
  int32_t min_tiles;  // of a block, so that short work is not cut too small
  int32_t unit_cost;  // of a unit's start and merge, in tiles, where it is added to its tiles
  bool aligned;       // ranges end with units where lists are equally long (work_split.h)
  bool
      split_first;  // a unit shared with the next block comes first, so that its merge is over before the last tiles come
  bool early_fetch;  // only the last tile of a list holds slots of this step
  bool plan_is_old;  // made by a kernel older than the one before
  int32_t stages;    // of a warp's ring

  __device__ int entries() const { return view.num_sequences * lists; }
  __device__ int units_per_list() const { return (lists == 1 ? view.num_kv_heads : 1) * passes; }
  // What a unit of so many tiles counts for when ranges are cut.
  __device__ int span(int tiles) const { return tiles == 0 ? 0 : max(tiles, kLeastSpan) + unit_cost; }
};

int64_t decode_plan_bytes(int blocks, int64_t max_lists);
DecodePlan decode_plan_at(void* memory, int blocks);
void launch_decode_plan(void* stream, const DecodeParams& a);

// Walks units in order of their tiles.
struct UnitCursor {
  DecodeList list;
  UnitPlace at;

  __device__ int end() const { return at.begin + list.tiles(); }
  __device__ int behind(const DecodeParams& a) const { return at.begin + a.span(list.tiles()); }
  __device__ int entry(const DecodeParams& a) const {
    return a.lists == 1 ? at.sequence : at.sequence * a.lists + at.kv_head;
  }
  // To the next unit; list_of(e) gives list e. Behind the last unit its sequence is num_sequences.
  template <class ListOf>
  __device__ void next(const DecodeParams& a, ListOf list_of) {
    at.begin = behind(a);
    if (++at.pass < a.passes) return;
    at.pass = 0;
    if (++at.kv_head < a.view.num_kv_heads && a.lists == 1) return;
    for (;; ++at.kv_head) {  // lists without tiles have no units
      if (a.lists == 1 || at.kv_head == a.view.num_kv_heads) {
        at.kv_head = 0;
        if (++at.sequence == a.view.num_sequences) return;
      }
      list = list_of(entry(a));
      if (list.tiles() > 0) return;
    }
  }
};

}  // namespace quire::QUIRE_SIDE
