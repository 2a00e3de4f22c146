#include "src/execute/cuda_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <new>
#include <unordered_map>

#include "src/base/log.h"
#include "src/execute/row_logprobs.h"
#include "src/execute/sampler_steps.h"
#include "src/execute/step_graphs.h"
#include "src/execute/table_check.h"

namespace quire {
namespace {

constexpr int64_t kMostBytesByKernel = 256 << 10;

// Entries of a block table on the device, the same in every step.
int64_t table_stride(const StepLimits& l) {
  const int64_t blocks = (l.max_context_tokens + l.block_tokens - 1) / l.block_tokens;
  return (blocks + 15) / 16 * 16;
}

StepShape largest_step(const StepLimits& l) {
  const int64_t sequences = decode_bucket(l.max_sequences), rows = std::max(l.max_rows, sequences);
  return {.rows = rows,
          .sequences = static_cast<int32_t>(sequences),
          .logits_rows = rows,
          .samples = static_cast<int32_t>(sequences),
          .table_entries = sequences * table_stride(l),
          .copies = l.num_blocks,
          .windows = true,
          .sinks = true,
          .prefix_nodes = prefix_node_room(static_cast<int32_t>(sequences)),
          .prefix_members = prefix_member_room(static_cast<int32_t>(sequences)),
          .prefix_splits = 1,
          .retained = static_cast<int32_t>(sequences),
          .cut_blocks = static_cast<int32_t>(sequences * table_stride(l))};
}

// May tokens of these parameters be chosen from the logits row alone?
bool samples_on_device(const SamplingParams& p) {
  return p.repetition_penalty == 1.0 && p.presence_penalty == 0.0 && p.frequency_penalty == 0.0 &&
         p.no_repeat_ngram == 0 && p.logit_bias.empty() && p.allowed_token_ids.empty() &&
         p.bad_words.empty() && p.forced_token_ids.empty() && p.typical_p >= 1.0 && p.min_tokens == 0 &&
         p.logprobs < 0 && p.beam_width == 0;
}

// Where a sequence's newest token is.
struct LastSample {
  bool on_host = true;  // in the host sampler's history
  int32_t index = 0;    // else: among the device's tokens of the step before
};

struct SequenceState {
  std::shared_ptr<const SamplingParams> sampling;
  uint64_t seed = 0;
  bool on_device = false;
  LastSample last;
};

class CudaQueuedStep final : public QueuedStep {
 public:
  bool reached() override { return done == nullptr || done->reached(); }

  std::shared_ptr<const BatchPlan> plan;
  StepResult result;                       // complete where sampling was done on the host
  std::vector<SequenceId> device_samples;  // whose tokens come back, in order
  StreamEvent* begun = nullptr;            // null: nothing was queued
  StreamEvent* done = nullptr;
  int turn = 0;
  bool tables_queued = false;  // on their way back, to be checked
  std::vector<QueuedDump> dumps;
};

class CudaRunner final : public QueueingRunner {
 public:
  explicit CudaRunner(CudaRunnerParts parts)
      : parts_(std::move(parts)),
        step_(parts_.limits, StepTables::kKeptElsewhere),
        tables_(parts_.limits.block_tokens, parts_.limits.num_blocks),
        table_check_(*parts_.device, parts_.limits.block_tokens),
        graphs_(*parts_.device, {}),
        copies_(parts_.limits.num_blocks),
        groups_(parts_.cascade),
        retention_(*parts_.device, *parts_.kernels, parts_.layout, parts_.arena.as<char>(),
                   parts_.forward->spec().num_q_heads),
        sampler_(make_cpu_sampler()) {}

  ~CudaRunner() override {
    log_line(LogLevel::kInfo, "step_graphs",
             {{"steps", num_steps_},
              {"run_as_graphs", graphs_.num_runs()},
              {"captured", graphs_.num_captured()},
              {"bytes", graphs_.bytes()}});
  }

