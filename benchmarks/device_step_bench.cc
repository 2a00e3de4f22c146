// Host time of a decode step on its way to a device, as the executor thread spends it: HostStep, TableDeltas and DeviceStep::pack, over
// sequences of equal length that grow by a token a step, as many replaced a step as are asked for.
//   device_step_bench [--sequences N] [--tokens N] [--replaced N] [--steps N] [--whole 1]
// Prints bytes a step and microseconds: median, p99. --whole 1: every list is brought whole each step.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <string>
#include <vector>

#include "benchmarks/bench_flags.h"
#include "kernels/cuda/host_device.h"
#include "src/base/check.h"
#include "src/execute/device_step.h"
#include "src/execute/host_step.h"
#include "src/execute/step_graphs.h"
#include "src/execute/table_deltas.h"

namespace quire {
namespace {

constexpr int32_t kBlockTokens = 16, kBlocks = 1 << 20;

struct Options {
  int32_t sequences = 256, tokens = 4096, replaced = 0, steps = 2000, whole = 0;
};

Options parse(int argc, char** argv) {
  Options o;
  read_bench_flags(
      argc, argv,
      "Host time of a decode step on its way to a device: bytes a step, and microseconds, median and p99.",
      {{"--sequences", &o.sequences, 1, "in the step"},
       {"--tokens", &o.tokens, 1, "of each"},
       {"--replaced", &o.replaced, 0, "sequences a step"},
       {"--steps", &o.steps, 1, "timed"},
       {"--whole", &o.whole, 0, "1: every list is brought whole each step"}});
  return o;
}

// Lists that grow and start over at half as much again.
class Batch {
 public:
  explicit Batch(const Options& o) : options_(o) {
    for (int32_t i = 0; i < o.sequences; ++i) plan_.sequences.push_back(next(o.tokens + i % kBlockTokens));
  }
  const BatchPlan& plan() const { return plan_; }
  void advance(int32_t step) {
    for (PlannedSequence& s : plan_.sequences) {
      s.num_unchanged_blocks = static_cast<int32_t>(s.block_table.size());
      s.list_length_before = ++s.first_position;
      if (s.list_length_before % kBlockTokens == 0) s.block_table.push_back(fresh());
      s.samples[0].position = s.first_position + 1;
      if (s.first_position > options_.tokens * 3 / 2) s = next(options_.tokens);
    }
    for (int32_t i = 0; i < options_.replaced; ++i)
      plan_.sequences[static_cast<size_t>((step * 7 + i * 31) % options_.sequences)] = next(options_.tokens);
  }

 private:
  BlockId fresh() { return BlockId{next_block_ = (next_block_ + 1) % kBlocks}; }
  PlannedSequence next(int32_t length) {
    PlannedSequence s{.sequence = SequenceId{next_id_++},
                      .first_position = length,
                      .tokens = {kSampledLastStep},
                      .list_length_before = length};
    for (int32_t b = 0; b <= length / kBlockTokens; ++b) s.block_table.push_back(fresh());
    s.samples = {{.sequence = s.sequence, .position = length + 1}};
    return s;
  }

  Options options_;
  BatchPlan plan_;
  uint64_t next_id_ = 1;
  int32_t next_block_ = 0;
};

class Packer {
 public:
  explicit Packer(const Options& o)
      : options_(o),
        rows_(decode_bucket(o.sequences)),
        step_({.max_rows = rows_,
               .max_sequences = o.sequences,
               .max_context_tokens = 2 * o.tokens + kBlockTokens,
               .block_tokens = kBlockTokens,
               .num_blocks = kBlocks,
               .vocab_size = 1000},
              StepTables::kKeptElsewhere),
        tables_(kBlockTokens, kBlocks),
        device_(open_cuda_host_device()) {
    const int64_t stride = (2 * o.tokens + kBlockTokens) / kBlockTokens + 16;
    arrays_ = std::move(DeviceStep::create(*device_, shape(rows_ * stride), stride)).value();
    id_source_.assign(static_cast<size_t>(rows_), -1);
    settings_.assign(static_cast<size_t>(o.sequences), {});
  }
  int64_t pack(const BatchPlan& plan) {
    if (options_.whole != 0) tables_.forget();
    check(step_.build(plan).has_value(), "a good plan");
    check(tables_.build(plan).has_value(), "a good plan");
    turn_ = 1 - turn_;
    return arrays_
        .pack(step_, tables_, {.id_source = id_source_, .sampling = {.settings = settings_}},
              shape(static_cast<int64_t>(tables_.entries().size())), turn_)
        .bytes;
  }

 private:
  StepShape shape(int64_t entries) const {
    return {.rows = rows_,
            .sequences = static_cast<int32_t>(rows_),
            .logits_rows = rows_,
            .samples = static_cast<int32_t>(rows_),
            .table_entries = entries};
  }

  Options options_;
  int64_t rows_;
  HostStep step_;
  TableDeltas tables_;
  std::unique_ptr<StreamDevice> device_;
  DeviceStep arrays_;
  std::vector<int32_t> id_source_;
  std::vector<SampleSettings> settings_;
  int turn_ = 0;
};

void run(const Options& o) {
  Packer packer(o);
  Batch batch(o);
  int64_t first = packer.pack(batch.plan()), bytes = 0;
  std::vector<double> us;
  for (int32_t step = 0; step < o.steps; ++step) {
    batch.advance(step);
    const auto start = std::chrono::steady_clock::now();
    bytes += packer.pack(batch.plan());
    us.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(us.begin(), us.end());
  fmt::print(
      "{} sequences of {} tokens, {} replaced a step{}: {} bytes a step (first {}), median {:.1f} us, p99 "
      "{:.1f} us\n",
      o.sequences, o.tokens, o.replaced, o.whole != 0 ? ", lists whole" : "", bytes / o.steps, first,
      us[us.size() / 2], us[us.size() * 99 / 100]);
}

}  // namespace
}  // namespace quire

int main(int argc, char** argv) {
  quire::run(quire::parse(argc, argv));
  return 0;
}
