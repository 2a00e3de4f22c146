#include "src/execute/cuda_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <new>

#include "src/base/check_note.h"
#include "src/base/log.h"
#include "src/execute/host_sampling.h"
#include "src/execute/sampler_steps.h"
#include "src/execute/step_forms.h"
#include "src/execute/step_gaps.h"
#include "src/execute/step_graphs.h"
#include "src/execute/table_check.h"
#include "src/execute/table_deltas.h"

namespace quire {
namespace {

constexpr int64_t kMostBytesByKernel = 256 << 10;

// Sizes, and of the first sequences id, tokens and first position.
std::string summary_of(const BatchPlan& plan) {
  constexpr size_t kNamed = 12;
  std::string text = fmt::format("step={} sequences={} tokens={} copies={}", plan.step, plan.sequences.size(),
                                 plan.num_tokens(), plan.copies.size());
  for (size_t i = 0; i < std::min(kNamed, plan.sequences.size()); ++i) {
    const PlannedSequence& s = plan.sequences[i];
    text += fmt::format(" {}:{}@{}", value(s.sequence), s.tokens.size(), s.first_position);
  }
  return plan.sequences.size() > kNamed ? text + " ..." : text;
}

class CudaQueuedStep final : public QueuedStep {
 public:
  bool reached() override { return done == nullptr || done->reached(); }

  std::shared_ptr<const BatchPlan> plan;
  StepResult result;                         // complete where sampling was done on the host
  std::vector<DeviceSample> device_samples;  // whose tokens come back, in order
  StreamEvent* done = nullptr;               // null: nothing is under way
  int turn = 0;
  int64_t gap = 0;             // its number in StepGaps
  bool tables_queued = false;  // on their way back, to be checked
  std::vector<QueuedDump> dumps;
};

int64_t host_logits_rows(const CudaRunnerParts& parts) {
  constexpr int64_t kBytes = 16 << 20;
  return std::clamp<int64_t>(kBytes / (int64_t{parts.limits.vocab_size} * 4), 1, parts.logits_rows);
}

class CudaRunner final : public QueueingRunner {
 public:
  explicit CudaRunner(CudaRunnerParts parts)
      : parts_(std::move(parts)),
        device_(static_cast<StreamDevice&>(*parts_.device)),
        step_(parts_.limits, StepTables::kKeptElsewhere),
        tables_(parts_.limits.block_tokens, parts_.limits.num_blocks),
        table_check_(device_, parts_.limits.block_tokens),
        graphs_(device_, {}),
        copies_(parts_.limits.num_blocks),
        groups_(parts_.cascade),
        retention_(device_, *parts_.kernels, parts_.layout, parts_.arena.as<char>(),
                   parts_.forward->spec().num_q_heads),
        sampling_(device_, *parts_.kernels, sampling_sizes(parts_.limits)),
        host_sampling_(host_logits_rows(parts_), parts_.limits.vocab_size),
        sampler_(make_cpu_sampler()) {}

  ~CudaRunner() override {
    const DeviceCalls& now = device_.calls();
    log_line(LogLevel::kInfo, "step_calls",
             {{"steps", num_steps_},
              {"sampled_on_host", num_on_host_},
              {"allocations", now.allocations - calls_at_start_.allocations},
              {"waits", now.waits - calls_at_start_.waits},
              {"pageable_copies", now.pageable_copies - calls_at_start_.pageable_copies},
              {"captures", now.captures - calls_at_start_.captures}});
    log_line(LogLevel::kInfo, "step_graphs",
             {{"steps", num_steps_},
              {"queued_late", num_late_},
              {"run_as_graphs", graphs_.num_runs()},
              {"captured", graphs_.num_captured()},
              {"bytes", graphs_.bytes()}});
  }

  Status allocate() {
    const int64_t stride = table_stride(parts_.limits);
    Result<DeviceStep> arrays = DeviceStep::create(device_, largest_step(parts_.limits), stride);
    if (!arrays) return arrays.error();
    arrays_ = std::move(*arrays);
    if (Status allocated = sampling_.allocate(); !allocated) return allocated;
    Result<DeviceBuffer> logits = device_.allocate_pinned(host_logits_rows(parts_) * vocab() * 4,
                                                          "logits that are sampled on the host");
    if (!logits) return logits.error();
    host_logits_ = std::move(*logits);
    for (std::unique_ptr<StreamEvent>& done : done_) done = device_.make_mark();
    if (parts_.time_idle) gaps_.enable(device_);
    if (Status reserved = retention_.reserve(parts_.retention); !reserved) return reserved;
    device_.synchronize();
    const Status checked = parts_.check_tables ? table_check_.allocate(max_samples(), stride) : ok();
    calls_at_start_ = device_.calls();
    return checked;
  }

