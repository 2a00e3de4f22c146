// q and k norms (Qwen3), rotary positions, and the write of K and V into their blocks, in one pass over the
// row of q|k|v. Bounded by memory: reads the row once, writes q in place (or to q_out) and k, v into the
// arena. A lane holds eight elements of a head's first half and the eight that pair with them in the second,
// so the rotation needs no exchange; head_dim / 16 lanes take a head, rounded up to a power of two so that
// the norm's sum is a few shuffles.
#include "kernels/cuda/ops.h"
#include "kernels/cuda/vector.h"
#include "kernels/op_checks.h"

namespace quire::QUIRE_SIDE {
namespace {

constexpr int kThreads = 128;

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

// The angles of a position for eight pairs from `i` on.
struct Turn {
  Chunk cos, sin;
};
__device__ inline Turn turn_of(const RopeKvWriteParams& p, const int32_t* position, int i) {
  const float* row = p.cos_sin + int64_t{load(position)} * p.head_dim + i;
  return {load_chunk(row), load_chunk(row + p.head_dim / 2)};
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

// head_dim a multiple of 16, all of it rotated. `lanes` (a power of two) threads a head. Slots, positions and angles,
// two trips to L2, are read before the dependency wait: the kernel before makes q, k and v alone.
template <class Act, class Kv>
__global__ void __launch_bounds__(kThreads) rope_kv_write_chunks(RopeKvWriteParams p, int lanes) {
  const int64_t row = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x) % lanes, half = p.head_dim / 2, i = lane * kChunk;
  const Head<Act, Kv> head =
      head_of<Act, Kv>(p, row, static_cast<int>(blockIdx.y * (kThreads / lanes) + threadIdx.x / lanes));
  const bool active = !head.skipped && i < half;
  Turn turn{};
  if (active && head.rotated) turn = turn_of(p, p.positions + row, i);
  wait_for_previous_kernel();
  let_next_kernel_start();
  Chunk a{}, b{};
  if (active) {
    a = load_chunk(head.source + i);
    b = load_chunk(head.source + half + i);
  }
  if (p.q_norm != nullptr || p.k_norm != nullptr) {  // every lane of the warp takes part in the sums
    float squares = 0;
#pragma unroll
    for (int j = 0; j < kChunk; ++j) squares += a.v[j] * a.v[j] + b.v[j] * b.v[j];
    for (int mask = lanes / 2; mask > 0; mask /= 2) squares += shfl_xor(squares, mask);
    const float scale = rsqrt_approx(squares / static_cast<float>(p.head_dim) + p.norm_eps);
    if (active && head.norm != nullptr) {
      const Chunk wa = load_chunk(head.norm + i), wb = load_chunk(head.norm + half + i);
#pragma unroll
      for (int j = 0; j < kChunk; ++j) {
        a.v[j] *= scale * wa.v[j];
        b.v[j] *= scale * wb.v[j];
      }
    }
  }
  if (!active) return;
  if (head.q_sink_target != nullptr) {
    Chunk c = a, d = b;
    rotate(turn_of(p, p.sink_positions + row, i), c, d);
    store_chunk(head.q_sink_target + i, c);
    store_chunk(head.q_sink_target + half + i, d);
  }
  if (head.rotated) rotate(turn, a, b);
  write_head(head, i, a);
  write_head(head, half + i, b);
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

}  // namespace

void rope_kv_write(const Target& target, const RopeKvWriteParams& p) {
  if (p.rows == 0) return;
  check_op(p);
  const bool chunks =
      p.head_dim % (2 * kChunk) == 0 && p.rotary_dim == p.head_dim && p.head_dim <= 2 * kChunk * kWarp;
  int lanes = chunks ? 1 : kWarp;
  while (chunks && lanes * 2 * kChunk < p.head_dim) lanes *= 2;
  const int64_t heads = p.num_q_heads + 2 * p.num_kv_heads;
  const LaunchConfig config{.grid = {as_grid(p.rows), as_grid(ceil_div<int64_t>(heads, kThreads / lanes))},
                            .block = kThreads,
                            .stream = target.stream,
                            .dependent = true,
                            .carveout = carveout_of(p.rows)};
  const DType kv_dtype = p.num_kv_heads > 0 ? p.layout.dtype : target.activations;
  with_float_type(target.activations, [&](auto act) {
    with_float_type(kv_dtype, [&](auto kv) {
      using Act = decltype(act);
      using Kv = decltype(kv);
      chunks ? launch<rope_kv_write_chunks<Act, Kv>>(config, p, lanes)
             : launch<rope_kv_write_elements<Act, Kv>>(config, p);
    });
  });
}

}  // namespace quire::QUIRE_SIDE
