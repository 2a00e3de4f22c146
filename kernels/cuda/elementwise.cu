// embed, silu_mul, copy_blocks and move_slots. Each reads and writes its bytes once, 16 at a time where rows are whole chunks (move_slots:
// 4), and is bounded by memory alone.
#include "kernels/cuda/ops.h"
#include "kernels/cuda/vector.h"
#include "kernels/op_checks.h"

namespace quire::QUIRE_SIDE {
namespace {

constexpr int kThreads = 256;

// ---- embed: a block of threads takes a row; moves rows * hidden * (table + act) bytes ---------------------
template <class Table, class Act, bool kVector>
__global__ void embed_rows(EmbedParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t row = blockIdx.x;
  const auto* source = static_cast<const Table*>(p.table) + load(p.ids + row) * p.hidden;
  auto* target = static_cast<Act*>(p.out) + row * p.hidden;
  for (int64_t i = int64_t{threadIdx.x} * kChunk; i < p.hidden; i += int64_t{blockDim.x} * kChunk)
    store_chunk<Act, kVector>(target + i, load_chunk<Table, kVector>(source + i, p.hidden - i), p.hidden - i);
}

// ---- silu_mul: a thread takes eight columns of a row; moves 3 * rows * width elements ---------------------
template <class Act, bool kVector>
__global__ void silu_mul_rows(SiluMulParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t row = blockIdx.x;
  const int64_t i = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kChunk;
  if (i >= p.width) return;
  // A group of alternating rows is a thread's eight columns.
  const auto* gate = static_cast<const Act*>(p.gate_up) + row * 2 * p.width + (p.gate_group == 0 ? i : 2 * i);
  const int64_t count = p.width - i, to_up = p.gate_group == 0 ? p.width : kChunk;
  const Chunk g = load_chunk<Act, kVector>(gate, count), up = load_chunk<Act, kVector>(gate + to_up, count);
  Chunk out;
#pragma unroll
  for (int j = 0; j < kChunk; ++j) out.v[j] = silu(g.v[j]) * up.v[j];
  store_chunk<Act, kVector>(static_cast<Act*>(p.out) + row * p.width + i, out, count);
}

// ---- copy_blocks: a block of threads takes a piece of one pair; moves 2 * count * block_bytes -------------
constexpr int kUnrolled = 4;  // 16-byte loads of a thread in flight

__global__ void copy_pairs(BlockCopyParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int32_t* pair = p.pairs + 2 * int64_t{blockIdx.x};
  const auto* source = reinterpret_cast<const uint4*>(p.arena + load(pair) * p.block_bytes);
  auto* target = reinterpret_cast<uint4*>(p.arena + load(pair + 1) * p.block_bytes);
  const int64_t end = p.block_bytes / 16, step = int64_t{gridDim.y} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.y} * blockDim.x + threadIdx.x; i < end; i += kUnrolled * step) {
    uint4 v[kUnrolled] = {};
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u)
      if (i + u * step < end) v[u] = load_streaming(source + i + u * step);
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u)
      if (i + u * step < end) store(target + i + u * step, v[u]);
  }
}

// ---- move_slots: a warp takes K and V of one slot of one (layer, head); moves 2 * layers * heads * count * head_dim elements twice
constexpr int kMoveWarps = 8;

__global__ void move_slots_rows(MoveSlotsParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const KvLayout& layout = p.layout;
  const int64_t list = blockIdx.y, to = int64_t{blockIdx.x} * kMoveWarps + threadIdx.x / kWarp;
  if (to >= p.count) return;
  const auto k_of = [&](const int32_t* blocks, int64_t slot) {
    return p.arena + load(blocks + slot / layout.block_tokens) * layout.block_bytes() +
           layout.k_offset(list / layout.num_kv_heads, list % layout.num_kv_heads,
                           slot % layout.block_tokens);
  };
  const char* source = k_of(
      p.source_blocks,
      load(p.source_slots + p.source_index(list / layout.num_kv_heads, list % layout.num_kv_heads) + to));
  char* target = k_of(p.target_blocks, to);
  for (int64_t i = threadIdx.x % kWarp * 4; i < layout.token_bytes(); i += kWarp * 4) {
    const uint32_t k = load(reinterpret_cast<const uint32_t*>(source + i));
    const uint32_t v = load(reinterpret_cast<const uint32_t*>(source + layout.kv_stride() + i));
    store(reinterpret_cast<uint32_t*>(target + i), k);
    store(reinterpret_cast<uint32_t*>(target + layout.kv_stride() + i), v);
  }
}

unsigned threads_for(int64_t chunks) {
  return static_cast<unsigned>(std::min<int64_t>(kThreads, ceil_div<int64_t>(chunks, kWarp) * kWarp));
}

}  // namespace

void embed(const Target& target, const EmbedParams& p) {
  if (p.rows == 0) return;
  check_op(p);
  const LaunchConfig config{.grid = as_grid(p.rows),
                            .block = threads_for(ceil_div<int64_t>(p.hidden, kChunk)),
                            .stream = target.stream,
                            .dependent = true,
                            .carveout = carveout_of(p.rows)};
  with_float_type(p.table_dtype, [&](auto table) {
    with_float_type(target.activations, [&](auto act) {
      with_bool(p.hidden % kChunk == 0,
                [&](auto vector) { launch<embed_rows<decltype(table), decltype(act), vector>>(config, p); });
    });
  });
}

void silu_mul(const Target& target, const SiluMulParams& p) {
  if (p.rows == 0) return;
  check_op(p);
  check(p.gate_group == 0 || p.gate_group == kChunk,
        "silu_mul: rows alternate in groups of eight or not at all");
  const unsigned threads = threads_for(ceil_div<int64_t>(p.width, kChunk));
  const LaunchConfig config{
      .grid = {as_grid(p.rows), as_grid(ceil_div<int64_t>(p.width, int64_t{threads} * kChunk))},
      .block = threads,
      .stream = target.stream,
      .dependent = true,
      .carveout = carveout_of(p.rows)};
  with_float_type(target.activations, [&](auto act) {
    with_bool(p.width % kChunk == 0,
              [&](auto vector) { launch<silu_mul_rows<decltype(act), vector>>(config, p); });
  });
}

void copy_blocks(const Target& target, const BlockCopyParams& p) {
  if (p.count == 0) return;
  check_op(p);
  check_equal("copy_blocks, block_bytes modulo 16", p.block_bytes % 16, 0);
  // Enough blocks of threads for two waves, however few pairs there are.
  const int64_t pieces = ceil_div<int64_t>(p.block_bytes / 16, int64_t{kThreads} * kUnrolled);
  const int64_t wanted = ceil_div<int64_t>(int64_t{target.multiprocessors} * 16, p.count);
  const LaunchConfig config{
      .grid = {as_grid(p.count), as_grid(std::min(pieces, std::max<int64_t>(wanted, 1)))},
      .block = kThreads,
      .stream = target.stream,
      .dependent = true};
  launch<copy_pairs>(config, p);
}

void move_slots(const Target& target, const MoveSlotsParams& p) {
  if (p.count == 0) return;
  check_op(p);
  check_equal("move_slots, bytes of a token and head modulo 4", p.layout.token_bytes() % 4, 0);
  const LaunchConfig config{.grid = {as_grid(ceil_div<int64_t>(p.count, kMoveWarps)),
                                     as_grid(int64_t{p.layout.num_layers} * p.layout.num_kv_heads)},
                            .block = kMoveWarps * kWarp,
                            .stream = target.stream,
                            .dependent = true};
  launch<move_slots_rows>(config, p);
}

}  // namespace quire::QUIRE_SIDE
