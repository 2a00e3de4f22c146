// What a block of decode attention's threads does: fetches the tiles of its share into its warps' rings, and multiplies, weighs and
// merges them, a unit (one list's KV head) after another. decode.cu launches it.
#pragma once

#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/decode.h"
#include "kernels/cuda/attention/decode_head.h"

namespace quire::QUIRE_SIDE {
namespace {

constexpr int kMaxThreads = 256, kMaxWarps = kMaxThreads / kWarp;

// kPlain: nothing but attention over lists. What few calls ask for is then not between the instructions that run: a step's
// layers run each of them once, and code comes from L2 in lines.
template <class T, int kDim, int kHeadBlocks, bool kPlain>
struct Decode {
  using Layout = TileLayout<kDim>;
  static constexpr int kHeads = kHeadBlock * kHeadBlocks;
  static constexpr int kTileBytes = kTileTokens * Layout::kRowBytes;
  static constexpr int kStageBytes = 2 * kTileBytes;  // K and V
  static constexpr int kRowFloats = kDim + 4;  // of a partial: values, largest, sum; why 4: see store_warp
  static constexpr int kDimSteps = kDim / 16;
  // Partial rows whose loads are under way together: as many as registers hold.
  static constexpr int kRowsAhead = kDim > 128 ? 4 : kHeadBlocks > 1 ? 8 : 16;
  using Head = DecodeHead<kDim, kRowsAhead>;

  static constexpr int shared_bytes(int warps, int stages) {
    return warps * stages * kStageBytes + warps * kHeads * (kRowFloats * 4 + 8);
  }

  const DecodeParams& a;
  const int warps, warp, lane, g, t;  // g, t: row group and thread in group of an mma fragment
  Shared<char> ring;                  // this warp's
  EvictFirst policy;                  // of K and V, which no one reads again this step
  Shared<float> merged;               // [warps][kHeads][kRowFloats]
  Shared<float2> states;              // [warps][kHeads] largest, sum
  DecodeShare share;

  // Fetching: the warp's next tile, its unit, and the physical blocks of its next 32 tiles, one a lane.
  UnitCursor fetch_at;
  int fetch_tile, fetch_end, fetch_stage, ids_used;
  int ids_entry, ids_from;  // the list and the tile of a unit that the ids begin with
  int32_t id_low, id_high;  // blocks of a tile's two halves of 8 tokens

  // Computing: one unit's softmax and values. Column 2t and 2t + 1 of each head block are this lane's heads.
  uint32_t q[kHeadBlocks][kDimSteps][2];
  float largest[kHeadBlocks][2], sum[kHeadBlocks][2];
  float values[kHeadBlocks][kDimSteps][4];

  __device__ explicit Decode(const DecodeParams& params)
      : a(params),
        warps(blockDim.x / kWarp),
        warp(threadIdx.x / kWarp),
        lane(threadIdx.x % kWarp),
        g(lane / 4),
        t(lane % 4),
        policy(evict_first()) {
    const Shared<char> shared = dynamic_shared();
    ring = by_thread_pointer(shared + warp * a.stages * kStageBytes);
    const Shared<char> after_rings = shared + warps * a.stages * kStageBytes;
    merged = after_rings.template as<float>();
    states = (after_rings + warps * kHeads * kRowFloats * 4).template as<float2>();
  }

  __device__ void run() {
    if (!a.plan_is_old) wait_for_previous_kernel();
    share = load(a.plan.shares + blockIdx.x);
    const bool has_work = share.from < share.to;
    UnitCursor unit = {share.list, share.start};
    if (has_work) begin_fetching();
    if (has_work && a.plan_is_old && a.early_fetch) fetch_before_wait();
    if (a.plan_is_old) wait_for_previous_kernel();
    let_next_kernel_start();
    if (!has_work) return;
    while (fetched < a.stages) fetch();
    int stage = 0;
    load_queries(unit);
    for (bool more = true; more;) {
      const int begin = first_tile_here(unit), end = end_here(unit);
      start_unit();
      for (int tile = begin + warp; tile < end; tile += warps) {
        wait_for_tile();
        consume(unit, tile, ring + stage * kStageBytes);
        sync_warp();  // all lanes have read the stage that the next copies overwrite
        stage = stage + 1 == a.stages ? 0 : stage + 1;
        fetch();
      }
      const UnitCursor done = unit;
      more = walk(unit);
      if (more) load_queries(unit);  // which come while this unit's results are merged
      finish_unit(done, begin, end);
    }
  }

