#include "kernels/cuda/step_kernels.h"

#include <algorithm>
#include <cstring>

#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/matmul/matmul.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/retention.h"
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/weight_upload.h"
#include "kernels/op_checks.h"
#include "src/base/log.h"

namespace quire::QUIRE_SIDE {
namespace {

class StepKernels final : public Kernels {
 public:
  StepKernels(StreamDevice& device, const KernelOptions& options, std::unique_ptr<GemmLibrary> library)
      : device_(device),
        options_(options),
        target_{.stream = device.stream(),
                .multiprocessors = device.facts().multiprocessors,
                .shared_bytes_per_block = device.facts().shared_bytes_per_block,
                .compute_capability = device.facts().kernel_capability,
                .activations = options.activations},
        attention_{.stream = device.stream(),
                   .machine = {.multiprocessors = device.facts().multiprocessors,
                               .shared_bytes_per_block = device.facts().shared_bytes_per_block,
                               .compute_capability = device.facts().kernel_capability}},
        library_(std::move(library)),
        uploader_(device) {}

  // The memory of products that blocks share: they come before reserve(), in tests and benchmarks.
  Status allocate() {
    if (options_.activations == DType::kF32) return ok();
    const int64_t bytes = SharedSums::bytes(target_);
    Result<DeviceBuffer> memory = device_.allocate(bytes, "partial sums of products");
    if (!memory) return memory.error();
    sums_memory_ = std::move(*memory);
    sums_ = SharedSums::in(target_, sums_memory_.data());
    device_.set_zero(sums_memory_.data(), bytes);
    return ok();
  }

  const KernelOptions& options() const override { return options_; }
  Device& device() override { return device_; }

  Result<std::unique_ptr<MatmulWeight>> pack(std::span<const HostMatrix> parts) override {
    check_parts(parts);
    return uploader_.upload(options_.activations, parts, 0);
  }
  Result<std::unique_ptr<MatmulWeight>> pack_gate_up(const HostMatrix& gate, const HostMatrix& up) override {
    const HostMatrix parts[] = {gate, up};
    check_parts(parts);
    check_equal("gate and up, rows", up.rows, gate.rows);
    return uploader_.upload(options_.activations, parts, gate.rows % kGateGroup == 0 ? kGateGroup : 0);
  }

  int64_t scratch_bytes(const ScratchLimits& limits) const override { return scratch_need(limits).bytes(); }
  Status reserve(const ScratchLimits& limits) override {
    uploader_.finish();  // the weights are there
    const AttentionScratchNeed need = scratch_need(limits);
    Result<DeviceBuffer> scratch = device_.allocate(need.bytes(), "scratch of attention");
    if (!scratch) return scratch.error();
    scratch_ = std::move(*scratch);
    attention_.scratch = need.place(scratch_.data());
    device_.set_zero(attention_.scratch.counters, need.num_counters * 4);
    return ok();
  }

  // Memory for the largest of these products, for as long as it takes. Without it, or without a library, nothing is timed.
  void tune(const TuneRequest& r) override {
    if (library_ == nullptr || r.budget_ms <= 0 || r.max_rows <= kMaxWideRows) return;
    std::vector<ProductFamily> families = families_of(r);
    int64_t x_bytes = 0, out_bytes = 0;
    for (const ProductFamily& f : families) {
      x_bytes = std::max(x_bytes, int64_t{f.front().m} * f.front().k * 2);
      out_bytes = std::max(out_bytes, int64_t{f.front().m} * f.front().n * (f.front().out_f32 ? 4 : 2));
    }
    const Result<DeviceBuffer> x = device_.allocate(x_bytes, "rows to time products with");
    const Result<DeviceBuffer> out = device_.allocate(out_bytes, "results of timed products");
    if (!x || !out)
      return log_line(LogLevel::kWarn, "gemm_not_tuned", {{"why", (x ? out : x).error().message}});
    fill_rows(families, *x);
    for (ProductFamily& f : families)
      for (Product& p : f) p.x = x->data(), p.out = out->data();
    const TuningResult t = library_->tune(families, kMaxWideRows, r.budget_ms * 1000);
    log_line(LogLevel::kInfo, "gemm_tuned",
             {{"shapes", t.shapes}, {"timed", t.timed}, {"changed", t.changed}, {"ms", t.us / 1000}});
  }

