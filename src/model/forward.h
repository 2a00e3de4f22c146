// The forward pass of the dense decoder families (Llama, Mistral, Qwen2, Qwen3) over the seam of
// kernels/kernels.h. Executor thread only. run() and logits() allocate nothing, synchronise nothing and
// decide by counts alone.
//
// Rows needed: all rows go through every layer's K and V, but only rows whose logits are wanted go through
// what follows the last layer's attention (its output projection, its MLP, the final norm, the output
// matrix); with none wanted, not even through that attention. In a prefill chunk of a 6-layer model that
// saves a ninth of the multiplications.
//
// Fusion: steps of few rows (Kernels::fused_rows) run norms, residual sums and gating inside the products around
// them, with the same roundings: six kernels a layer instead of nine.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/kv_layout.h"
#include "quire/result.h"
#include "src/model/model_spec.h"
#include "src/model/step_arrays.h"
#include "src/model/weights.h"

namespace quire {

struct ForwardLimits {
  int64_t max_rows = 0;         // tokens of one step
  int64_t max_logits_rows = 0;  // rows of one step whose logits are wanted
  int32_t max_sequences = 0;
  int32_t max_context_tokens = 0;  // positions and list lengths stay below / at this
};

class ForwardPass {
 public:
  // `arena` is the base of the block pool in `layout` (all layers in one block); it must outlive the pass.
  static Result<std::unique_ptr<ForwardPass>> create(Kernels& kernels, const ModelSpec& spec, Weights weights,
                                                     const ForwardLimits& limits, const KvLayout& layout,
                                                     char* arena);
  // Device bytes that create() allocates beside the weights: activations, the rotary table, and the kernels' scratch.
  static int64_t workspace_bytes(const Kernels& kernels, const ModelSpec& spec, const ForwardLimits& limits);

  // Called after each layer's attention, before its side outputs are written over.
  using AfterAttention = std::function<void(int32_t layer)>;
  // Writes K and V of every row; leaves the normed hidden states of the step's logits rows for logits(). With after_attention the
  // last layer's attention is run even if nobody wants logits.
  void run(const StepArrays& step, const AfterAttention& after_attention = {});
  // out[i] = logits of logits row first + i of the last run(): [count, vocab] float32. Any split gives the
  // same numbers.
  void logits(int64_t first, int64_t count, float* out);
  void run(const StepArrays& step, float* logits_out) {
    run(step);
    logits(0, step.num_logits_rows, logits_out);
  }

  const ModelSpec& spec() const { return spec_; }
  const ForwardLimits& limits() const { return limits_; }

 private:
  struct Rows {  // the rows that go through a stage: the residual stream and how many
    char* residual = nullptr;
    int64_t count = 0;
  };
  struct Linear {  // a weight and its bias
    const MatmulWeight& weight;
    const DeviceBuffer& bias;
  };
  ForwardPass(Kernels& kernels, const ModelSpec& spec, Weights weights, const ForwardLimits& limits,
              const KvLayout& layout, char* arena);
  Status allocate();
  void check_step(const StepArrays& step) const;
  void run_projection(const StepArrays& step, int32_t layer, bool first);
  AttentionParams attention_of(const StepArrays& step, int32_t layer) const;
  void plan_attention(const StepArrays& step);
  void run_attention(const StepArrays& step, int32_t layer);
  Rows keep_logits_rows(const StepArrays& step);
  void gather(const StepArrays& step, const void* source, int64_t width, void* out);
  void run_mlp(const LayerWeights& w, const Rows& rows);
  void gated_product(const LayerWeights& w, const Rows& rows);
  void norm_product(const Rows& rows, bool add_delta, const DeviceBuffer& norm, const Linear& linear,
                    void* out);
  void add_product(const void* x, const Linear& linear, const Rows& rows);
  void norm(const Rows& rows, const void* delta, const DeviceBuffer& weight, void* out);

  Kernels& kernels_;
  ModelSpec spec_;
  Weights weights_;
  ForwardLimits limits_;
  KvLayout layout_;
  char* arena_;

  // Activations, [max(max_rows, max_logits_rows), width] each.
  DeviceBuffer residual_, normed_, delta_, qkv_, q_sink_, attention_, gate_up_, product_;
  DeviceBuffer kept_residual_, kept_attention_;  // logits rows of the last layer
  DeviceBuffer rope_table_;                      // [max_context_tokens, head_dim] f32
  // How attention shares out its work, the same for all layers of one window: made once a step. Empty where the kernels want none.
  DeviceBuffer plans_;
  int64_t plan_bytes_ = 0;  // of one
  std::vector<int32_t> plan_of_layer_;
  bool fused_ = false;           // the step in hand goes through fused_matmul: delta_ is not used
  int64_t num_logits_rows_ = 0;  // of the last run()
  Rows kept_;                    // the same rows' residual stream, with fused_
};

}  // namespace quire
