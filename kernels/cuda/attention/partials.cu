// AttentionParams::partials: what each row sees of each segment of its list, not merged: the weighed sum of values, the largest logit, the sum of
// weights. For lists that lie in several places, whoever merges them (sums are exact in any order: Milakov and Gimelshein 2018,
// Online normalizer calculation for softmax, 3.1). A pass of its own over K and V, so that the kernels of a step stay free of it.
//
// What a warp works on: one (row, query head) and one segment, as plain.cu works on a whole list. Bound: the latency of its own loads.
#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/plain_row.h"
#include "kernels/cuda/dispatch.h"
#include "src/base/check.h"

namespace quire::QUIRE_SIDE {
namespace {

struct PartialsParams {
  AttentionView view;
  float* partials;  // [rows, num_q_heads, num_segments, head_dim + 2]
  int32_t segment_slots, num_segments;
};

// Natural units, as the reference has them.
template <class Act, class Kv>
__device__ void write_partial(const PlainRow<Act, Kv>& row, float* to) {
  row.for_each_value([&](int d, float value) { store(to + d, value); });
  if (row.lane != 0) return;
  store(to + row.v.head_dim, row.state.largest * kLn2);
  store(to + row.v.head_dim + 1, row.state.sum);
}

template <class Act, class Kv>
__global__ void __launch_bounds__(kPlainWarps* kWarp)
    attention_partials(const __grid_constant__ PartialsParams a, int64_t tasks) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const AttentionView& v = a.view;
  const int warp = threadIdx.x / kWarp;
  const int64_t task = int64_t{blockIdx.x} * kPlainWarps + warp;
  if (is_padding(v, task, tasks)) return;
  PlainRow<Act, Kv> row(v, task, dynamic_shared<float>() + warp * plain_floats(v.head_dim));
  row.load_queries();
  const int segment = blockIdx.y, begin = segment * a.segment_slots;
  row.visit(begin, min(begin + a.segment_slots, row.index + 1), nullptr);
  write_partial(row, a.partials + (task * a.num_segments + segment) * (v.head_dim + 2));
}

template <class Act, class Kv>
void launch_partials(void* stream, const AttentionParams& p) {
  const int64_t tasks = p.rows * p.num_q_heads;
  const PartialsParams params{.view = view_of(p),
                              .partials = p.partials,
                              .segment_slots = p.segment_slots,
                              .num_segments = p.num_segments};
  launch<attention_partials<Act, Kv>>(
      {.grid = {as_grid(ceil_div(tasks, int64_t{kPlainWarps})), as_grid(p.num_segments)},
       .block = dim3(kPlainWarps * kWarp),
       .shared_bytes = kPlainWarps * plain_floats(p.head_dim) * 4,
       .stream = stream,
       .dependent = true},
      params, tasks);
}

}  // namespace

void launch_attention_partials(const AttentionContext& context, DType activations, const AttentionParams& p) {
  check(p.head_dim <= kPlainMaxDim, "attention partials: head_dim over 256");
  const DType kv = p.layout.dtype;
  if (activations == DType::kF32 && kv == DType::kF32)
    return launch_partials<float, float>(context.stream, p);
  if (activations == DType::kF32 && kv == DType::kBF16)
    return launch_partials<float, bf16>(context.stream, p);
  if (activations == DType::kF32 && kv == DType::kF16) return launch_partials<float, f16>(context.stream, p);
  if (activations == DType::kBF16 && kv == DType::kBF16)
    return launch_partials<bf16, bf16>(context.stream, p);
  if (activations == DType::kF16 && kv == DType::kF16) return launch_partials<f16, f16>(context.stream, p);
  check(false, "attention partials: 16-bit activations need a KV cache of the same dtype");
}

}  // namespace quire::QUIRE_SIDE