  Status allocate() {
    StreamDevice& device = *parts_.device;
    const auto samples = int64_t{max_samples()};
    const int64_t stride = table_stride(parts_.limits);
    Result<DeviceStep> arrays = DeviceStep::create(device, largest_step(parts_.limits), stride);
    if (!arrays) return arrays.error();
    arrays_ = std::move(*arrays);
    const std::pair<DeviceBuffer*, int64_t> buffers[] = {
        {&sampled_, samples * 8}, {&sample_space_, samples * parts_.kernels->sample_space_bytes()}};
    for (const auto& [buffer, bytes] : buffers) {
      Result<DeviceBuffer> memory = device.allocate(bytes, "sampling");
      if (!memory) return memory.error();
      *buffer = std::move(*memory);
    }
    for (Turn& turn : turns_) {
      Result<DeviceBuffer> back = device.allocate_pinned(samples * 8, "sampled tokens");
      if (!back) return back.error();
      turn.back = std::move(*back);
      turn.begun = device.make_event();
      turn.done = device.make_event();
    }
    if (Status reserved = retention_.reserve(parts_.retention); !reserved) return reserved;
    device.synchronize();
    return parts_.check_tables ? table_check_.allocate(max_samples(), stride) : ok();
  }

  std::unique_ptr<QueuedStep> queue(std::shared_ptr<const BatchPlan> plan) override {
    auto queued = std::make_unique<CudaQueuedStep>();
    queued->plan = std::move(plan);
    queued->turn = next_turn_;
    queued->result.step = queued->plan->step;
    next_turn_ = 1 - next_turn_;
    ++num_steps_;
    try {
      queued->result.status = queue_checked(*queued);
    } catch (const std::bad_alloc&) {
      queued->result.status = error(Code::kResourceExhausted, "no host memory for the step's results");
    }
    if (!queued->result.status) tables_.forget();  // its tables may not be on the device, or not whole
    return queued;
  }

  StepResult finish(QueuedStep& queued) override {
    auto& step = static_cast<CudaQueuedStep&>(queued);
    if (step.done == nullptr) return std::move(step.result);
    step.done->wait();
    step.result.execute_ms = step.done->ms_since(*step.begun);
    const auto* tokens = turns_[step.turn].back.as<const int32_t>();
    const auto* logprobs = reinterpret_cast<const float*>(tokens + max_samples());
    if (step.tables_queued && step.result.status)
      step.result.status = table_check_.compare(*step.plan, step.turn);
    for (const QueuedDump& dump : step.dumps) retention_.report(dump, step.result.kv_dumps);
    for (size_t i = 0; i < step.device_samples.size(); ++i)
      step.result.samples.push_back(
          {.sequence = step.device_samples[i], .token = tokens[i], .logprob = logprobs[i], .top = {}});
    return std::move(step.result);
  }

 private:
  struct Turn {
    DeviceBuffer back;  // pinned: tokens, then logprobs
    std::unique_ptr<StreamEvent> begun, done;
  };

  int32_t max_samples() const { return static_cast<int32_t>(decode_bucket(parts_.limits.max_sequences)); }
  int64_t vocab() const { return parts_.limits.vocab_size; }

  Status queue_checked(CudaQueuedStep& queued) {
    const BatchPlan& plan = *queued.plan;
    groups_.follow(plan);
    apply_to_sampler(plan, *sampler_);
    note_joins(plan);
    retention_.forget(plan.leaves);
    if (Status copies = copies_.build(plan.copies); !copies) return copies;
    if (Status built = step_.build(plan); !built) return built;
    if (Status built = tables_.build(plan); !built) return built;
    if (Status begun = begin_retention(plan); !begun) return begun;
    Turn& turn = turns_[queued.turn];
    queued.begun = turn.begun.get();
    queued.begun->record();
    take_sampled_ids();
    const bool on_host = !all_on_device(plan);
    if (!on_host) collect_settings(plan, queued);
    run(plan, queued, on_host);
    if (Status ended = retention_.end(plan, queued.dumps); !ended) queued.result.status = ended;
    turn.done->record();
    queued.done = turn.done.get();
    return ok();
  }