  // ---- the block's share ----
  __device__ int first_tile_here(const UnitCursor& unit) const { return max(share.from, unit.at.begin); }
  __device__ int end_here(const UnitCursor& unit) const { return min(unit.end(), share.to); }

  // To the next unit of the share; false at its end.
  __device__ bool walk(UnitCursor& unit) const {
    const auto list_of = [&](int e) { return load(a.plan.lists + e); };
    if (unit.at.begin >= share.stop) {  // the last unit, which came first
      unit.at = share.then;
      unit.list = list_of(unit.entry(a));
      return true;
    }
    if (unit.behind(a) >= share.stop) return false;
    unit.next(a, list_of);
    return true;
  }

  // ---- fetching ----
  int fetched;  // groups committed before the first tile is used, at most stages
  static constexpr int kNoTile = 0x7fffffff;

  __device__ void begin_fetching() {
    fetch_at = {share.list, share.start};
    fetch_stage = 0;
    fetched = 0;
    ids_entry = -1;
    fetch_from_unit();
    settle_fetch();
  }

  __device__ void fetch_from_unit() {
    fetch_tile = first_tile_here(fetch_at) + warp;
    fetch_end = end_here(fetch_at);
    // Another head of the same list lies in the same blocks.
    const bool same_blocks = ids_entry == fetch_at.entry(a) && ids_from == fetch_tile - fetch_at.at.begin;
    ids_used = same_blocks ? 0 : kWarp;
  }

  __device__ void settle_fetch() {
    while (fetch_tile >= fetch_end) {
      if (!walk(fetch_at)) {
        fetch_tile = kNoTile;
        return;
      }
      fetch_from_unit();
    }
  }

  __device__ int slot_of(const UnitCursor& unit, int tile) const {
    return (unit.list.first_tile() + tile - unit.at.begin) * kTileTokens;
  }

  // Of all the unit's tiles, whatever the share ends with: the next unit may go on with them.
  __device__ void load_block_ids() {
    const int tile = fetch_tile + lane * warps;
    const int slot = slot_of(fetch_at, tile);
    id_low = id_high = 0;
    if (tile < fetch_at.end()) {
      const int32_t* table = table_of(a.view, fetch_at.at.sequence, fetch_at.at.kv_head);
      id_low = load(table + (slot >> a.view.block_shift));
      id_high = id_low;
      if (a.view.block_shift == 3 && slot + 8 < fetch_at.list.length) id_high = load(table + (slot >> 3) + 1);
    }
    ids_used = 0;
    ids_entry = fetch_at.entry(a);
    ids_from = fetch_tile - fetch_at.at.begin;
  }

  // Whether the next tile holds slots that the kernel before this one writes.
  __device__ bool next_is_fresh() const { return fetch_tile == fetch_at.end() - 1; }

  __device__ void fetch_before_wait() {
    while (fetched < a.stages && fetch_tile != kNoTile && !next_is_fresh()) fetch();
  }

  __device__ void fetch() {
    if (fetch_tile != kNoTile) {
      if (ids_used == kWarp) load_block_ids();
      const int32_t low = shfl(id_low, ids_used), high = shfl(id_high, ids_used);
      ++ids_used;
      copy_tile(low, high);
      fetch_tile += warps;
      settle_fetch();
    }
    fetch_stage = fetch_stage + 1 == a.stages ? 0 : fetch_stage + 1;
    ++fetched;
    cp_async_commit();
  }

  __device__ void copy_tile(int32_t low_id, int32_t high_id) {
    const AttentionView& v = a.view;
    const int slot = slot_of(fetch_at, fetch_tile);
    const int in_block = slot & ((1 << v.block_shift) - 1), head = fetch_at.at.kv_head;
    const char* low = tile_of(v, low_id, head) + in_block * (kDim * 2);
    const char* high = tile_of(v, high_id, head) + (v.block_shift == 3 ? 0 : (in_block + 8) * (kDim * 2));
    high -= 8 * kDim * 2;  // so that both halves are addressed by the chunk's place in the tile
    const Shared<char> stage = ring + fetch_stage * kStageBytes;
    const int rows = fetch_at.list.length - slot;
#pragma unroll
    for (int i = 0; i < kTileTokens * Layout::kChunks / kWarp; ++i) {
      const int chunk = i * kWarp + lane, row = chunk / Layout::kChunks;
      const char* source = (row < 8 ? low : high) + chunk * 16;
      const Shared<char> target = stage + Layout::offset(row, chunk % Layout::kChunks);
      // Slots past the list hold anything, NaN too.
      cp_async16_or_zero_evict_first(target, source, row < rows, policy);
      cp_async16_or_zero_evict_first(target + kTileBytes, source + v.v_offset, row < rows, policy);
    }
  }

