// Attention without tensor cores: float32 values (a float32 model's tokens must equal the CPU's), and head
// sizes that no other kernel takes. Any number of rows, every option but column sums.
//
// What a warp works on: one (row, query head), its whole list (plain_row.h). Bound: the latency of its own
// loads; K and V are read once per query head. Not meant to be fast, only right: models of 16-bit types and
// usual head sizes never come here.
#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/plain_row.h"
#include "src/base/check.h"

namespace quire::QUIRE_SIDE {
namespace {

template <class Act, class Kv>
struct Plain : PlainRow<Act, Kv> {
  using PlainRow<Act, Kv>::PlainRow;

  __device__ void run() {
    const AttentionView& v = this->v;
    this->load_queries();
    const bool last_row =
        v.row_logits != nullptr && this->row + 1 == load(v.query_start + this->sequence + 1);
    float* logits = last_row ? row_logits_of(v, this->sequence, this->q_head, this->length) : nullptr;
    this->visit(this->sink_slots > 0 ? 0 : this->first, this->index + 1, logits);
    if (this->index >= 0) write();
  }

  __device__ void write() {
    const AttentionView& v = this->v;
    const float norm = normaliser(v, this->state, this->q_head);
    const int64_t out_row = int64_t{this->row} * v.num_q_heads + this->q_head;
    Act* out = static_cast<Act*>(v.out) + out_row * v.head_dim;
    this->for_each_value([&](int d, float value) { store(out + d, from_f32<Act>(value * norm)); });
    if (v.lse != nullptr && this->lane == 0) store(v.lse + out_row, lse_of(this->state));
  }
};

template <class Act, class Kv>
__global__ void __launch_bounds__(kPlainWarps* kWarp)
    plain_attention(const __grid_constant__ AttentionView v, int64_t tasks) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int warp = threadIdx.x / kWarp;
  const int64_t task = int64_t{blockIdx.x} * kPlainWarps + warp;
  if (is_padding(v, task, tasks)) return;
  Plain<Act, Kv>(v, task, dynamic_shared<float>() + warp * plain_floats(v.head_dim)).run();
}

template <class Act, class Kv>
void launch_plain(void* stream, const AttentionParams& p) {
  const int64_t tasks = p.rows * p.num_q_heads;
  launch<plain_attention<Act, Kv>>(
      {.grid = dim3(static_cast<unsigned>((tasks + kPlainWarps - 1) / kPlainWarps)),
       .block = dim3(kPlainWarps * kWarp),
       .shared_bytes = kPlainWarps * plain_floats(p.head_dim) * 4,
       .stream = stream,
       .dependent = true},
      view_of(p), tasks);
}

}  // namespace

void launch_plain_attention(const AttentionContext& context, DType activations, const AttentionParams& p) {
  check(p.head_dim <= kPlainMaxDim, "attention: head_dim over 256");
  const DType kv = p.layout.dtype;
  if (activations == DType::kF32 && kv == DType::kF32) return launch_plain<float, float>(context.stream, p);
  if (activations == DType::kF32 && kv == DType::kBF16) return launch_plain<float, bf16>(context.stream, p);
  if (activations == DType::kF32 && kv == DType::kF16) return launch_plain<float, f16>(context.stream, p);
  if (activations == DType::kBF16 && kv == DType::kBF16) return launch_plain<bf16, bf16>(context.stream, p);
  if (activations == DType::kF16 && kv == DType::kF16) return launch_plain<f16, f16>(context.stream, p);
  check(false, "attention: 16-bit activations need a KV cache of the same dtype");
}

}  // namespace quire::QUIRE_SIDE
