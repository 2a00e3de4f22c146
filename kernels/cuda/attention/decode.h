// Decode attention: sequences of one query row each, read-bound. See README.md beside this folder for
// figures.
//
// What a block works on: an equal range of 16-token tiles over all (list, kv head) units, whatever units they
// belong to; a unit counts for at least kLeastSpan tiles. Within a unit its warps take every warps-th tile, each through a ring of its own filled by
// 16-byte asynchronous copies that run on across unit borders. Query heads are the n side of m16n8k16 (K tile
// x q, then V tile^T x p), so a group of up to 8 heads wastes nothing. Warps merge in shared memory, blocks
// through float32 partials; the last block to arrive at a unit merges it with a warp a head. Bound: device
// memory; bytes = K and V of every live slot, once.
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
// takes as long as one of so many. Counted by tiles alone, 48 short units were one block's share (H100: 61 lists of
// 1 to 3000 slots 207 us; 136 counted as 6).
inline constexpr int kLeastSpan = 10;

struct DecodeParams {
  AttentionView view;
  PrefixPartials prefix;  // results of shared prefixes to fold in, or none
  float* partials;        // [grid][2][heads][head_dim + 4]
  int32_t* counters;      // [units], zero between launches
  int32_t lists;          // per sequence: 1, or num_kv_heads
  int32_t passes;         // query heads of a group over the heads of a pass
  int32_t units_per_list;
  int32_t min_tiles;  // of a block, so that short work is not cut too small
  bool aligned;       // ranges end with units where lists are equally long (work_split.h)
  int32_t stages;     // of a warp's ring
  bool early_fetch;   // only the last tile of a list holds slots of this step
};

// A unit: one list, kv head and pass of query heads. The cursor walks them in order of their tiles.
struct UnitCursor {
  int entry, entry_unit;  // list; unit within it
  int sequence, list_head;
  int row;                 // the sequence's query row
  int length, first_slot;  // live slots; the first in the row's window
  int sink_slots;          // seen whatever the window
  int tiles;               // of a unit of this list
  int span;                // what it counts for when ranges are cut: tiles, and at least kLeastSpan
  int begin;               // spans of all units before this one

  __device__ int first_tile() const { return sink_slots > 0 ? 0 : first_slot / kTileTokens; }
  __device__ bool sees(int slot) const { return slot < length && (slot >= first_slot || slot < sink_slots); }
  __device__ int end() const { return begin + tiles; }
  __device__ int head(const DecodeParams& a) const { return a.lists > 1 ? list_head : entry_unit / a.passes; }
  __device__ int pass(const DecodeParams& a) const { return entry_unit % a.passes; }
  __device__ int unit(const DecodeParams& a) const { return entry * a.units_per_list + entry_unit; }

  __device__ void load_list(const DecodeParams& a, int e) {
    entry = e;
    sequence = a.lists == 1 ? e : e / a.lists;
    list_head = a.lists == 1 ? 0 : e % a.lists;
    const AttentionView& v = a.view;
    row = load(v.query_start + sequence);
    const int next_row = load(v.query_start + sequence + 1), there = length_of(v, sequence, list_head);
    const bool one_row = next_row - row == 1;
    length = one_row ? there : 0;  // chosen after all three loads: each is a trip to L2
    const int window = window_of(v, sequence);
    first_slot = window > 0 ? max(0, length - window) : 0;
    sink_slots = sinks_of(v, sequence);
    if (v.private_start != nullptr && one_row) first_slot = max(first_slot, load(v.private_start + sequence));
    tiles = max(0, (length + kTileTokens - 1) / kTileTokens - first_tile());
    span = tiles == 0 ? 0 : max(tiles, kLeastSpan);
  }
  __device__ int behind() const { return begin + span; }  // where the next unit begins
  __device__ void next(const DecodeParams& a, int entries) {
    begin += span;
    if (++entry_unit < a.units_per_list) return;
    entry_unit = 0;
    for (int e = entry + 1; e < entries; ++e) {
      load_list(a, e);
      if (tiles > 0) return;
    }
  }
};

}  // namespace quire::QUIRE_SIDE