  __device__ void wait_for_tile() {
    if (a.stages == 2) {
      cp_async_wait<1>();
    } else if (a.stages == 3) {
      cp_async_wait<2>();
    } else {
      cp_async_wait<3>();
    }
    sync_warp();  // the other lanes' copies too
  }

  // ---- one unit ----
  // The query head of column n of a pass; columns past the group repeat its last head and are dropped.
  __device__ int head_in_group(const UnitCursor& unit, int n) const { return unit.at.pass * kHeads + n; }

  __device__ const T* query(const void* source, const UnitCursor& unit, int block) const {
    const int in_group = min(head_in_group(unit, block * kHeadBlock + g), a.view.group - 1);
    return static_cast<const T*>(source) + unit.list.row * a.view.q_stride +
           (unit.at.kv_head * a.view.group + in_group) * kDim + 2 * t;
  }
  __device__ void load_q(const T* query, int step, uint32_t (&pair)[2]) {
    pair[0] = load(reinterpret_cast<const uint32_t*>(query + step * 16));
    pair[1] = load(reinterpret_cast<const uint32_t*>(query + step * 16 + 8));
  }

  __device__ void load_queries(const UnitCursor& unit) {
#pragma unroll
    for (int n = 0; n < kHeadBlocks; ++n) {
      const T* p = query(a.view.q, unit, n);
#pragma unroll
      for (int k = 0; k < kDimSteps; ++k) load_q(p, k, q[n][k]);
    }
  }

  __device__ void start_unit() {
#pragma unroll
    for (int n = 0; n < kHeadBlocks; ++n) {
      largest[n][0] = largest[n][1] = kNegativeInfinity;
      sum[n][0] = sum[n][1] = 0;
#pragma unroll
      for (int k = 0; k < kDimSteps; ++k) {
        values[n][k][0] = values[n][k][1] = values[n][k][2] = values[n][k][3] = 0;
      }
    }
  }

