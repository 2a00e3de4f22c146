// Scores, cuts and victims of retention policies.
//
// retention_scores: a block of threads works on one list, a slot a thread at a time. Bound: reading the row
// logits (or column sums) once, one fp32 a query head and slot. A cut also finds the keep-th highest score by
// bisection over the bits of (score, position): about 45 passes over the list's scores in L2, once a prompt.
// retention_slots: a thread a (layer, row, head). Bound: latency.
#include "kernels/cuda/retention.h"

#include "kernels/op_checks.h"

namespace quire::QUIRE_SIDE {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kScoreBits = 31;  // a score is not negative: its bits order as it does

__device__ inline int block_sum(int x, Shared<int32_t> partial) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x += shfl_xor(x, mask);
  sync_threads();
  if (threadIdx.x % kWarp == 0) partial[static_cast<int>(threadIdx.x / kWarp)] = x;
  sync_threads();
  int sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += partial[w];
  return sum;
}

// The sum over the threads before this one.
__device__ inline int block_sum_before(int x, Shared<int32_t> partial) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int inclusive = x;
#pragma unroll
  for (int d = 1; d < kWarp; d *= 2) {
    const int below = shfl_up(inclusive, d);
    if (lane >= d) inclusive += below;
  }
  sync_threads();
  if (lane == kWarp - 1) partial[warp] = inclusive;
  sync_threads();
  int before = inclusive - x;
  for (int w = 0; w < warp; ++w) before += partial[w];
  return before;
}

// A slot by what decides: the lower key loses, by score and then by the older position.
__device__ inline uint64_t key_of(float score, int position) {
  return uint64_t{f32_to_bits(score)} << 32 | static_cast<uint32_t>(position);
}

struct List {
  const RetentionScoresParams& a;
  const RetentionItem item;
  const int list;       // of the layer
  const int64_t index;  // of all the sequence's lists
  const int first_head, heads;
  const Shared<int32_t> scratch = dynamic_shared<int32_t>();

  __device__ List(const RetentionScoresParams& params, const RetentionItem& it, int list_of_layer)
      : a(params),
        item(it),
        list(list_of_layer),
        index(int64_t{params.layer} * it.lists + list_of_layer),
        first_head(list_of_layer * (params.num_q_heads / it.lists)),
        heads(params.num_q_heads / it.lists) {}

  __device__ int32_t* positions() const { return item.positions + index * item.room; }
  __device__ float* scores() const { return item.scores + index * item.room; }
  __device__ float* prompt_sums() const { return item.prompt_sums + index * item.prompt_room; }
  __device__ bool sums() const { return item.scores != nullptr; }

  __device__ void run() {
    if (item.phase == RetentionPhase::kDecode) return decode();
    if (sums()) add_columns();
    if (item.phase != RetentionPhase::kCut) return;
    if (!sums()) weigh_last_row();
    cut(sums() ? prompt_sums() : last_row());
  }

  // ---- probabilities ----
  __device__ float* logits_of(int head) const {
    return a.row_logits + load(a.row_logits_start + item.sequence) + int64_t{head} * item.length;
  }
  // What the row gave a slot, over this list's query heads in order.
  __device__ float given_by_row(int slot) const {
    const float* lse = a.lse + int64_t{item.row} * a.num_q_heads + first_head;
    float sum = 0;
    for (int h = 0; h < heads; ++h)
      sum += exp2_approx((load(logits_of(first_head + h) + slot) - load(lse + h)) * kLog2e);
    return sums() ? sum : sum / static_cast<float>(heads);
  }
  // In the place of the list's first head's logits, each slot's by the thread that read it.
  __device__ float* last_row() const { return logits_of(first_head); }
  __device__ void weigh_last_row() {
    for (int slot = threadIdx.x; slot < item.length; slot += kThreads)
      store(last_row() + slot, given_by_row(slot));
  }

  __device__ void add_columns() {
    float* columns = a.column_sums + load(a.column_sums_start + item.sequence);
    for (int slot = threadIdx.x; slot < item.length; slot += kThreads) {
      float sum = load(prompt_sums() + slot);
      for (int h = 0; h < heads; ++h) {
        float* column = columns + int64_t{first_head + h} * item.length + slot;
        sum += load(column);
        store(column, 0.0f);
      }
      store(prompt_sums() + slot, sum);
    }
  }

  // ---- the cut ----
  __device__ void cut(const float* by) {
    sync_threads();  // scores were written by other threads of this block
    if (threadIdx.x == 0) store(item.free_slots + index, -1);
    const bool drops = item.length > item.capacity;
    const int oldest = drops ? item.length - item.recent : 0, heavy = drops ? item.capacity - item.recent : 0;
    if (heavy > 0) keep_highest(by, oldest, heavy);
    for (int i = threadIdx.x; i < item.length - oldest; i += kThreads) keep(by, oldest + i, heavy + i);
  }
  __device__ void keep(const float* by, int slot, int to) {
    store(positions() + to, slot);
    if (sums()) store(scores() + to, load(by + slot));
  }