  void embed(const EmbedParams& p) override { QUIRE_SIDE::embed(target_, p); }
  void add_rms_norm(const AddRmsNormParams& p) override { QUIRE_SIDE::add_rms_norm(target_, p); }
  void rope_kv_write(const RopeKvWriteParams& p) override { QUIRE_SIDE::rope_kv_write(target_, p); }
  void silu_mul(const SiluMulParams& p) override { QUIRE_SIDE::silu_mul(target_, p); }
  void copy_bytes(const CopyBytesParams& p) override { QUIRE_SIDE::copy_bytes(target_, p); }
  void bring_step(const BringStepParams& p) override { QUIRE_SIDE::bring_step(target_, p); }
  void copy_blocks(const BlockCopyParams& p) override { QUIRE_SIDE::copy_blocks(target_, p); }
  void move_slots(const MoveSlotsParams& p) override { QUIRE_SIDE::move_slots(target_, p); }
  void attention(const AttentionParams& p) override {
    QUIRE_SIDE::attention(attention_, options_.activations, p);
  }
  int64_t attention_plan_bytes(const ScratchLimits& l) const override {
    return QUIRE_SIDE::attention_plan_bytes(attention_.machine, attention_.decode, l.max_sequences,
                                            l.max_q_heads);
  }
  void plan_attention(const AttentionParams& p) override {
    QUIRE_SIDE::plan_attention(attention_, options_.activations, p);
  }

  void retention_slots(const RetentionSlotsParams& p) override { QUIRE_SIDE::retention_slots(target_, p); }
  void retention_scores(const RetentionScoresParams& p) override { QUIRE_SIDE::retention_scores(target_, p); }

  int32_t prefix_splits(const PrefixCounts& shared, int32_t num_q_heads, int32_t num_kv_heads,
                        int32_t head_dim) const override {
    return QUIRE_SIDE::prefix_splits(attention_, options_.activations, shared, num_q_heads, num_kv_heads,
                                     head_dim);
  }

  int64_t sample_space_bytes() const override { return QUIRE_SIDE::sample_space_bytes(); }
  void sample(const SampleParams& p) override { QUIRE_SIDE::sample(target_, p); }
  void edit_logits(const EditLogitsParams& p) override { QUIRE_SIDE::edit_logits(target_, p); }
  void report_logprobs(const ReportLogprobsParams& p) override { QUIRE_SIDE::report_logprobs(target_, p); }

  void matmul(const MatmulParams& p) override {
    if (p.m == 0) return;
    check_op(p);
    Product product = product_of(p.weight, p.x, p.m);
    product.bias = p.bias;
    product.out = p.out;
    product.out_f32 = p.out_f32;
    multiply(product);
  }

  // Of f32 rows only one at a time has kernels that fuse.
  int64_t fused_rows() const override { return options_.activations == DType::kF32 ? 1 : kMaxWideRows; }

  bool gates(const MatmulWeight& gate_up, int64_t rows) const override {
    if (gate_up.gate_group == 0 || options_.activations == DType::kF32) return false;
    Product product = product_of(&gate_up, nullptr, rows);
    product.gated = true;
    return rows > fused_rows() && broad_sm90_takes(target_, product);
  }

  void fused_matmul(const FusedMatmulParams& p) override {
    if (p.m == 0) return;
    const bool many = p.gated && p.norm_weight == nullptr && gates(*p.weight, p.m);
    check_op(p, many ? p.m : fused_rows());
    Product product = product_of(p.weight, p.x, p.m);
    product.bias = p.bias;
    product.out = p.out;
    product.out_f32 = p.out_f32;
    product.residual = p.residual;
    product.gated = p.gated;
    product.norm_weight = p.norm_weight;
    product.norm_eps = p.norm_eps;
    if (p.norm_weight != nullptr && !norms(product)) norm_apart(p, product);
    multiply(product);
  }

