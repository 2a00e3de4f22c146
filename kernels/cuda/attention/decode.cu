#include "kernels/cuda/attention/decode.h"

#include <algorithm>

#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/attention/decode_block.h"
#include "kernels/cuda/dispatch.h"
#include "src/base/check.h"

namespace quire::QUIRE_SIDE {
namespace {

template <class T, int kDim, int kHeadBlocks, bool kPlain>
__global__ void __launch_bounds__(kMaxThreads, 1)
    decode_attention(const __grid_constant__ DecodeParams params) {
  Decode<T, kDim, kHeadBlocks, kPlain>(params).run();
}

// As many stages as asked for, fewer where the card's shared memory ends: 4 warps then hold their rings where
// 8 do not.
template <class T, int kDim, int kHeadBlocks, bool kPlain>
void launch_decode(void* stream, const AttentionMachine& machine, const DecodeTuning& tuning,
                   DecodeParams params) {
  using D = Decode<T, kDim, kHeadBlocks, kPlain>;
  int warps = tuning.warps, stages = tuning.stages;
  const int sequences = params.view.num_sequences;
  const int room = std::min(machine.shared_bytes_per_block,
                            sequences == 1 ? kOneRowSharedBytes : machine.shared_bytes_per_block);
  const auto fits = [&] { return D::shared_bytes(warps, stages) <= room; };
  while (!fits() && stages > 2) --stages;
  while (!fits() && warps > 1) warps /= 2;
  check(fits(), "decode attention: two stages do not fit the card's shared memory");
  params.stages = stages;
  launch<decode_attention<T, kDim, kHeadBlocks, kPlain>>({.grid = dim3(params.blocks),
                                                          .block = dim3(warps * kWarp),
                                                          .shared_bytes = D::shared_bytes(warps, stages),
                                                          .stream = stream,
                                                          .dependent = true,
                                                          .carveout = carveout_of(sequences)},
                                                         params);
}

bool is_plain(const DecodeParams& a) {
  const AttentionView& v = a.view;
  return v.q_sink == nullptr && v.row_logits == nullptr && v.sinks == nullptr && v.lse == nullptr &&
         v.soft_cap == 0 && a.prefix.member_start == nullptr;
}

template <class T, int kDim, int kHeadBlocks>
void launch_for_options(void* stream, const AttentionMachine& machine, const DecodeTuning& tuning,
                        const DecodeParams& params) {
  if (is_plain(params)) return launch_decode<T, kDim, kHeadBlocks, true>(stream, machine, tuning, params);
  launch_decode<T, kDim, kHeadBlocks, false>(stream, machine, tuning, params);
}

template <class T, int kDim>
void launch_for_group(void* stream, const AttentionMachine& machine, const DecodeTuning& tuning,
                      const DecodeParams& params) {
  if constexpr (kDim <= 128) {  // two head blocks of 256 would spill
    if (params.view.group > kHeadBlock)
      return launch_for_options<T, kDim, 2>(stream, machine, tuning, params);
  }
  launch_for_options<T, kDim, 1>(stream, machine, tuning, params);
}

template <class T>
void launch_for_dim(void* stream, const AttentionMachine& machine, const DecodeTuning& tuning,
                    const DecodeParams& params) {
  switch (params.view.head_dim) {
    case 64:
      return launch_for_group<T, 64>(stream, machine, tuning, params);
    case 80:
      return launch_for_group<T, 80>(stream, machine, tuning, params);
    case 96:
      return launch_for_group<T, 96>(stream, machine, tuning, params);
    case 128:
      return launch_for_group<T, 128>(stream, machine, tuning, params);
    case 256:
      return launch_for_group<T, 256>(stream, machine, tuning, params);
    default:
      check(false, "decode attention: head_dim has no tensor-core kernel");
  }
}

}  // namespace

int64_t decode_partial_floats(int grid, int head_dim) {
  return int64_t{grid} * 2 * (2 * kHeadBlock) * (head_dim + 4);
}

namespace {

// Where there are not two units a multiprocessor, more warps are at one unit's tiles.
const DecodeTuning& tuning_of(const AttentionContext& context, const AttentionParams& p) {
  const bool many = int64_t{p.num_sequences} * p.num_kv_heads >= 2 * context.machine.multiprocessors;
  return p.prefixes.num_nodes > 0 && many ? context.tails : context.decode;
}

// What the plan goes by, and where it lies; decode needs more.
DecodeParams planned_params(const AttentionContext& context, const AttentionParams& p) {
  const bool list_per_head = p.head_table_stride != 0;
  const DecodeTuning& tuning = tuning_of(context, p);
  DecodeParams a = {.view = view_of(p)};
  if (p.prefixes.num_nodes > 0) a.view.private_start = p.prefixes.private_start;
  a.blocks = context.machine.multiprocessors * tuning.blocks_per_multiprocessor;
  a.plan = decode_plan_at(p.plan, a.blocks);
  a.lists = list_per_head ? p.num_kv_heads : 1;
  const int heads = a.view.group <= kHeadBlock || p.head_dim > 128 ? kHeadBlock : 2 * kHeadBlock;
  a.passes = (a.view.group + heads - 1) / heads;
  a.min_tiles = tuning.min_tiles;
  a.unit_cost = tuning.unit_cost;
  a.aligned = tuning.aligned;
  a.split_first = tuning.split_first;
  check(int64_t{p.num_sequences} * p.num_q_heads <= context.scratch.num_counters,
        "attention: more heads than reserved counters");
  return a;
}

}  // namespace

void plan_decode_attention(const AttentionContext& context, const AttentionParams& p) {
  launch_decode_plan(context.stream, planned_params(context, p));
}

void launch_decode_attention(const AttentionContext& context, const AttentionParams& given,
                             const PrefixPartials& prefix) {
  AttentionParams p = given;
  if (given.plan == nullptr) {
    p.plan = context.scratch.plan;
    plan_decode_attention(context, p);
  }
  DecodeParams a = planned_params(context, p);
  a.prefix = prefix;
  a.partials = context.scratch.partials;
  a.counters = context.scratch.counters;
  a.early_fetch = p.early_fetch;
  a.plan_is_old = given.plan != nullptr;
  check(decode_partial_floats(a.blocks, p.head_dim) <= context.scratch.partial_floats,
        "attention: partials exceed the reserved scratch");
  if (p.layout.dtype == DType::kBF16)
    return launch_for_dim<bf16>(context.stream, context.machine, tuning_of(context, p), a);
  launch_for_dim<f16>(context.stream, context.machine, tuning_of(context, p), a);
}

}  // namespace quire::QUIRE_SIDE
