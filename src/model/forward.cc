#include "src/model/forward.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "src/base/check.h"
#include "src/model/rope_table.h"

namespace quire {
namespace {

struct Widths {  // elements a row
  int64_t hidden, qkv, attention, gate_up, product;
};

Widths widths_of(const ModelSpec& s) {
  const int64_t q = int64_t{s.num_q_heads} * s.head_dim, kv = int64_t{s.num_kv_heads} * s.head_dim;
  return {s.hidden_size, q + 2 * kv, q, 2 * int64_t{s.intermediate_size}, s.intermediate_size};
}

int64_t rows_of(const ForwardLimits& limits) {
  return std::max(limits.max_rows, limits.max_logits_rows);
}

const float* floats(const DeviceBuffer& buffer) {
  return buffer.as<const float>();
}

ScratchLimits scratch_limits(const ModelSpec& spec, const ForwardLimits& limits) {
  return {.max_rows = rows_of(limits),
          .max_sequences = limits.max_sequences,
          .max_q_heads = spec.num_q_heads,
          .max_head_dim = spec.head_dim,
          .max_length = limits.max_context_tokens};
}

// Layers of one window read their lists alike. Of each layer, which of the different windows is its.
std::vector<int32_t> window_indices(const ModelSpec& spec) {
  std::vector<int32_t> windows, indices;
  for (const int32_t window : spec.window) {
    const auto at = std::find(windows.begin(), windows.end(), window);
    indices.push_back(static_cast<int32_t>(at - windows.begin()));
    if (at == windows.end()) windows.push_back(window);
  }
  return indices;
}

int64_t num_plans(const std::vector<int32_t>& plan_of_layer) {
  return *std::max_element(plan_of_layer.begin(), plan_of_layer.end()) + 1;
}

}  // namespace

int64_t ForwardPass::workspace_bytes(const Kernels& kernels, const ModelSpec& spec,
                                     const ForwardLimits& limits) {
  const Widths w = widths_of(spec);
  const int64_t all = 3 * w.hidden + 2 * w.qkv + w.attention + w.gate_up + w.product,
                kept = w.hidden + w.attention;
  const int64_t rope = int64_t{limits.max_context_tokens} * spec.head_dim * bytes_of(DType::kF32);
  return (rows_of(limits) * all + limits.max_logits_rows * kept) * bytes_of(kernels.options().activations) +
         rope + kernels.scratch_bytes(scratch_limits(spec, limits)) +
         num_plans(window_indices(spec)) * kernels.attention_plan_bytes(scratch_limits(spec, limits));
}

ForwardPass::ForwardPass(Kernels& kernels, const ModelSpec& spec, Weights weights,
                         const ForwardLimits& limits, const KvLayout& layout, char* arena)
    : kernels_(kernels),
      spec_(spec),
      weights_(std::move(weights)),
      limits_(limits),
      layout_(layout),
      arena_(arena),
      plan_bytes_(kernels.attention_plan_bytes(scratch_limits(spec, limits))),
      plan_of_layer_(window_indices(spec)) {}

Result<std::unique_ptr<ForwardPass>> ForwardPass::create(Kernels& kernels, const ModelSpec& spec,
                                                         Weights weights, const ForwardLimits& limits,
                                                         const KvLayout& layout, char* arena) {
  check(limits.max_context_tokens <= spec.max_positions,
        "forward: max_context_tokens above the model's positions");
  check(layout.num_layers == spec.num_layers && layout.num_kv_heads == spec.num_kv_heads &&
            layout.head_dim == spec.head_dim,
        "forward: the layout of the cache is not the model's");
  for (int32_t i = 0; i < spec.num_layers; ++i) {
    check(spec.kv_source[static_cast<size_t>(i)] == i,
          "forward: these families compute K and V in every layer");
  }
  std::unique_ptr<ForwardPass> pass(
      new ForwardPass(kernels, spec, std::move(weights), limits, layout, arena));
  if (Status allocated = pass->allocate(); !allocated) return allocated.error();
  return pass;
}

Status ForwardPass::allocate() {
  const Widths w = widths_of(spec_);
  const int64_t rows = rows_of(limits_), element = bytes_of(kernels_.options().activations);
  const int64_t table_elements = int64_t{limits_.max_context_tokens} * spec_.head_dim;
  const std::pair<DeviceBuffer*, int64_t> buffers[] = {
      {&residual_, rows * w.hidden * element},
      {&normed_, rows * w.hidden * element},
      {&delta_, rows * w.hidden * element},
      {&qkv_, rows * w.qkv * element},
      {&q_sink_, rows * w.qkv * element},
      {&attention_, rows * w.attention * element},
      {&gate_up_, rows * w.gate_up * element},
      {&product_, rows * w.product * element},
      {&kept_residual_, limits_.max_logits_rows * w.hidden * element},
      {&kept_attention_, limits_.max_logits_rows * w.attention * element},
      {&rope_table_, table_elements * bytes_of(DType::kF32)},
      {&plans_, num_plans(plan_of_layer_) * plan_bytes_}};
  for (const auto& [buffer, bytes] : buffers) {
    Result<DeviceBuffer> memory = kernels_.device().allocate(bytes, "workspace of the forward pass");
    if (!memory) return memory.error();
    *buffer = std::move(*memory);
  }
  std::vector<float> table(static_cast<size_t>(table_elements));
  fill_rope_table(spec_.rope, spec_.head_dim, limits_.max_context_tokens, table);
  kernels_.device().copy_to_device(rope_table_.data(), table.data(), rope_table_.bytes());
  kernels_.device().synchronize();
  return kernels_.reserve(scratch_limits(spec_, limits_));
}

void ForwardPass::check_step(const StepArrays& step) const {
  const auto at_most = [](const char* what, int64_t got, int64_t limit) {
    if (got > limit) [[unlikely]]
      check_failed(fmt::format("forward: {} is {}, at most {}", what, got, limit), __FILE__, __LINE__);
  };
  at_most("rows", step.rows, limits_.max_rows);
  at_most("num_sequences", step.num_sequences, limits_.max_sequences);
  at_most("max_length", step.max_length, limits_.max_context_tokens);
  at_most("num_logits_rows", step.num_logits_rows, limits_.max_logits_rows);
  check(!step.all_rows_have_logits || step.num_logits_rows == step.rows,
        "forward: all rows have logits, but their counts differ");
}

void ForwardPass::run(const StepArrays& step, const AfterAttention& after_attention) {
  check_step(step);
  num_logits_rows_ = step.num_logits_rows;
  fused_ = std::max(step.rows, step.num_logits_rows) <= kernels_.fused_rows();
  kernels_.embed({.ids = step.ids,
                  .table = weights_.embedding.data(),
                  .table_dtype = weights_.embedding_dtype,
                  .out = residual_.data(),
                  .rows = step.rows,
                  .hidden = spec_.hidden_size});
  if (plan_bytes_ > 0) plan_attention(step);
  const int32_t last = spec_.num_layers - 1;
  for (int32_t layer = 0; layer < last; ++layer) {
    run_projection(step, layer, layer == 0);
    run_attention(step, layer);
    if (after_attention) after_attention(layer);
    const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
    const Rows rows{residual_.as<char>(), step.rows};
    add_product(attention_.data(), {*w.o, w.o_bias}, rows);
    run_mlp(w, rows);
  }
  run_projection(step, last, last == 0);
  if (step.num_logits_rows == 0 && !after_attention) return;
  run_attention(step, last);
  if (after_attention) after_attention(last);
  if (step.num_logits_rows == 0) return;
  const LayerWeights& w = weights_.layers[static_cast<size_t>(last)];
  kept_ = keep_logits_rows(step);
  add_product(step.all_rows_have_logits ? attention_.data() : kept_attention_.data(), {*w.o, w.o_bias},
              kept_);
  run_mlp(w, kept_);
  if (!fused_) norm(kept_, delta_.data(), weights_.final_norm, normed_.data());
}

void ForwardPass::logits(int64_t first, int64_t count, float* out) {
  check(first >= 0 && first + count <= num_logits_rows_,
        "forward: logits of rows that the step did not keep");
  const int64_t row_bytes = spec_.hidden_size * bytes_of(kernels_.options().activations);
  if (fused_) {
    kernels_.fused_matmul({.x = kept_.residual + first * row_bytes,
                           .norm_weight = floats(weights_.final_norm),
                           .norm_eps = spec_.norm_eps,
                           .normed = normed_.data(),
                           .weight = weights_.lm_head.get(),
                           .out = out,
                           .out_f32 = true,
                           .m = count});
    return;
  }
  kernels_.matmul({.x = normed_.as<char>() + first * row_bytes,
                   .weight = weights_.lm_head.get(),
                   .out = out,
                   .out_f32 = true,
                   .m = count});
}

// residual += what the layer before left in delta; q | k | v; rotation; K and V into their blocks.
void ForwardPass::run_projection(const StepArrays& step, int32_t layer, bool first) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  norm_product({residual_.as<char>(), step.rows}, !first, w.input_norm, {*w.qkv, w.qkv_bias}, qkv_.data());
  kernels_.rope_kv_write({.qkv = qkv_.data(),
                          .q_sink_out = step.sink_slots == nullptr ? nullptr : q_sink_.data(),
                          .sink_positions = step.sink_positions,
                          .positions = step.positions,
                          .slots = step.slots + layer * step.slot_layer_stride,
                          .slot_stride = step.slot_stride,
                          .cos_sin = floats(rope_table_),
                          .rotary_dim = spec_.head_dim,
                          .q_norm = floats(w.q_norm),
                          .k_norm = floats(w.k_norm),
                          .norm_eps = spec_.norm_eps,
                          .arena = arena_ + layer * layout_.layer_stride(),
                          .layout = layout_,
                          .num_q_heads = spec_.num_q_heads,
                          .num_kv_heads = spec_.num_kv_heads,
                          .head_dim = spec_.head_dim,
                          .rows = step.rows});
}