  __device__ void consume(const UnitCursor& unit, int tile, Shared<char> stage) {
    const int slot = slot_of(unit, tile);
    if (!kPlain && slot >= unit.list.sink_slots && slot + kTileTokens <= unit.list.first_slot)
      return;  // between the sinks and the window
    float s[kHeadBlocks][4] = {};
#pragma unroll
    for (int k = 0; k < kDimSteps; ++k) {
      uint32_t keys[4];
      ldmatrix_x4(keys, stage + Layout::offset(lane & 15, 2 * k + (lane >> 4)));
#pragma unroll
      for (int n = 0; n < kHeadBlocks; ++n) mma_16816<T>(s[n], keys, q[n][k]);
    }
    if (!kPlain && a.view.q_sink != nullptr) use_sink_query(unit, slot, stage, s);
#pragma unroll
    for (int n = 0; n < kHeadBlocks; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        s[n][i] = kPlain ? s[n][i] * a.view.scale * kLog2e : log2_logit(a.view, s[n][i]);
    if (!kPlain && a.view.row_logits != nullptr) store_row_logits(unit, slot, s);
    if (slot < unit.list.first_slot || slot + kTileTokens > unit.list.length) mask(unit, slot, s);
    follow_largest(s);
    add_values(s, stage + kTileBytes);
  }

  // Slots below sink_slots take their logits from the second rotation of q (q_sink).
  __device__ void use_sink_query(const UnitCursor& unit, int slot, Shared<char> stage,
                                 float (&s)[kHeadBlocks][4]) {
    if (slot >= unit.list.sink_slots) return;
    float from_sink[kHeadBlocks][4] = {};
    for (int k = 0; k < kDimSteps; ++k) {
      uint32_t keys[4];
      ldmatrix_x4(keys, stage + Layout::offset(lane & 15, 2 * k + (lane >> 4)));
#pragma unroll
      for (int n = 0; n < kHeadBlocks; ++n) {
        uint32_t pair[2];
        load_q(query(a.view.q_sink, unit, n), k, pair);
        mma_16816<T>(from_sink[n], keys, pair);
      }
    }
#pragma unroll
    for (int n = 0; n < kHeadBlocks; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (slot + g + i / 2 * 8 < unit.list.sink_slots) s[n][i] = from_sink[n][i];
  }

  __device__ void store_row_logits(const UnitCursor& unit, int slot, const float (&s)[kHeadBlocks][4]) {
#pragma unroll
    for (int n = 0; n < kHeadBlocks; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int in_group = head_in_group(unit, n * kHeadBlock + 2 * t + i % 2),
                  token = slot + g + i / 2 * 8;
        if (in_group >= a.view.group || !unit.list.sees(token)) continue;
        float* row = row_logits_of(a.view, unit.at.sequence, unit.at.kv_head * a.view.group + in_group,
                                   unit.list.length);
        if (row != nullptr) store(row + token, s[n][i] * kLn2);
      }
  }

  __device__ void mask(const UnitCursor& unit, int slot, float (&s)[kHeadBlocks][4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = slot + g + i / 2 * 8;
      if (unit.list.sees(token)) continue;
#pragma unroll
      for (int n = 0; n < kHeadBlocks; ++n) s[n][i] = kNegativeInfinity;
    }
  }

  // Keeps `largest` within kLazyRescale of every logit: exact, and rescaling is rare after the first tile.
  __device__ void follow_largest(const float (&s)[kHeadBlocks][4]) {
    bool grows = false;
#pragma unroll
    for (int n = 0; n < kHeadBlocks; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) grows = grows || fmaxf(s[n][i], s[n][i + 2]) > largest[n][i] + kLazyRescale;
    if (!any(grows)) return;
#pragma unroll
    for (int n = 0; n < kHeadBlocks; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float m = fmaxf(s[n][i], s[n][i + 2]);
#pragma unroll
        for (int x = 4; x < kWarp; x *= 2) m = fmaxf(m, shfl_xor(m, x));
        m = fmaxf(m, largest[n][i]);
        const float factor = rescale(largest[n][i], m);
        largest[n][i] = m;
        sum[n][i] *= factor;
#pragma unroll
        for (int k = 0; k < kDimSteps; ++k) {
          values[n][k][i] *= factor;
          values[n][k][i + 2] *= factor;
        }
      }
  }

  __device__ void add_values(const float (&s)[kHeadBlocks][4], Shared<char> v_tile) {
    uint32_t p[kHeadBlocks][2];
#pragma unroll
    for (int n = 0; n < kHeadBlocks; ++n) {
      const float p0 = exp2_approx(s[n][0] - largest[n][0]), p1 = exp2_approx(s[n][1] - largest[n][1]);
      const float p2 = exp2_approx(s[n][2] - largest[n][0]), p3 = exp2_approx(s[n][3] - largest[n][1]);
      sum[n][0] += p0 + p2;
      sum[n][1] += p1 + p3;
      // From rows of tokens (an accumulator) to columns of tokens (a B fragment): two transposes of 8x8.
      p[n][0] = movmatrix_trans(pack2<T>(p0, p1));
      p[n][1] = movmatrix_trans(pack2<T>(p2, p3));
    }
#pragma unroll
    for (int k = 0; k < kDimSteps; ++k) {
      uint32_t v_transposed[4];
      const int row = (lane & 7) + (lane & 16 ? 8 : 0);
      ldmatrix_x4_trans(v_transposed, v_tile + Layout::offset(row, 2 * k + (lane >> 3 & 1)));
#pragma unroll
      for (int n = 0; n < kHeadBlocks; ++n) mma_16816<T>(values[n][k], v_transposed, p[n]);
    }
  }

  // ---- merging ----
  // kRowFloats = 4 mod 16 for head sizes that are multiples of 16, so a store of one register by a warp meets
  // no bank twice.
  __device__ void store_warp() {
#pragma unroll
    for (int n = 0; n < kHeadBlocks; ++n)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = warp * kHeads + n * kHeadBlock + 2 * t + i;
        float total = sum[n][i];
#pragma unroll
        for (int x = 4; x < kWarp; x *= 2) total += shfl_xor(total, x);
        if (g == 0) states[row] = make_float2(largest[n][i], total);
#pragma unroll
        for (int k = 0; k < kDimSteps; ++k) {
          merged[row * kRowFloats + k * 16 + g] = values[n][k][i];
          merged[row * kRowFloats + k * 16 + 8 + g] = values[n][k][i + 2];
        }
      }
  }

  __device__ Head merge_warps(int h) {
    Head head = {};
    float2 state[kMaxWarps];
#pragma unroll
    for (int w = 0; w < kMaxWarps; ++w) {
      state[w] = w < warps ? static_cast<float2>(states[w * kHeads + h]) : make_float2(kNegativeInfinity, 0);
      head.state.largest = fmaxf(head.state.largest, state[w].x);
    }
    // Unrolled: the reads of all warps' parts are on their way together.
#pragma unroll
    for (int w = 0; w < kMaxWarps; ++w) {
      if (w >= warps) break;
      const float factor = rescale(state[w].x, head.state.largest);
      head.state.sum += state[w].y * factor;
      const Shared<float4> part = (merged + (w * kHeads + h) * kRowFloats).template as<float4>();
      head.add(lane, factor, [&](int i) { return static_cast<float4>(part[i * kWarp + lane]); });
    }
    return head;
  }

  __device__ float* partial(int block, bool second, int h) const {
    return a.partials + (int64_t{block} * 2 + second) * kHeads * kRowFloats + h * kRowFloats;
  }

  __device__ void store_output(const UnitCursor& unit, Head head, int in_group) {
    const AttentionView& v = a.view;
    const int q_head = unit.at.kv_head * v.group + in_group;
    if (!kPlain && a.prefix.member_start != nullptr) fold_prefixes(unit.at.sequence, q_head, head);
    const float norm = kPlain ? reciprocal(head.state.sum) : normaliser(v, head.state, q_head);
    const int64_t row = int64_t{unit.list.row} * v.num_q_heads + q_head;
    uint2* out = reinterpret_cast<uint2*>(static_cast<T*>(v.out) + row * kDim);
#pragma unroll
    for (int i = 0; i < Head::kVectors; ++i) {
      const float4 x = head.values[i];
      if (Head::has_vector(lane, i))
        store(out + i * kWarp + lane,
              make_uint2(pack2<T>(x.x * norm, x.y * norm), pack2<T>(x.z * norm, x.w * norm)));
    }
    if (!kPlain && v.lse != nullptr && lane == 0) store(v.lse + row, lse_of(head.state));
  }

  __device__ void fold_prefixes(int sequence, int q_head, Head& head) {
    const int from = load(a.prefix.member_start + sequence), to = load(a.prefix.member_start + sequence + 1);
    const int splits = a.prefix.splits;
    head.fold(lane, (to - from) * splits, [&](int j) {
      const int64_t member = load(a.prefix.members_of_sequence + from + j / splits);
      return a.prefix.rows +
             ((member * splits + j % splits) * a.view.num_q_heads + q_head) * prefix_row_floats(kDim);
    });
  }

  // Tiles [begin, end) of the unit are done by this block's warps. Warps without a head to merge go on at once; the last
  // warps merge, which have a tile less where a unit's tiles are no multiple of the warps.
  __device__ void finish_unit(const UnitCursor& unit, int begin, int end) {
    sync_threads();  // the unit before is merged
    store_warp();
    sync_threads();
    const bool whole = begin == unit.at.begin && end == unit.end(), second = begin != share.from;
    const int heads = min(kHeads, a.view.group - unit.at.pass * kHeads);
    for (int h = warps - 1 - warp; h < heads; h += warps) {
      Head head = merge_warps(h);
      if (!whole) {
        head.store_partial(lane, partial(blockIdx.x, second, h));
        if (!merge_blocks(unit, second, h, head)) continue;
      }
      store_output(unit, head, head_in_group(unit, h));
    }
  }

  // This warp has stored its block's part of a head; the last to do so has all parts in `head` then.
  // second: the unit begins within this block's range, so its part of it is this block's second.
  __device__ bool merge_blocks(const UnitCursor& unit, bool second, int h, Head& head) {
    const int first = second ? static_cast<int>(blockIdx.x) : share.front_first;
    const int last = second ? share.back_last : share.front_last;
    int32_t* counter = a.counters + unit.at.sequence * a.view.num_q_heads + unit.at.kv_head * a.view.group +
                       head_in_group(unit, h);
    int before = 0;
    sync_warp();
    if (lane == 0) before = atomic_add_in_order(counter, 1);
    if (shfl(before, 0) != last - first) return false;
    sync_warp();
    if (lane == 0) store(counter, 0);
    // Only its first part can be the second of its block: one that begins inside that block's range.
    const bool starts_inside = second || share.front_inside != 0;
    head = {};
    head.fold(lane, last - first + 1, [&](int j) { return partial(first + j, j == 0 && starts_inside, h); });
    return true;
  }
};

}  // namespace
}  // namespace quire::QUIRE_SIDE