  std::unique_ptr<QueuedStep> queue(std::shared_ptr<const BatchPlan> plan) override {
    auto queued = std::make_unique<CudaQueuedStep>();
    queued->plan = std::move(plan);
    queued->turn = next_turn_;
    queued->result.step = queued->plan->step;
    next_turn_ = 1 - next_turn_;
    ++num_steps_;
    if (newest_ == nullptr || newest_->reached()) ++num_late_;
    try {
      note_plan(*queued);
      if (Status done = queue_checked(*queued); !done) queued->result.status = done;
    } catch (const std::bad_alloc&) {
      device_.synchronize();  // what was queued names the plan, and the plan goes with its result
      queued->result.status = error(Code::kResourceExhausted, "no host memory for the step's results");
    }
    if (!queued->result.status) tables_.forget();  // its tables may not be on the device, or not whole
    newest_ = queued.get();
    return queued;
  }

  StepResult finish(QueuedStep& queued) override {
    auto& step = static_cast<CudaQueuedStep&>(queued);
    if (newest_ == &step) newest_ = nullptr;
    if (step.done == nullptr) return std::move(step.result);
    step.done->wait();
    step.result.device_idle_us = gaps_.idle_us(step.gap);
    if (step.tables_queued && step.result.status)
      step.result.status = table_check_.compare(*step.plan, step.turn);
    for (QueuedDump& dump : step.dumps) retention_.report(std::move(dump), step.result.kv_dumps);
    for (size_t i = 0; i < step.device_samples.size(); ++i)
      step.result.samples.push_back(sampling_.result(step.device_samples, i, step.turn));
    sampling_.follow(step.device_samples, step.turn, *sampler_);
    return std::move(step.result);
  }

 private:
  int32_t max_samples() const { return static_cast<int32_t>(decode_bucket(parts_.limits.max_sequences)); }
  int64_t vocab() const { return parts_.limits.vocab_size; }

  // A fault of the device ends the process: with this plan and the one that may still run, so that the step can be found.
  void note_plan(const CudaQueuedStep& queued) {
    plan_notes_[queued.turn] = summary_of(*queued.plan);
    note_for_check(fmt::format("plan queued last: {}; before it: {}", plan_notes_[queued.turn],
                               plan_notes_[1 - queued.turn]));
  }

  Status queue_checked(CudaQueuedStep& queued) {
    const BatchPlan& plan = *queued.plan;
    groups_.follow(plan);
    apply_to_sampler(plan, *sampler_);
    sampling_.begin_turn(queued.turn);
    for (const SequenceId sequence : plan.leaves) sampling_.leave(sequence);
    for (const PlannedJoin& join : plan.joins) sampling_.join(join);
    retention_.forget(plan.leaves);
    if (Status forked = retention_.fork(plan.forks); !forked) return forked;
    if (Status copies = copies_.build(plan.copies); !copies) return copies;
    if (Status built = step_.build(plan); !built) return built;
    if (Status built = tables_.build(plan); !built) return built;
    if (Status begun = retention_.begin(plan, decode_bucket(step_.arrays().rows)); !begun) return begun;
    take_sampled_ids();
    sampling_.note_rows(plan, step_.arrays());
    const bool on_host = step_.arrays().num_logits_rows > parts_.logits_rows ||
                         !sampling_.collect(plan, step_, queued.device_samples);
    if (on_host) queued.device_samples.clear();
    queued.gap = gaps_.begin();
    run(plan, queued, on_host);
    retention_.end(plan, queued.dumps, queued.result.failures);
    gaps_.end();
    done_[queued.turn]->record();
    queued.done = done_[queued.turn].get();
    return ok();
  }

  // Ids sampled one step before: from the host's history, or by index from the device's tokens.
  void take_sampled_ids() {
    id_source_.assign(static_cast<size_t>(step_.arrays().rows), -1);
    for (const SampledRow& row : step_.sampled_rows()) {
      const int32_t last = sampling_.last_index(row.sequence);
      if (last < 0) {
        step_.set_id(row.row, sampler_->last_token(row.sequence));
      } else {
        id_source_[static_cast<size_t>(row.row)] = last;
      }
    }
  }