// After the embedding, so that the arrays are older than the kernel before.
void ForwardPass::plan_attention(const StepArrays& step) {
  for (int32_t layer = 0; layer < spec_.num_layers; ++layer) {
    const auto layers_of_plan = plan_of_layer_.begin() + layer;
    const bool first_of_its_plan =
        std::find(plan_of_layer_.begin(), layers_of_plan, *layers_of_plan) == layers_of_plan;
    if (first_of_its_plan) kernels_.plan_attention(attention_of(step, layer));
  }
}

void ForwardPass::run_attention(const StepArrays& step, int32_t layer) {
  kernels_.attention(attention_of(step, layer));
}

AttentionParams ForwardPass::attention_of(const StepArrays& step, int32_t layer) const {
  const Widths w = widths_of(spec_);
  return {.q = qkv_.data(),
          .q_stride = w.qkv,
          .out = attention_.data(),
          .arena = arena_ + layer * layout_.layer_stride(),
          .layout = layout_,
          .num_q_heads = spec_.num_q_heads,
          .num_kv_heads = spec_.num_kv_heads,
          .head_dim = spec_.head_dim,
          .scale = 1.0f / std::sqrt(static_cast<float>(spec_.head_dim)),
          .window = spec_.window[static_cast<size_t>(layer)],
          .windows = step.windows,
          .num_sequences = step.num_sequences,
          .rows = step.rows,
          .max_rows = step.max_rows,
          .max_length = step.max_length,
          .query_start = step.query_start,
          .lengths = step.lengths,
          .block_table = step.block_table,
          .table_stride = step.table_stride,
          .early_fetch = !step.overwrites,
          .plan = plan_bytes_ == 0
                      ? nullptr
                      : plans_.as<char>() + plan_of_layer_[static_cast<size_t>(layer)] * plan_bytes_,
          .q_sink = step.sink_slots == nullptr ? nullptr : q_sink_.data(),
          .sink_slots = step.sink_slots,
          // In a layer with a window of its own rows do not see all of a prefix.
          .prefixes = spec_.window[static_cast<size_t>(layer)] == 0 ? step.prefixes : SharedPrefixes{},
          .lse = step.lse,
          .row_logits = step.row_logits,
          .row_logits_stride = step.side_stride,
          .row_logits_start = step.row_logits_start,
          .column_sums = step.column_sums,
          .column_sums_stride = step.side_stride,
          .column_sums_start = step.column_sums_start};
}