  // The `count` highest of slots [0, total), in order.
  __device__ void keep_highest(const float* by, int total, int count) {
    const uint64_t least = nth_highest(by, total, count);
    const int each = (total + kThreads - 1) / kThreads;
    const int from = min(total, static_cast<int>(threadIdx.x) * each), to = min(total, from + each);
    int mine = 0;
    for (int slot = from; slot < to; ++slot) mine += key_of(load(by + slot), slot) >= least;
    int next = block_sum_before(mine, scratch);
    for (int slot = from; slot < to; ++slot)
      if (key_of(load(by + slot), slot) >= least) keep(by, slot, next++);
  }
  // Bit by bit the highest key that `count` slots reach. No two keys are equal.
  __device__ uint64_t nth_highest(const float* by, int total, int count) {
    uint64_t key = 0;
    for (int bit = 32 + kScoreBits - 1; bit >= 0; --bit) {
      if (bit < 32 && (total >> min(bit, 31)) == 0) continue;  // no position has this bit
      const uint64_t candidate = key | uint64_t{1} << bit;
      int reach = 0;
      for (int slot = threadIdx.x; slot < total; slot += kThreads)
        reach += key_of(load(by + slot), slot) >= candidate;
      if (block_sum(reach, scratch) >= count) key = candidate;
    }
    return key;
  }

  // ---- a row behind the prompt ----
  __device__ void decode() {
    const bool drops = item.length > item.capacity;
    uint64_t worst = ~uint64_t{0};
    int worst_slot = -1;
    for (int slot = threadIdx.x; slot < item.length; slot += kThreads) {
      float score = given_by_row(slot);
      if (sums()) {
        score += load(scores() + slot);
        store(scores() + slot, score);
      }
      const int position = load(positions() + slot);
      const uint64_t key = key_of(score, position);
      const bool may_go = position <= item.position - item.recent;
      if (!may_go || key >= worst) continue;
      worst = key;
      worst_slot = slot;
    }
    if (drops) choose_victim(worst, worst_slot);
  }
  __device__ void choose_victim(uint64_t key, int slot) {
#pragma unroll
    for (int mask = kWarp / 2; mask > 0; mask /= 2)
      take_lower(key, slot, other(key, mask), shfl_xor(slot, mask));
    const Shared<uint64_t> keys = scratch.template as<uint64_t>();
    const Shared<int32_t> slots = scratch + 2 * kWarps;
    if (threadIdx.x % kWarp == 0) {
      keys[static_cast<int>(threadIdx.x / kWarp)] = key;
      slots[static_cast<int>(threadIdx.x / kWarp)] = slot;
    }
    sync_threads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < kWarps; ++w) take_lower(key, slot, keys[w], slots[w]);
    store(item.free_slots + index, slot);
  }
  __device__ static uint64_t other(uint64_t key, int mask) {
    const uint32_t high = shfl_xor(static_cast<uint32_t>(key >> 32), mask),
                   low = shfl_xor(static_cast<uint32_t>(key), mask);
    return uint64_t{high} << 32 | low;
  }
  __device__ static void take_lower(uint64_t& key, int32_t& slot, uint64_t other_key, int32_t other_slot) {
    if (other_key >= key) return;
    key = other_key;
    slot = other_slot;
  }
};

constexpr int kScratchBytes = kWarps * 12;

// Grid (kv heads, items).
__global__ void __launch_bounds__(kThreads) score_lists(RetentionScoresParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const RetentionItem item = load(p.items + blockIdx.x);
  if (static_cast<int>(blockIdx.y) >= item.lists) return;
  List(p, item, blockIdx.y).run();
}

__global__ void __launch_bounds__(kThreads) spread_slots(RetentionSlotsParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x, per_layer = p.rows * p.num_kv_heads;
  if (i >= p.num_layers * per_layer) return;
  const int64_t layer = i / per_layer, row = i % per_layer / p.num_kv_heads;
  const int head = static_cast<int>(i % p.num_kv_heads), of_row = load(p.item_of_row + row);
  RetentionItem item;
  if (of_row >= 0) item = load(p.items + of_row);
  if (of_row < 0 || item.phase != RetentionPhase::kDecode) return store(p.slots + i, load(p.row_slots + row));
  const int heads_of_list = p.num_kv_heads / item.lists;
  const int64_t list = layer * item.lists + head / heads_of_list;
  const int slot = item.overwrites != 0 ? load(item.free_slots + list) : item.length - 1;
  const int32_t block = load(p.block_table + item.sequence * p.table_stride + slot / p.block_tokens);
  store(p.slots + i, int64_t{block} * p.block_tokens + slot % p.block_tokens);
  if (head % heads_of_list != 0) return;
  store(item.positions + list * item.room + slot, item.position);
  if (item.scores != nullptr) store(item.scores + list * item.room + slot, 0.0f);
}

}  // namespace

void retention_scores(const Target& target, const RetentionScoresParams& p) {
  if (p.num_items == 0) return;
  check_given("retention items", p.items);
  check_given("retention lse", p.lse);
  check_given("retention row_logits_start", p.row_logits_start);
  check_given("retention column_sums_start", p.column_sums_start);
  launch<score_lists>({.grid = {as_grid(p.num_items), as_grid(p.num_kv_heads)},
                       .block = kThreads,
                       .shared_bytes = kScratchBytes,
                       .stream = target.stream,
                       .dependent = true},
                      p);
}

void retention_slots(const Target& target, const RetentionSlotsParams& p) {
  const int64_t count = p.num_layers * p.rows * p.num_kv_heads;
  if (count == 0) return;
  check_given("retention items", p.items);
  check_given("retention item_of_row", p.item_of_row);
  check_given("retention slots", p.slots);
  launch<spread_slots>({.grid = as_grid(ceil_div<int64_t>(count, kThreads)),
                        .block = kThreads,
                        .stream = target.stream,
                        .dependent = true},
                       p);
}

}  // namespace quire::QUIRE_SIDE