  // The step's own sizes; what is sampled on the host has no samples on the device.
  StepShape own_shape(const BatchPlan& plan, bool on_host) const {
    const StepArrays own = step_.arrays();
    const SamplingArrays sampling = sampling_.arrays();
    return {.rows = own.rows,
            .sequences = own.num_sequences,
            .logits_rows = own.num_logits_rows,
            .samples = on_host ? 0 : static_cast<int32_t>(sampling.settings.size()),
            .edits = on_host ? 0 : static_cast<int32_t>(sampling.edits.size()),
            .reports = on_host ? 0 : static_cast<int32_t>(sampling.reports.size()),
            .table_entries = static_cast<int64_t>(tables_.entries().size()),
            .copies = static_cast<int64_t>(plan.copies.size()),
            .windows = own.windows != nullptr,
            .sinks = own.sink_slots != nullptr,
            .histories = !sampling.history_at.empty(),
            .retained = static_cast<int32_t>(retention_.arrays().items.size()),
            .cut_blocks = static_cast<int32_t>(retention_.arrays().cut_blocks.size())};
  }

  StepForm pad(StepShape& shape) const {
    if (!retention_.may_be_captured()) return StepForm::kLaunched;
    const int64_t rows = std::min<int64_t>(parts_.max_graph_tokens, largest_step(parts_.limits).rows);
    return pad_for_graph({.max_rows = rows, .logits_rows = parts_.logits_rows, .max_samples = max_samples()},
                         step_.arrays().max_rows == 1, shape);
  }

  void run(const BatchPlan& plan, CudaQueuedStep& queued, bool on_host) {
    StepShape shape = own_shape(plan, on_host);
    const StepForm form = on_host ? StepForm::kLaunched : pad(shape);
    if (make_room_for_prefixes(shape)) queued.result.shared_read_tokens = groups_.saved_tokens();
    const PlacedStep placed =
        arrays_.pack(step_, tables_,
                     {.id_source = id_source_,
                      .copy_pairs = copies_.pairs(),
                      .sampling = on_host ? SamplingArrays{.history_at = sampling_.arrays().history_at}
                                          : sampling_.arrays(),
                      .retention = retention_.arrays(),
                      .prefixes = groups_.arrays()},
                     shape, queued.turn);
    queued.result.uploaded_bytes = placed.bytes;
    run_copies(placed);
    if (plan.sequences.empty()) return;
    if (!by_kernel(shape)) bring_by_engine(placed.bring.arrays);
    if (on_host)
      run_and_sample_here(placed, shape, queued.result);
    else if (form == StepForm::kLaunched)
      run_kernels(placed, shape, queued.turn);
    else
      run_captured(placed, shape, queued.turn);
    queued.tables_queued = table_check_.enabled();
    if (queued.tables_queued) table_check_.fetch(placed.arrays, step_.arrays().num_sequences, queued.turn);
  }

  void run_and_sample_here(const PlacedStep& placed, const StepShape& shape, StepResult& result) {
    result.sampled_on_host = step_.num_samples() > 0;
    ++num_on_host_;
    run_model(placed, shape);
    host_sampling_.run(
        step_, [this](int64_t first, int64_t count) { return logits_on_host(first, count); }, *sampler_,
        result);
    for (const WantedLogits& wanted : step_.wanted_logits())
      for (const PlannedSample& sample : wanted.sequence->samples) sampling_.sampled_on_host(sample.sequence);
  }

  // Whether a kernel brings the arrays. The copy engine is faster over the bus, but between two graphs it costs 20 us.
  static bool by_kernel(const StepShape& shape) {
    return DeviceStep::array_bytes(shape) <= kMostBytesByKernel;
  }

  void bring_by_engine(const CopyBytesParams& p) { device_.copy_to_device(p.target, p.source, p.bytes); }

  // False: the step reads every list by itself.
  bool make_room_for_prefixes(StepShape& shape) const {
    if (groups_.empty()) return false;
    const ModelSpec& spec = parts_.forward->spec();
    PrefixCounts counts = groups_.counts();
    counts.member_room = prefix_member_room(shape.sequences);
    const int32_t splits =
        parts_.kernels->prefix_splits(counts, spec.num_q_heads, spec.num_kv_heads, spec.head_dim);
    if (splits == 0) return false;
    shape.prefix_nodes = prefix_node_room(shape.sequences);
    shape.prefix_members = counts.member_room;
    shape.prefix_splits = splits;
    return true;
  }