 private:
  static Product product_of(const MatmulWeight* w, const void* x, int64_t m) {
    const auto& weight = static_cast<const StoredWeight&>(*w);
    return {.w = weight.data.data(),
            .w_stride = weight.row_elements,
            .x = x,
            .m = static_cast<int32_t>(m),
            .n = static_cast<int32_t>(weight.rows),
            .k = static_cast<int32_t>(weight.cols)};
  }

  // Weights of one shape are one family, in their order.
  static std::vector<ProductFamily> families_of(const TuneRequest& r) {
    std::vector<ProductFamily> families;
    const auto add = [&](const Product& p) {
      const auto like = [&](const ProductFamily& f) {
        return f.front().n == p.n && f.front().k == p.k && f.front().out_f32 == p.out_f32;
      };
      const auto family = std::find_if(families.begin(), families.end(), like);
      (family == families.end() ? families.emplace_back() : *family).push_back(p);
    };
    for (const MatmulWeight* w : r.weights) add(product_of(w, nullptr, r.max_rows));
    if (r.output == nullptr || r.max_output_rows <= kMaxWideRows) return families;
    Product output = product_of(r.output, nullptr, r.max_output_rows);
    output.out_f32 = true;
    add(output);
    return families;
  }

  // With numbers of a model: a card that multiplies zeros takes less power, and runs faster than it would.
  void fill_rows(const std::vector<ProductFamily>& families, const DeviceBuffer& x) {
    const Product& p = families.front().front();
    const int64_t there = int64_t{p.n} * p.w_stride * 2;
    for (int64_t at = 0; at < x.bytes(); at += there)
      device_.copy_on_device(x.as<char>() + at, p.w, std::min(there, x.bytes() - at));
  }

  AttentionScratchNeed scratch_need(const ScratchLimits& l) const {
    return attention_scratch_need(attention_.machine, attention_.decode, l.max_rows, l.max_sequences,
                                  l.max_q_heads, l.max_head_dim);
  }

  bool norms(const Product& p) const { return p.m == 1 && gemv_norms(p) && gemv_takes(target_, p); }
  void norm_apart(const FusedMatmulParams& p, Product& product) {
    QUIRE_SIDE::add_rms_norm(target_, {.residual = const_cast<void*>(p.x),  // not written without delta
                                       .weight = p.norm_weight,
                                       .out = p.normed,
                                       .eps = p.norm_eps,
                                       .rows = p.m,
                                       .hidden = product.k});
    product.x = p.normed;
    product.norm_weight = nullptr;
  }

  void multiply(const Product& p) {
    if (p.m == 1 && gemv_takes(target_, p) && !skinny_suits_one_row(target_, p)) return gemv(target_, {}, p);
    if (options_.activations == DType::kF32) return tile_gemm_f32(target_, p);
    if (p.m <= kMaxSkinnyRows) return skinny_gemm(target_, {}, p);
    if (broad_sm90_takes(target_, p)) return broad_gemm_sm90(target_, sums_, p);
    if (p.m <= kMaxWideRows) return wide_gemm(target_, sums_, p);
    if (library_ == nullptr || !library_->takes(p)) return tile_gemm(target_, p);
    library_->run(p);
    if (p.bias != nullptr) add_bias(target_, p);
  }

  StreamDevice& device_;
  KernelOptions options_;
  Target target_;
  AttentionContext attention_;
  DeviceBuffer scratch_, sums_memory_;
  SharedSums sums_;
  std::unique_ptr<GemmLibrary> library_;
  WeightUploader uploader_;
};

}  // namespace

Result<std::unique_ptr<Kernels>> make_step_kernels(StreamDevice& device, const KernelOptions& options,
                                                   std::unique_ptr<GemmLibrary> library) {
  auto kernels = std::make_unique<StepKernels>(device, options, std::move(library));
  if (Status allocated = kernels->allocate(); !allocated) return allocated.error();
  return std::unique_ptr<Kernels>(std::move(kernels));
}

}  // namespace quire::QUIRE_SIDE