ForwardPass::Rows ForwardPass::keep_logits_rows(const StepArrays& step) {
  if (step.all_rows_have_logits) return {residual_.as<char>(), step.rows};
  gather(step, residual_.data(), spec_.hidden_size, kept_residual_.data());
  gather(step, attention_.data(), int64_t{spec_.num_q_heads} * spec_.head_dim, kept_attention_.data());
  return {kept_residual_.as<char>(), step.num_logits_rows};
}

// A gather of rows is an embedding lookup in the activations.
void ForwardPass::gather(const StepArrays& step, const void* source, int64_t width, void* out) {
  kernels_.embed({.ids = step.logits_rows,
                  .table = source,
                  .table_dtype = kernels_.options().activations,
                  .out = out,
                  .rows = step.num_logits_rows,
                  .hidden = width});
}

void ForwardPass::run_mlp(const LayerWeights& w, const Rows& rows) {
  if (w.gate_up->gate_group > 0 && (fused_ || kernels_.gates(*w.gate_up, rows.count))) {
    gated_product(w, rows);
  } else {
    norm_product(rows, true, w.post_norm, {*w.gate_up, w.gate_up_bias}, gate_up_.data());
    kernels_.silu_mul({.gate_up = gate_up_.data(),
                       .gate_group = w.gate_up->gate_group,
                       .out = product_.data(),
                       .rows = rows.count,
                       .width = spec_.intermediate_size});
  }
  add_product(product_.data(), {*w.down, w.down_bias}, rows);
}

