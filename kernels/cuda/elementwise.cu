// embed, silu_mul and copy_blocks. Each moves its bytes once, 16 at a time, and is bounded by memory alone.
#include "kernels/cuda/ops.h"
#include "kernels/cuda/vector.h"
#include "kernels/op_checks.h"

namespace quire::QUIRE_SIDE {
namespace {

constexpr int kThreads = 256;

// ---- embed: a block of threads takes a row; moves rows * hidden * (table + act) bytes
// ------------------------------------
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

// ---- silu_mul: a thread takes eight columns of a row; moves 3 * rows * width elements
// --------------------------------------
template <class Act, bool kVector>
__global__ void silu_mul_rows(SiluMulParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t row = blockIdx.y;
  const int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kChunk;
  if (i >= p.width) return;
  const auto* gate = static_cast<const Act*>(p.gate_up) + row * 2 * p.width + i;
  const int64_t count = p.width - i;
  const Chunk g = load_chunk<Act, kVector>(gate, count), up = load_chunk<Act, kVector>(gate + p.width, count);
  Chunk out;
#pragma unroll
  for (int j = 0; j < kChunk; ++j)
    out.v[j] = g.v[j] * rcp_approx(1.0f + exp2_approx(-kLog2e * g.v[j])) * up.v[j];
  store_chunk<Act, kVector>(static_cast<Act*>(p.out) + row * p.width + i, out, count);
}

// ---- copy_blocks: a block of threads takes a piece of one pair; moves 2 * count * block_bytes
// ------------------------------
constexpr int kUnrolled = 4;  // 16-byte loads of a thread in flight

__global__ void copy_pairs(BlockCopyParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int32_t* pair = p.pairs + 2 * int64_t{blockIdx.y};
  const auto* source = reinterpret_cast<const uint4*>(p.arena + load(pair) * p.block_bytes);
  auto* target = reinterpret_cast<uint4*>(p.arena + load(pair + 1) * p.block_bytes);
  const int64_t end = p.block_bytes / 16, step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < end; i += kUnrolled * step) {
    uint4 v[kUnrolled] = {};
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u)
      if (i + u * step < end) v[u] = load_streaming(source + i + u * step);
#pragma unroll
    for (int u = 0; u < kUnrolled; ++u)
      if (i + u * step < end) store(target + i + u * step, v[u]);
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
                            .dependent = true};
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
  const unsigned threads = threads_for(ceil_div<int64_t>(p.width, kChunk));
  const LaunchConfig config{
      .grid = {as_grid(ceil_div<int64_t>(p.width, int64_t{threads} * kChunk)), as_grid(p.rows)},
      .block = threads,
      .stream = target.stream,
      .dependent = true};
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
      .grid = {as_grid(std::min(pieces, std::max<int64_t>(wanted, 1))), as_grid(p.count)},
      .block = kThreads,
      .stream = target.stream,
      .dependent = true};
  launch<copy_pairs>(config, p);
}

}  // namespace quire::QUIRE_SIDE