  // Graphs captured around buffers that have grown since are of no use; nothing runs any more when buffers grow.
  Status begin_retention(const BatchPlan& plan) {
    const int32_t before = retention_.generation();
    const Status begun = retention_.begin(plan, decode_bucket(step_.arrays().rows));
    if (retention_.generation() != before)
      graphs_.drop([](const StepShape& shape) { return shape.retained > 0; });
    return begun;
  }

  void note_joins(const BatchPlan& plan) {
    for (const SequenceId sequence : plan.leaves) sequences_.erase(sequence);
    for (const PlannedJoin& join : plan.joins)
      sequences_[join.sequence] = {.sampling = join.sampling,
                                   .seed = join.seed,
                                   .on_device = samples_on_device(*join.sampling),
                                   .last = {}};
  }

  // Ids sampled one step before: from the host's history, or by index from the device's tokens.
  void take_sampled_ids() {
    id_source_.assign(static_cast<size_t>(step_.arrays().rows), -1);
    for (const SampledRow& row : step_.sampled_rows()) {
      const LastSample& last = sequences_.at(row.sequence).last;
      if (last.on_host) {
        step_.set_id(row.row, sampler_->last_token(row.sequence));
      } else {
        id_source_[static_cast<size_t>(row.row)] = last.index;
      }
    }
  }

  bool all_on_device(const BatchPlan& plan) const {
    if (step_.num_samples() > max_samples() || step_.arrays().num_logits_rows > parts_.logits_rows)
      return false;
    for (const PlannedSequence& s : plan.sequences) {
      if (s.prompt_logprobs >= 0) return false;
      for (const PlannedSample& sample : s.samples)
        if (sample.top_candidates > 0 || sample.beam || !sequences_.at(sample.sequence).on_device)
          return false;
    }
    return true;
  }

  void collect_settings(const BatchPlan& plan, CudaQueuedStep& queued) {
    settings_.clear();
    for (const WantedLogits& wanted : step_.wanted_logits())
      for (const PlannedSample& sample : wanted.sequence->samples) {
        SequenceState& state = sequences_.at(sample.sequence);
        const SamplingParams& p = *state.sampling;
        state.last = {.on_host = false, .index = static_cast<int32_t>(settings_.size())};
        queued.device_samples.push_back(sample.sequence);
        settings_.push_back(
            {.inverse_temperature = p.temperature == 0 ? 0.0f : static_cast<float>(1.0 / p.temperature),
             .top_k = p.top_k,
             .top_p = static_cast<float>(p.top_p),
             .min_p = static_cast<float>(p.min_p),
             .seed = state.seed,
             .position = sample.position,
             .logits_row = static_cast<int32_t>(wanted.first + wanted.count - 1)});
      }
    (void)plan;
  }

  // A step of the sizes that one graph serves, or one whose kernels are launched as they come.
  enum class Form : uint8_t { kLaunched, kDecode, kWithPrompts };

  // The step's own sizes; what is sampled on the host has no samples on the device.
  StepShape own_shape(const BatchPlan& plan, bool on_host) const {
    const StepArrays own = step_.arrays();
    return {.rows = own.rows,
            .sequences = own.num_sequences,
            .logits_rows = own.num_logits_rows,
            .samples = on_host ? 0 : static_cast<int32_t>(settings_.size()),
            .table_entries = static_cast<int64_t>(tables_.entries().size()),
            .copies = static_cast<int64_t>(plan.copies.size()),
            .windows = own.windows != nullptr,
            .sinks = own.sink_slots != nullptr,
            .retained = static_cast<int32_t>(retention_.arrays().items.size()),
            .cut_blocks = static_cast<int32_t>(retention_.arrays().cut_blocks.size())};
  }

