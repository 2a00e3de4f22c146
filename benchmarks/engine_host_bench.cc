// Host time per step: plan + commit, as an engine thread spends it, with an executor that does nothing. 256
// running sequences of 4,096 tokens each, decoding, unless told otherwise; the prefix tree is on and filled
// with --cached-blocks of other prompts.
//   engine_host_bench [--sequences N] [--context N] [--steps N] [--cached-blocks N]
// Prints microseconds: median, p99, and the longest.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <string>
#include <vector>

#include "benchmarks/bench_flags.h"
#include "src/base/blocks_for.h"
#include "src/base/check.h"
#include "src/base/random.h"
#include "src/engine/engine_core.h"
#include "src/execute/fake_executor.h"

namespace quire {
namespace {

struct Options {
  int32_t sequences = 256, context = 4096, steps = 2000, block_tokens = 16;
  int64_t cached_blocks = 0;
};

Options parse(int argc, char** argv) {
  Options o;
  read_bench_flags(argc, argv,
                   "Host time per step, plan and commit, with an executor that does nothing: microseconds, "
                   "median, p99 and the longest.",
                   {{"--sequences", &o.sequences, 1, "that run"},
                    {"--context", &o.context, 1, "tokens of each"},
                    {"--steps", &o.steps, 17, "of which 16 warm up"},
                    {"--cached-blocks", &o.cached_blocks, 0, "of other prompts in the prefix tree"}});
  return o;
}

CoreOptions core_options(const Options& o) {
  CoreOptions core;
  core.config.max_sequences = o.sequences;
  core.config.max_step_tokens = std::max(8192, o.sequences);
  core.config.max_context_tokens = o.context + o.steps + 64;
  core.config.max_queued_requests = 1 << 20;
  core.config.max_queued_kv_factor = 1e6;
  const int64_t blocks =
      int64_t{o.sequences} * (blocks_for(core.config.max_context_tokens, o.block_tokens) + 1) +
      o.cached_blocks;
  core.cache = uniform_spec({.num_layers = 1,
                             .num_kv_heads = 1,
                             .head_dim = 8,
                             .dtype = DType::kBF16,
                             .block_tokens = o.block_tokens},
                            static_cast<int32_t>(blocks));
  core.vocab_size = 32000;
  return core;
}

CoreRequest request(Random& random, RequestId id, int32_t prompt_tokens, int32_t max_tokens) {
  CoreRequest r;
  r.request = id;
  SamplingParams p;
  p.temperature = 0;
  p.max_tokens = max_tokens;
  r.sampling = std::make_shared<const SamplingParams>(p);
  for (int32_t i = 0; i < prompt_tokens; ++i) r.prompt.push_back(static_cast<TokenId>(random.below(32000)));
  return r;
}

void submit(EngineCore& core, CoreRequest r) {
  const Status taken = core.queue_budget().take(static_cast<int64_t>(r.prompt.size()), 0);
  check(taken.has_value(), "the queue has room");
  core.submit(std::move(r));
}

double us(std::chrono::steady_clock::duration d) {
  return std::chrono::duration<double, std::micro>(d).count();
}

void run(const Options& o) {
  SteadyClock clock;
  FakeExecutor executor({.vocab_size = 32000, .check_content = false});
  Result<std::unique_ptr<EngineCore>> made = EngineCore::create(core_options(o), executor, clock);
  check(made.has_value(), made ? "" : made.error().message);
  EngineCore& core = **made;
  Random random(1);
  RequestId id = 1;
  for (int64_t filled = 0; filled < o.cached_blocks * o.block_tokens; filled += o.context)
    submit(core, request(random, id++, o.context, 1));
  while (core.step()) core.take_outcome();
  for (int32_t i = 0; i < o.sequences; ++i) submit(core, request(random, id++, o.context, o.steps + 32));
  while (core.scheduler().num_running() < o.sequences || core.scheduler().in_flight().empty() ||
         core.scheduler().in_flight().back().plan->num_tokens() != o.sequences) {
    core.step();
    core.take_outcome();
  }
  // A step of EngineCore is a plan and a commit; the executor's own part (it makes up tokens) is timed apart
  // and taken off.
  std::vector<double> times;
  int64_t tokens = 0;
  Outcome out;
  for (int32_t i = 0; i < o.steps - 16; ++i) {
    const double executor_before = executor.run_us();
    const auto start = std::chrono::steady_clock::now();
    core.step();
    core.take_outcome(out);
    times.push_back(us(std::chrono::steady_clock::now() - start) - (executor.run_us() - executor_before));
    tokens += static_cast<int64_t>(out.tokens.size());
  }
  std::sort(times.begin(), times.end());
  fmt::print("sequences {} context {} cached blocks {}: {} steps, {:.1f} tokens per step\n", o.sequences,
             o.context, core.cache().num_cached(), times.size(),
             static_cast<double>(tokens) / static_cast<double>(times.size()));
  fmt::print("host us per step: median {:.1f}  p99 {:.1f}  max {:.1f}\n", times[times.size() / 2],
             times[times.size() * 99 / 100], times.back());
}

}  // namespace
}  // namespace quire

int main(int argc, char** argv) {
  quire::run(quire::parse(argc, argv));
}