  void run_copies(const PlacedStep& placed) {
    if (placed.bring_pairs.bytes <= kMostBytesByKernel)
      parts_.kernels->copy_bytes(placed.bring_pairs);
    else
      bring_by_engine(placed.bring_pairs);
    copies_.run(*parts_.kernels, parts_.arena.as<char>(), parts_.layout.block_bytes(), placed.copy_pairs);
  }

  // The arrays' way in, the ids sampled one step before, and the forward pass.
  void run_model(const PlacedStep& placed, const StepShape& shape) {
    BringStepParams p = placed.bring;
    if (!by_kernel(shape)) p.arrays.bytes = 0;  // the copy engine has done it
    sampling_.give(p.ids);
    parts_.kernels->bring_step(p);
    run_forward(placed, shape);
  }

  void run_kernels(const PlacedStep& placed, const StepShape& shape, int turn) {
    run_model(placed, shape);
    if (shape.samples == 0) return;
    parts_.forward->logits(0, placed.arrays.num_logits_rows, parts_.logits.as<float>());
    sampling_.run(placed.sampling, parts_.logits.as<const float>(), turn);
  }

  void run_forward(const PlacedStep& placed, const StepShape& shape) {
    if (shape.retained == 0) return parts_.forward->run(placed.arrays);
    StepArrays arrays = placed.arrays;
    retention_.before_forward(placed.retention, shape.retained, arrays);
    parts_.forward->run(arrays, [this](int32_t layer) { retention_.after_layer(layer); });
  }

  // What steers host code in a graph must hold for every step that it serves: upper bounds, and what its shape says.
  void run_captured(PlacedStep placed, const StepShape& shape, int turn) {
    StepShape key = shape;
    key.copies = key.table_entries = 0;  // behind all that lies at fixed places
    placed.arrays.max_rows = shape.with_prompts ? static_cast<int32_t>(shape.rows) : 1;
    placed.arrays.max_length = parts_.limits.max_context_tokens;
    placed.arrays.all_rows_have_logits = !shape.with_prompts;
    placed.arrays.overwrites = shape.retained > 0;  // whether or not a list is full by now
    graphs_.run(key, turn, [&] { run_kernels(placed, key, turn); });
  }

  float* logits_on_host(int64_t first, int64_t count) {
    parts_.forward->logits(first, count, parts_.logits.as<float>());
    device_.copy_to_host(host_logits_.data(), parts_.logits.data(), count * vocab() * 4);
    device_.synchronize();
    if (newest_ != nullptr) sampling_.follow(newest_->device_samples, newest_->turn, *sampler_);
    return host_logits_.as<float>();
  }

  CudaRunnerParts parts_;
  StreamDevice& device_;
  HostStep step_;
  TableDeltas tables_;
  TableCheck table_check_;
  StepGraphs graphs_;
  StepGaps gaps_;
  CopyGroups copies_;
  PrefixGroups groups_;
  DeviceRetention retention_;
  DeviceSampling sampling_;
  HostSampling host_sampling_;
  std::unique_ptr<Sampler> sampler_;  // what is sampled on the host
  DeviceStep arrays_;
  std::string plan_notes_[2];  // by turn
  std::unique_ptr<StreamEvent> done_[2];
  int next_turn_ = 0;
  int64_t num_steps_ = 0, num_late_ = 0;  // late: the device had nothing left to do
  int64_t num_on_host_ = 0;               // steps whose logits went to the host
  DeviceCalls calls_at_start_;            // before the first step
  CudaQueuedStep* newest_ = nullptr;      // unless it is finished
  std::vector<int32_t> id_source_;
  DeviceBuffer host_logits_;  // pinned; a step with more rows to sample here takes them in parts
};

}  // namespace

int64_t cuda_runner_bytes(const StepLimits& limits, int64_t sample_space_bytes) {
  const StepShape largest = largest_step(limits);
  return DeviceStep::device_bytes(largest, table_stride(limits)) +
         DeviceSampling::device_bytes(sampling_sizes(limits), sample_space_bytes) + GraphLimits{}.bytes;
}

Result<std::unique_ptr<QueueingRunner>> make_cuda_runner(CudaRunnerParts parts) {
  auto runner = std::make_unique<CudaRunner>(std::move(parts));
  if (Status allocated = runner->allocate(); !allocated) return allocated.error();
  return std::unique_ptr<QueueingRunner>(std::move(runner));
}

}  // namespace quire
