#include "src/execute/cpu_runner.h"

#include <new>

#include "src/execute/host_sampling.h"
#include "src/execute/retention_runner.h"
#include "src/execute/sampler_steps.h"

namespace quire {
namespace {

class CpuRunner final : public StepRunner {
 public:
  explicit CpuRunner(ModelParts parts)
      : parts_(std::move(parts)),
        step_(parts_.limits),
        copies_(parts_.limits.num_blocks),
        retention_(*parts_.kernels, parts_.layout, parts_.arena.as<char>(),
                   parts_.forward->spec().num_q_heads),
        sampling_(parts_.logits_rows, parts_.limits.vocab_size) {}

  StepResult run(const BatchPlan& plan) override {
    StepResult result{.step = plan.step};
    try {
      result.status = run_checked(plan, result);
    } catch (const std::bad_alloc&) {
      result.status = error(Code::kResourceExhausted, "no host memory for the step's results");
    }
    return result;
  }

 private:
  Status run_checked(const BatchPlan& plan, StepResult& result) {
    apply_to_sampler(plan, *sampler_);
    retention_.forget(plan.leaves);
    if (Status forked = retention_.fork(plan.forks); !forked) return forked;
    if (Status copies = copies_.build(plan.copies); !copies) return copies;
    if (Status built = step_.build(plan); !built) return built;
    copies_.run(*parts_.kernels, parts_.arena.as<char>(), parts_.layout.block_bytes(),
                copies_.pairs().data());
    if (plan.sequences.empty()) return ok();
    for (const SampledRow& row : step_.sampled_rows())
      step_.set_id(row.row, sampler_->last_token(row.sequence));
    if (Status begun = retention_.begin(plan, step_); !begun) return begun;
    run_forward();
    retention_.end(plan, result);
    sampling_.run(
        step_, [this](int64_t first, int64_t count) { return logits_of(first, count); }, *sampler_, result);
    return ok();
  }

  void run_forward() {
    StepArrays arrays = step_.arrays();
    if (!retention_.wants_scores()) return parts_.forward->run(arrays);
    retention_.attach(arrays);
    parts_.forward->run(arrays, [this](int32_t layer) { retention_.after_layer(layer); });
  }

  float* logits_of(int64_t first, int64_t count) {
    parts_.forward->logits(first, count, parts_.logits.as<float>());
    return parts_.logits.as<float>();
  }

  ModelParts parts_;
  HostStep step_;
  CopyGroups copies_;
  RetentionRunner retention_;
  HostSampling sampling_;
  std::unique_ptr<Sampler> sampler_ = make_cpu_sampler();
};

}  // namespace

std::unique_ptr<StepRunner> make_cpu_runner(ModelParts parts) {
  return std::make_unique<CpuRunner>(std::move(parts));
}

}  // namespace quire
