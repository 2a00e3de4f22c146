// q and k norms (Qwen3), rotary positions, and the write of K and V into their blocks, in one pass over the
// row of q|k|v. Bounded by memory: reads the row once, writes q in place (or to q_out) and k, v into the
// arena. A lane holds eight elements of a head's first half and the eight that pair with them in the second,
// so the rotation needs no exchange; head_dim / 16 lanes take a head, rounded up to a power of two so that
// the norm's sum is a few shuffles.
#include <algorithm>

#include "kernels/cuda/lasting_load.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/vector.h"
#include "kernels/op_checks.h"

namespace quire::QUIRE_SIDE {
namespace {

constexpr int kThreads = 128, kMostThreads = 256;
constexpr int kManyRows = 512;     // from here on bytes in flight bound the kernel
constexpr int kManyRowsHeads = 3;  // a thread then; 8192 rows: 74 us, with two 76, with four 77
constexpr int kManyRowsBlocks =
    3;  // of most threads a multiprocessor: 80 registers. Two: 74 to 78 us; four spill, 82 us

// One head of one row: where it is read, where it goes, and what is done to it.
template <class Act, class Kv>
struct Head {
  const Act* source = nullptr;
  Act* q_target = nullptr;       // null for k and v
  Act* q_sink_target = nullptr;  // where q goes rotated at its sink position, or null
  Kv* kv_target = nullptr;       // null for q, and for a slot that is padding
  const float* norm = nullptr;
  bool rotated = false;
  bool skipped = true;  // a padding row
};

template <class Act, class Kv>
__device__ inline Head<Act, Kv> head_of(const RopeKvWriteParams& p, int64_t row, int index) {
  const int heads = p.num_q_heads + 2 * p.num_kv_heads;
  if (index >= heads) return {};
  auto* qkv = static_cast<Act*>(p.qkv) + row * heads * p.head_dim;
  Head<Act, Kv> head{.source = qkv + int64_t{index} * p.head_dim, .skipped = false};
  if (index < p.num_q_heads) {
    bool padding = p.num_kv_heads > 0;
    for (int64_t i = 0; padding && i < p.slot_stride; ++i)
      padding = load(p.slots + row * p.slot_stride + i) < 0;
    head.skipped = padding;
    head.q_target =
        (p.q_out == nullptr ? qkv : static_cast<Act*>(p.q_out) + row * p.num_q_heads * p.head_dim) +
        int64_t{index} * p.head_dim;
    if (p.q_sink_out != nullptr)
      head.q_sink_target =
          static_cast<Act*>(p.q_sink_out) + row * heads * p.head_dim + int64_t{index} * p.head_dim;
    head.norm = p.q_norm;
    head.rotated = true;
    return head;
  }
  const bool is_key = index < p.num_q_heads + p.num_kv_heads, own_list = p.slot_stride != 1;
  const int kv_head = index - p.num_q_heads - (is_key ? 0 : p.num_kv_heads);
  const int64_t slot = load(p.slots + row * p.slot_stride + (own_list ? kv_head : 0));
  head.skipped = slot < 0;
  if (head.skipped) return head;
  char* tile = p.arena + slot / p.layout.block_tokens * p.layout.block_bytes() +
               (p.layout.num_kv_heads == 1 ? 0 : kv_head) * p.layout.head_stride() +
               slot % p.layout.block_tokens * p.layout.token_bytes();
  head.kv_target = reinterpret_cast<Kv*>(tile + (is_key ? 0 : p.layout.kv_stride()));
  head.norm = is_key ? p.k_norm : nullptr;
  head.rotated = is_key;
  return head;
}

template <class Act, class Kv>
__device__ inline void write_head(const Head<Act, Kv>& head, int64_t i, const Chunk& c) {
  if (head.q_target != nullptr) store_chunk(head.q_target + i, c);
  if (head.kv_target != nullptr) store_chunk(head.kv_target + i, c);
}

// The angles of a position for eight pairs from `i` on. Rows of 8192 positions are 4 MB, a fiftieth of what passes: each layer would
// read them from memory again if L2 did not hold them.
struct Turn {
  Chunk cos, sin;
};
__device__ inline Turn turn_of(const RopeKvWriteParams& p, const int32_t* position, int i) {
  const float* row = p.cos_sin + int64_t{load(position)} * p.head_dim + i;
  return {load_lasting_chunk(row), load_lasting_chunk(row + p.head_dim / 2)};
}
// The pairs (a, b) of a head's two halves, rotated.
__device__ inline void rotate(const Turn& turn, Chunk& a, Chunk& b) {
#pragma unroll
  for (int j = 0; j < kChunk; ++j) {
    const float x = a.v[j], y = b.v[j];
    a.v[j] = x * turn.cos.v[j] - y * turn.sin.v[j];
    b.v[j] = y * turn.cos.v[j] + x * turn.sin.v[j];
  }
}

// The sixteen elements of a head that a lane holds, as they lie in memory.
template <class Act>
struct Sixteen {
  RawChunk<Act> a, b;
};

__device__ inline void scale_by(Chunk& c, float scale, const float* weights) {
  const Chunk w = load_chunk(weights);
#pragma unroll
  for (int j = 0; j < kChunk; ++j) c.v[j] *= scale * w.v[j];
}

// RMSNorm over the head that `lanes` lanes hold between them; all lanes of the warp come here.
template <class Act, class Kv>
__device__ inline void normalise(const RopeKvWriteParams& p, const Head<Act, Kv>& head, int i, int lanes,
                                 Chunk& a, Chunk& b) {
  float squares = 0;
#pragma unroll
  for (int j = 0; j < kChunk; ++j) squares += a.v[j] * a.v[j] + b.v[j] * b.v[j];
  for (int mask = lanes / 2; mask > 0; mask /= 2) squares += shfl_xor(squares, mask);
  if (head.norm == nullptr || i >= p.head_dim / 2) return;
  const float scale = rsqrt_approx(squares / static_cast<float>(p.head_dim) + p.norm_eps);
  scale_by(a, scale, head.norm + i);
  scale_by(b, scale, head.norm + p.head_dim / 2 + i);
}

template <class Act, class Kv, bool kSink>
__device__ inline void finish_head(const RopeKvWriteParams& p, int64_t row, const Head<Act, Kv>& head,
                                   const Turn& turn, int i, int lanes, const Sixteen<Act>& loaded) {
  const int half = p.head_dim / 2;
  Chunk a = unpack_chunk<Act>(loaded.a), b = unpack_chunk<Act>(loaded.b);
  if (p.q_norm != nullptr || p.k_norm != nullptr) normalise(p, head, i, lanes, a, b);
  if (head.skipped || i >= half) return;
  if (kSink && head.q_sink_target != nullptr) {
    Chunk c = a, d = b;
    rotate(turn_of(p, p.sink_positions + row, i), c, d);
    store_chunk(head.q_sink_target + i, c);
    store_chunk(head.q_sink_target + half + i, d);
  }
  if (head.rotated) rotate(turn, a, b);
  write_head(head, i, a);
  write_head(head, half + i, b);
}

// head_dim a multiple of 16, all of it rotated. `lanes` (a power of two) threads a head, kHeads heads a thread, which
// share their angles. One head a thread is for few rows: latency counts, so slots, positions and angles, two trips to
// L2, are read before the dependency wait (the kernel before makes q, k and v alone). Several are for many rows: bytes
// in flight count, so all of a thread's are asked for before it is known where the first goes.
template <class Act, class Kv, int kHeads>
__global__ void __launch_bounds__(kMostThreads, kHeads == 1 || sizeof(Act) == 4 ? 1 : kManyRowsBlocks)
    rope_kv_write_chunks(RopeKvWriteParams p, int lanes) {
  const int64_t row = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % lanes, half = p.head_dim / 2, i = lane * kChunk;
  const int at_once = static_cast<int>(blockDim.x) / lanes;  // heads
  const int first = static_cast<int>(blockIdx.y) * at_once * kHeads + static_cast<int>(threadIdx.x) / lanes;
  Turn turn{};
  if (i < half && first < p.num_q_heads + p.num_kv_heads) turn = turn_of(p, p.positions + row, i);
  Head<Act, Kv> head;
  if constexpr (kHeads == 1) head = head_of<Act, Kv>(p, row, first);
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int heads = p.num_q_heads + 2 * p.num_kv_heads;
  Sixteen<Act> loaded[kHeads] = {};
#pragma unroll
  for (int j = 0; j < kHeads; ++j) {
    const int index = first + j * at_once;
    const Act* source = static_cast<const Act*>(p.qkv) + (row * heads + index) * p.head_dim + i;
    if (index < heads && i < half) loaded[j] = {load_raw(source), load_raw(source + half)};
  }
#pragma unroll
  for (int j = 0; j < kHeads; ++j) {
    if constexpr (kHeads > 1) head = head_of<Act, Kv>(p, row, first + j * at_once);
    finish_head<Act, Kv, kHeads == 1>(p, row, head, turn, i, lanes, loaded[j]);
  }
}

// Any head_dim and rotary_dim, element by element; a warp a head.
template <class Act, class Kv>
__global__ void __launch_bounds__(kThreads) rope_kv_write_elements(RopeKvWriteParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t row = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const Head<Act, Kv> head =
      head_of<Act, Kv>(p, row, static_cast<int>(blockIdx.y * (kThreads / kWarp) + threadIdx.x / kWarp));
  float scale = 1;
  if (!head.skipped && head.norm != nullptr) {  // the same for all lanes: they share the head
    float squares = 0;
    for (int i = lane; i < p.head_dim; i += kWarp) {
      const float x = to_f32(load(head.source + i));
      squares += x * x;
    }
    scale = rsqrt_approx(warp_sum(squares) / static_cast<float>(p.head_dim) + p.norm_eps);
  }
  if (head.skipped) return;
  const auto normed = [&](int i) {
    const float x = to_f32(load(head.source + i));
    return head.norm == nullptr ? x : x * scale * load(head.norm + i);
  };
  const int half = head.rotated ? p.rotary_dim / 2 : 0;
  if (head.q_sink_target != nullptr) {
    for (int i = lane; i < half; i += kWarp) {
      const float* turn = p.cos_sin + int64_t{load(p.sink_positions + row)} * p.head_dim;
      const float x = normed(i), y = normed(half + i), cos = load(turn + i), sin = load(turn + half + i);
      store(head.q_sink_target + i, from_f32<Act>(x * cos - y * sin));
      store(head.q_sink_target + half + i, from_f32<Act>(y * cos + x * sin));
    }
    for (int i = 2 * half + lane; i < p.head_dim; i += kWarp)
      store(head.q_sink_target + i, from_f32<Act>(normed(i)));
    sync_warp();  // q may be rotated in place from here on
  }
  const auto write = [&](int i, float x) {
    if (head.q_target != nullptr) store(head.q_target + i, from_f32<Act>(x));
    if (head.kv_target != nullptr) store(head.kv_target + i, from_f32<Kv>(x));
  };
  for (int i = lane; i < half; i += kWarp) {
    const float* turn = p.cos_sin + int64_t{load(p.positions + row)} * p.head_dim;
    const float x = normed(i), y = normed(half + i), cos = load(turn + i), sin = load(turn + half + i);
    write(i, x * cos - y * sin);
    write(half + i, y * cos + x * sin);
  }
  for (int i = 2 * half + lane; i < p.head_dim; i += kWarp) write(i, normed(i));
}

// Blocks of `threads` at `lanes` a head, `heads_each` heads a thread, over all heads of a row.
LaunchConfig launch_of(const Target& target, const RopeKvWriteParams& p, int lanes, int heads_each,
                       int threads) {
  const int64_t heads = p.num_q_heads + 2 * p.num_kv_heads;
  return {.grid = {as_grid(p.rows), as_grid(ceil_div<int64_t>(heads, int64_t{threads} / lanes * heads_each))},
          .block = static_cast<unsigned>(threads),
          .stream = target.stream,
          .dependent = true,
          .carveout = carveout_of(p.rows)};
}

template <class Act, class Kv>
void launch_chunks(const Target& target, const RopeKvWriteParams& p) {
  int lanes = 1;
  while (lanes * 2 * kChunk < p.head_dim) lanes *= 2;
  if (p.rows < kManyRows || p.q_sink_out != nullptr)
    return launch<rope_kv_write_chunks<Act, Kv, 1>>(launch_of(target, p, lanes, 1, kThreads), p, lanes);
  const int64_t heads = p.num_q_heads + 2 * p.num_kv_heads;
  const int64_t wanted = ceil_div<int64_t>(ceil_div<int64_t>(heads, kManyRowsHeads) * lanes, kWarp) * kWarp;
  const int threads = static_cast<int>(std::min<int64_t>(wanted, kMostThreads));
  launch<rope_kv_write_chunks<Act, Kv, kManyRowsHeads>>(launch_of(target, p, lanes, kManyRowsHeads, threads),
                                                        p, lanes);
}

}  // namespace

void rope_kv_write(const Target& target, const RopeKvWriteParams& p) {
  if (p.rows == 0) return;
  check_op(p);
  const bool chunks =
      p.head_dim % (2 * kChunk) == 0 && p.rotary_dim == p.head_dim && p.head_dim <= 2 * kChunk * kWarp;
  const DType kv_dtype = p.num_kv_heads > 0 ? p.layout.dtype : target.activations;
  with_float_type(target.activations, [&](auto act) {
    with_float_type(kv_dtype, [&](auto kv) {
      using Act = decltype(act);
      using Kv = decltype(kv);
      chunks ? launch_chunks<Act, Kv>(target, p)
             : launch<rope_kv_write_elements<Act, Kv>>(launch_of(target, p, kWarp, 1, kThreads), p);
    });
  });
}

}  // namespace quire::QUIRE_SIDE