  // Padded to what a graph may be captured for, if there is such a size.
  Form pad(StepShape& shape) const {
    if (shape.rows == 0) return Form::kLaunched;
    const StepArrays own = step_.arrays();
    const bool decodes = own.max_rows == 1 && shape.logits_rows == shape.rows && shape.samples == shape.rows;
    StepShape padded = shape;
    if (decodes) {
      padded.rows = padded.logits_rows = decode_bucket(shape.rows);
      padded.sequences = padded.samples = static_cast<int32_t>(padded.rows);
      if (shape.retained > 0) padded.retained = static_cast<int32_t>(decode_bucket(shape.retained));
    } else {
      const int64_t most = std::max<int64_t>({shape.sequences, shape.logits_rows, shape.samples});
      const auto sequences = std::min(static_cast<int32_t>(sequence_bucket(most)), max_samples());
      padded.with_prompts = true;
      padded.rows = token_bucket(shape.rows);
      padded.sequences = sequences;
      padded.logits_rows =
          shape.logits_rows == 0 ? 0 : sequences;  // else nobody asks for the last layer's work
      padded.samples = shape.samples == 0 ? 0 : sequences;
      if (padded.rows > std::min<int64_t>(parts_.max_graph_tokens, largest_step(parts_.limits).rows) ||
          shape.retained > 0)
        return Form::kLaunched;
    }
    if (padded.logits_rows > parts_.logits_rows || !retention_.may_be_captured()) return Form::kLaunched;
    shape = padded;
    return decodes ? Form::kDecode : Form::kWithPrompts;
  }

  void run(const BatchPlan& plan, CudaQueuedStep& queued, bool on_host) {
    StepShape shape = own_shape(plan, on_host);
    const Form form = on_host ? Form::kLaunched : pad(shape);
    if (make_room_for_prefixes(shape)) queued.result.shared_read_tokens = groups_.saved_tokens();
    const PlacedStep placed =
        arrays_.pack(step_, tables_,
                     {.id_source = id_source_,
                      .settings = on_host ? std::span<const SampleSettings>() : settings_,
                      .copy_pairs = copies_.pairs(),
                      .retention = retention_.arrays(),
                      .prefixes = groups_.arrays()},
                     shape, queued.turn);
    queued.result.uploaded_bytes = placed.bytes;
    run_copies(placed);
    if (plan.sequences.empty()) return;
    if (!by_kernel(shape)) bring_by_engine(placed.bring.arrays);
    if (on_host)
      run_and_sample_here(placed, shape, queued.result);
    else if (form == Form::kLaunched)
      run_kernels(placed, shape, queued.turn);
    else
      run_captured(placed, shape, queued.turn);
    queued.tables_queued = table_check_.enabled();
    if (queued.tables_queued) table_check_.fetch(placed.arrays, step_.arrays().num_sequences, queued.turn);
  }

  void run_and_sample_here(const PlacedStep& placed, const StepShape& shape, StepResult& result) {
    run_model(placed, shape);
    read_logits(result);
  }

  // Whether a kernel brings the arrays. The copy engine is faster over the bus, but between two graphs it costs 20 us.
  static bool by_kernel(const StepShape& shape) {
    return DeviceStep::array_bytes(shape) <= kMostBytesByKernel;
  }

  void bring_by_engine(const CopyBytesParams& p) {
    parts_.device->copy_to_device(p.target, p.source, p.bytes);
  }

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
    int64_t begin = 0;
    for (const int64_t end : copies_.ends()) {
      parts_.kernels->copy_blocks({.arena = parts_.arena.as<char>(),
                                   .block_bytes = parts_.layout.block_bytes(),
                                   .pairs = placed.copy_pairs + 2 * begin,
                                   .count = end - begin});
      begin = end;
    }
  }

  // The arrays' way in, the ids sampled one step before, and the forward pass.
  void run_model(const PlacedStep& placed, const StepShape& shape) {
    BringStepParams p = placed.bring;
    if (!by_kernel(shape)) p.arrays.bytes = 0;  // the copy engine has done it
    parts_.kernels->bring_step(p);
    parts_.kernels->take_sampled({.ids = placed.ids,
                                  .source = placed.id_source,
                                  .tokens = sampled_.as<int32_t>(),
                                  .rows = shape.rows});
    run_forward(placed, shape);
  }