// product_ = silu(gate) * up of the rows' residual stream, normed: in one op, or with the norm and what add_product left before it.
void ForwardPass::gated_product(const LayerWeights& w, const Rows& rows) {
  if (!fused_) norm(rows, delta_.data(), w.post_norm, normed_.data());
  kernels_.fused_matmul({.x = fused_ ? rows.residual : normed_.data(),
                         .norm_weight = fused_ ? floats(w.post_norm) : nullptr,
                         .norm_eps = spec_.norm_eps,
                         .normed = fused_ ? normed_.data() : nullptr,
                         .weight = w.gate_up.get(),
                         .bias = floats(w.gate_up_bias),
                         .gated = true,
                         .out = product_.data(),
                         .m = rows.count});
}

// out = the rows' residual stream, normed, through `linear`. add_delta: what add_product left comes first.
void ForwardPass::norm_product(const Rows& rows, bool add_delta, const DeviceBuffer& norm_weight,
                               const Linear& linear, void* out) {
  if (fused_) {
    kernels_.fused_matmul({.x = rows.residual,
                           .norm_weight = floats(norm_weight),
                           .norm_eps = spec_.norm_eps,
                           .normed = normed_.data(),
                           .weight = &linear.weight,
                           .bias = floats(linear.bias),
                           .out = out,
                           .m = rows.count});
    return;
  }
  norm(rows, add_delta ? delta_.data() : nullptr, norm_weight, normed_.data());
  kernels_.matmul({.x = normed_.data(),
                   .weight = &linear.weight,
                   .bias = floats(linear.bias),
                   .out = out,
                   .m = rows.count});
}

// residual += x through `linear`: at once, or left in delta for the norm that comes next.
void ForwardPass::add_product(const void* x, const Linear& linear, const Rows& rows) {
  if (fused_) {
    kernels_.fused_matmul({.x = x,
                           .weight = &linear.weight,
                           .bias = floats(linear.bias),
                           .residual = rows.residual,
                           .m = rows.count});
  } else {
    kernels_.matmul({.x = x,
                     .weight = &linear.weight,
                     .bias = floats(linear.bias),
                     .out = delta_.data(),
                     .m = rows.count});
  }
}

void ForwardPass::norm(const Rows& rows, const void* delta, const DeviceBuffer& weight, void* out) {
  kernels_.add_rms_norm({.residual = rows.residual,
                         .delta = delta,
                         .weight = floats(weight),
                         .out = out,
                         .eps = spec_.norm_eps,
                         .rows = rows.count,
                         .hidden = spec_.hidden_size});
}

}  // namespace quire
