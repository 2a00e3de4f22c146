#include "src/execute/cpu_runner.h"

#include <algorithm>
#include <chrono>
#include <new>

#include "src/base/clock.h"
#include "src/execute/row_logprobs.h"
#include "src/execute/sampler_steps.h"

namespace quire {
namespace {

class CpuRunner final : public StepRunner {
 public:
  explicit CpuRunner(CpuRunnerParts parts)
      : parts_(std::move(parts)),
        step_(parts_.limits),
        copies_(parts_.limits.num_blocks),
        retention_(*parts_.kernels, parts_.layout, parts_.arena.as<char>(),
                   parts_.forward->spec().num_q_heads) {}

  StepResult run(const BatchPlan& plan) override {
    const int64_t start_us = clock_.now_us();
    StepResult result{.step = plan.step};
    try {
      result.status = run_checked(plan, result);
    } catch (const std::bad_alloc&) {
      result.status = error(Code::kResourceExhausted, "no host memory for the step's results");
    }
    result.execute_ms = static_cast<double>(clock_.now_us() - start_us) / 1000.0;
    return result;
  }

 private:
  Status run_checked(const BatchPlan& plan, StepResult& result) {
    apply_to_sampler(plan, *parts_.sampler);
    retention_.forget(plan.leaves);
    if (Status copies = copies_.build(plan.copies); !copies) return copies;
    if (Status built = step_.build(plan); !built) return built;
    run_copies();
    if (plan.sequences.empty()) return ok();
    for (const SampledRow& row : step_.sampled_rows())
      step_.set_id(row.row, parts_.sampler->last_token(row.sequence));
    if (Status begun = retention_.begin(plan, step_); !begun) return begun;
    run_forward();
    retention_.end(plan, result);
    read_logits(result);
    return ok();
  }

  void run_forward() {
    StepArrays arrays = step_.arrays();
    if (!retention_.wants_scores()) return parts_.forward->run(arrays);
    retention_.attach(arrays);
    parts_.forward->run(arrays, [this](int32_t layer) { retention_.after_layer(layer); });
  }

  void run_copies() {
    int64_t begin = 0;
    for (const int64_t end : copies_.ends()) {
      parts_.kernels->copy_blocks({.arena = parts_.arena.as<char>(),
                                   .block_bytes = parts_.block_bytes,
                                   .pairs = copies_.pairs().data() + 2 * begin,
                                   .count = end - begin});
      begin = end;
    }
  }

  // The logits come in pieces of as many rows as the buffer holds; a piece may begin or end inside a
  // sequence's rows.
  void read_logits(StepResult& result) {
    const int64_t total = step_.arrays().num_logits_rows;
    size_t next = 0;
    for (int64_t first = 0; first < total; first += parts_.logits_rows) {
      const int64_t end = std::min(first + parts_.logits_rows, total);
      parts_.forward->logits(first, end - first, parts_.logits.as<float>());
      samples_.clear();
      while (next < step_.wanted_logits().size()) {
        const WantedLogits& wanted = step_.wanted_logits()[next];
        if (wanted.first >= end) break;
        append_prompt_logprobs(
            wanted, {.first = first, .end = end, .logits = parts_.logits.as<const float>(), .vocab = vocab()},
            result.prompt_logprobs);
        if (wanted.first + wanted.count > end) break;  // goes on in the next piece
        for (const PlannedSample& sample : wanted.sequence->samples) {
          samples_.push_back({.sample = &sample, .logits_row = wanted.first + wanted.count - 1 - first});
        }
        ++next;
      }
      parts_.sampler->sample(parts_.logits.as<float>(), vocab(), samples_, result.samples);
    }
  }

  int64_t vocab() const { return parts_.limits.vocab_size; }

  CpuRunnerParts parts_;
  HostStep step_;
  CopyGroups copies_;
  RetentionRunner retention_;
  std::vector<SampleRow> samples_;
  SteadyClock clock_;
};

}  // namespace

std::unique_ptr<StepRunner> make_cpu_runner(CpuRunnerParts parts) {
  return std::make_unique<CpuRunner>(std::move(parts));
}

}  // namespace quire