  void run_kernels(const PlacedStep& placed, const StepShape& shape, int turn) {
    run_model(placed, shape);
    if (shape.samples == 0) return;
    parts_.forward->logits(0, placed.arrays.num_logits_rows, parts_.logits.as<float>());
    parts_.kernels->sample({.logits = parts_.logits.as<const float>(),
                            .settings = placed.settings,
                            .workspace = sample_space_.data(),
                            .tokens = sampled_.as<int32_t>(),
                            .logprobs = sampled_.as<float>() + max_samples(),
                            .num_samples = shape.samples,
                            .vocab = static_cast<int32_t>(vocab())});
    parts_.kernels->copy_bytes({.source = sampled_.data(),
                                .target = turns_[turn].back.data(),
                                .bytes = (int64_t{max_samples()} + shape.samples) * 4});
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

  // Logits come to the host in pieces of as many rows as the buffer holds; a piece may begin or end inside a sequence's rows.
  void read_logits(StepResult& result) {
    const int64_t total = step_.arrays().num_logits_rows;
    size_t next = 0;
    for (int64_t first = 0; first < total; first += parts_.logits_rows) {
      const int64_t end = std::min(first + parts_.logits_rows, total);
      parts_.forward->logits(first, end - first, parts_.logits.as<float>());
      host_logits_.resize(static_cast<size_t>((end - first) * vocab()));
      parts_.device->copy_to_host(host_logits_.data(), parts_.logits.data(), (end - first) * vocab() * 4);
      parts_.device->synchronize();
      samples_.clear();
      while (next < step_.wanted_logits().size()) {
        const WantedLogits& wanted = step_.wanted_logits()[next];
        if (wanted.first >= end) break;
        append_prompt_logprobs(wanted,
                               {.first = first, .end = end, .logits = host_logits_.data(), .vocab = vocab()},
                               result.prompt_logprobs);
        if (wanted.first + wanted.count > end) break;  // goes on in the next piece
        for (const PlannedSample& sample : wanted.sequence->samples) {
          samples_.push_back({.sample = &sample, .logits_row = wanted.first + wanted.count - 1 - first});
          sequences_.at(sample.sequence).last = {.on_host = true, .index = 0};
        }
        ++next;
      }
      sampler_->sample(host_logits_.data(), vocab(), samples_, result.samples);
    }
  }

  CudaRunnerParts parts_;
  HostStep step_;
  TableDeltas tables_;
  TableCheck table_check_;
  StepGraphs graphs_;
  CopyGroups copies_;
  PrefixGroups groups_;
  DeviceRetention retention_;
  std::unique_ptr<Sampler> sampler_;  // host-sampled sequences, and their histories
  std::unordered_map<SequenceId, SequenceState> sequences_;
  DeviceStep arrays_;
  DeviceBuffer sampled_;  // tokens, then logprobs, max_samples() of each
  DeviceBuffer sample_space_;
  Turn turns_[2];
  int next_turn_ = 0;
  int64_t num_steps_ = 0;
  std::vector<int32_t> id_source_;
  std::vector<SampleSettings> settings_;
  std::vector<float> host_logits_;
  std::vector<SampleRow> samples_;
};

}  // namespace

int64_t cuda_runner_bytes(const StepLimits& limits, int64_t sample_space_bytes) {
  const StepShape largest = largest_step(limits);
  return DeviceStep::device_bytes(largest, table_stride(limits)) +
         largest.samples * (8 + sample_space_bytes) + GraphLimits{}.bytes;
}

Result<std::unique_ptr<QueueingRunner>> make_cuda_runner(CudaRunnerParts parts) {
  auto runner = std::make_unique<CudaRunner>(std::move(parts));
  if (Status allocated = runner->allocate(); !allocated) return allocated.error();
  return std::unique_ptr<QueueingRunner>(std::move(runner));
}

}  // namespace quire
