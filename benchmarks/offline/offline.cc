#include "benchmarks/offline/offline.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "benchmarks/offline/round_clock.h"
#ifdef QUIRE_HAS_BENCH_CPU
#include "benchmarks/cpu/ceilings.h"
#endif
#include "quire/engine.h"
#include "src/base/blocks_for.h"
#include "src/base/dtype.h"
#include "src/base/random.h"
#include "src/model/config.h"

namespace quire {
namespace {

Status check_options(const OfflineOptions& o) {
  struct Range {
    const char* name;
    int64_t value, low, high;
  };
  const Range ranges[] = {{"batch", o.batch, 1, kMaxOfflineRequests},
                          {"n", o.n, 1, o.engine.sampling_limits.max_n},
                          {"prompt_tokens", o.prompt_tokens, 1, kMaxOfflineTokens},
                          {"new_tokens", o.new_tokens, 2, kMaxOfflineTokens},
                          {"shared_prefix_tokens", o.shared_prefix_tokens, 0, kMaxOfflineTokens},
                          {"rounds", o.rounds, 1, 1000}};
  for (const Range& r : ranges) {
    if (r.value < r.low || r.value > r.high) {
      return invalid(fmt::format("{} is {}; it must be from {} to {}", r.name, r.value, r.low, r.high),
                     r.name);
    }
  }
  return ok();
}

// The round's requests, however they were asked for.
std::vector<RequestLengths> lengths_of(const OfflineOptions& o) {
  if (!o.requests.empty()) return o.requests;
  return std::vector<RequestLengths>(static_cast<size_t>(o.batch),
                                     {.prompt_tokens = o.prompt_tokens, .new_tokens = o.new_tokens});
}

// What a workload needs when all its requests run at once.
struct Need {
  int64_t longest = 0, blocks = 0;
  int32_t requests = 0, sequences = 0;
};
Need need_of(const OfflineOptions& o) {
  Need need;
  for (const RequestLengths& r : lengths_of(o)) {
    const int64_t tokens = int64_t{o.shared_prefix_tokens} + r.prompt_tokens + r.new_tokens;
    need.longest = std::max(need.longest, tokens);
    need.blocks += o.n * (blocks_for(tokens, o.engine.block_tokens) + 1);
    ++need.requests;
    need.sequences += o.n;
  }
  return need;
}
Need most_of(const std::vector<OfflineOptions>& workloads) {
  Need most;
  for (const OfflineOptions& o : workloads) {
    const Need need = need_of(o);
    most.longest = std::max(most.longest, need.longest);
    most.blocks = std::max(most.blocks, need.blocks);
    most.requests = std::max(most.requests, need.requests);
    most.sequences = std::max(most.sequences, need.sequences);
  }
  return most;
}

// Room for the largest workload and nothing more: contexts of prompt + new tokens, and their blocks in the
// largest cache dtype that "auto" may choose.
EngineConfig with_capacity(const std::vector<OfflineOptions>& workloads, const ModelSpec& spec) {
  EngineConfig c = workloads.front().engine;
  const Need need = most_of(workloads);
  c.prefix_cache = std::any_of(workloads.begin(), workloads.end(),
                               [](const OfflineOptions& o) { return o.shared_prefix_tokens > 0; });
  c.max_sequences = std::max(c.max_sequences, need.sequences);
  c.max_queued_requests = std::max(c.max_queued_requests, need.requests);
  c.max_queued_kv_factor = std::max(c.max_queued_kv_factor, 2.0);
  if (c.max_context_tokens == 0)
    c.max_context_tokens = static_cast<int32_t>(std::min<int64_t>(need.longest, spec.max_positions));
  if (c.kv_cache_bytes == 0) {
    const int64_t element = c.kv_cache_dtype == "bf16" || c.kv_cache_dtype == "f16" ? 2 : 4;
    c.kv_cache_bytes =
        need.blocks * c.block_tokens * spec.kv_bytes_per_token(DType::kF32) / bytes_of(DType::kF32) * element;
  }
  return c;
}

void append_random_ids(std::vector<int32_t>& ids, int32_t count, int32_t vocab, Random& random) {
  for (int32_t i = 0; i < count; ++i)
    ids.push_back(static_cast<int32_t>(random.below(static_cast<uint64_t>(vocab))));
}

// One engine and what its rounds have in common.
struct Run {
  const OfflineOptions& options;
  Engine& engine;
  std::vector<RequestLengths> requests;
  std::vector<int32_t> shared_prefix;
  Random random;
  Progress* progress;  // of all rounds
};

Request make_request(Run& run, const RequestLengths& lengths) {
  std::vector<int32_t> ids = run.shared_prefix;
  append_random_ids(ids, lengths.prompt_tokens, run.engine.model().vocab_size, run.random);
  Request request;
  request.prompt = std::move(ids);
  request.sampling.temperature = 0;
  request.sampling.n = run.options.n;
  request.sampling.max_tokens = lengths.new_tokens;
  request.sampling.ignore_eos = true;
  request.bypass_prefix_cache = run.shared_prefix.empty();
  return request;
}

Result<RoundTimes> time_round(Run& run) {
  const SteadyClock clock;
  std::vector<Submission> batch;
  batch.reserve(run.requests.size());
  for (const RequestLengths& lengths : run.requests) batch.push_back({make_request(run, lengths), nullptr});
  RoundClock round(static_cast<int32_t>(batch.size()), run.options.n, clock, run.progress);
  for (size_t i = 0; i < batch.size(); ++i) batch[i].sink = round.sink(static_cast<int32_t>(i));
  const Result<std::vector<RequestId>> ids = run.engine.submit_together(std::move(batch));
  if (!ids) {
    run.engine.drain(0);  // cancels what was taken, so that no sink outlives its clock
    return ids.error();
  }
  RoundTimes times = round.wait();
  if (times.error) return *times.error;
  if (times.steps_between == 0 && run.options.requests.empty()) {
    return error(
        Code::kFailedPrecondition,
        fmt::format("new_tokens is {}: the first request of the batch ended before the last began; raise it",
                    run.options.new_tokens));
  }
  return times;
}

// New tokens of a round.
int64_t tokens_of(const std::vector<RequestLengths>& requests, int32_t n) {
  int64_t tokens = 0;
  for (const RequestLengths& r : requests) tokens += int64_t{r.new_tokens} * n;
  return tokens;
}

// What the rounds' prompts hold beyond what the cache gave.
int64_t computed_prompt_tokens(const Run& run, const RoundTimes& t) {
  int64_t tokens = -t.cached_tokens;
  for (const RequestLengths& r : run.requests) tokens += run.options.shared_prefix_tokens + r.prompt_tokens;
  return tokens;
}

OfflineRound figures_of(const Run& run, const RoundTimes& t) {
  OfflineRound r;
  r.prefill_ms = static_cast<double>(t.all_first_us - t.start_us) / 1e3;
  r.total_ms = static_cast<double>(t.end_us - t.start_us) / 1e3;
  r.output_tokens_per_s = static_cast<double>(t.tokens) / r.total_ms * 1e3;
  r.prefill_tokens_per_s = static_cast<double>(computed_prompt_tokens(run, t)) / r.prefill_ms * 1e3;
  r.decode_steps = t.steps_between;
  if (r.decode_steps == 0) return r;
  r.decode_ms = static_cast<double>(t.first_end_us - t.all_first_us) / 1e3;
  r.decode_tokens_per_s = static_cast<double>(t.tokens_between) / r.decode_ms * 1e3;
  r.ms_per_decode_step = r.decode_ms / r.decode_steps;
  return r;
}

double median_of(const std::vector<OfflineRound>& rounds, double OfflineRound::* figure) {
  std::vector<double> values;
  values.reserve(rounds.size());
  for (const OfflineRound& r : rounds) values.push_back(r.*figure);
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

OfflineRound medians(const std::vector<OfflineRound>& rounds) {
  OfflineRound m;
  for (double OfflineRound::* figure :
       {&OfflineRound::prefill_tokens_per_s, &OfflineRound::decode_tokens_per_s,
        &OfflineRound::ms_per_decode_step, &OfflineRound::prefill_ms, &OfflineRound::decode_ms,
        &OfflineRound::total_ms, &OfflineRound::output_tokens_per_s, &OfflineRound::read_gb_s}) {
    m.*figure = median_of(rounds, figure);
  }
  m.decode_steps = rounds.front().decode_steps;
  return m;
}

// The embedding is looked up, not multiplied; when it is also the output matrix it is read whole.
int64_t weight_bytes_of(const ModelSpec& spec) {
  const int64_t table = spec.tied_embeddings ? 0 : int64_t{spec.vocab_size} * spec.hidden_size;
  return (spec.num_parameters() - table) * bytes_of(spec.checkpoint_dtype);
}

void describe(const Engine& engine, const ModelSpec& spec, OfflineReport& report) {
  const ModelCard card = engine.model();
  report.options.engine = engine.config();
  report.model = card.name;
  report.architecture = card.architecture;
  report.device = card.device;
  report.dtype = card.dtype;
  report.kv_dtype = engine.config().kv_cache_dtype;
  report.weight_bytes = weight_bytes_of(spec);
  report.kv_bytes_per_token = card.kv_bytes_per_token;
}

}  // namespace

namespace {

// The engine is idle meanwhile: its threads sleep 0.2 ms after the last step.
double probe_read([[maybe_unused]] const Run& run) {
#ifdef QUIRE_HAS_BENCH_CPU
  return bench::measure_read(std::max(1, run.engine.config().threads));
#else
  return 0;
#endif
}

// The round that warms up, then the timed ones. The time of the first token of all.
Result<int64_t> run_rounds(Run& run, OfflineReport& report) {
  const EngineStats stats = run.engine.stats();
  const int64_t block_bytes = stats.blocks_total > 0 ? stats.kv_bytes_total / stats.blocks_total : 0;
  int64_t first_token_us = 0;
  for (int32_t round = -1; round < run.options.rounds; ++round) {
    const Result<RoundTimes> times = time_round(run);
    if (!times) return times.error();
    report.kv_bytes_peak = std::max(report.kv_bytes_peak, times->blocks_peak * block_bytes);
    report.cached_tokens = times->cached_tokens;
    if (round < 0)
      first_token_us = times->first_token_us;
    else
      report.rounds.push_back(figures_of(run, *times));
    if (run.options.probe_read && round >= 0) report.rounds.back().read_gb_s = probe_read(run);
  }
  const EngineStats after = run.engine.stats();
  report.shared_read_tokens =
      static_cast<double>(after.shared_read_tokens_total - stats.shared_read_tokens_total) /
      static_cast<double>(std::max<int64_t>(1, after.steps_total - stats.steps_total));
  report.uploaded_bytes = static_cast<double>(after.uploaded_bytes_total - stats.uploaded_bytes_total) /
                          static_cast<double>(std::max<int64_t>(1, after.steps_total - stats.steps_total));
  report.host_us_per_step = after.host_us_per_step_p50;
  report.device_idle_us = after.device_idle_us_p50;
  report.median = medians(report.rounds);
  return first_token_us;
}

Result<OfflineReport> run_workload(Engine& engine, const ModelSpec& spec, const OfflineOptions& options,
                                   int64_t start_us) {
  OfflineReport report{.options = options};
  describe(engine, spec, report);
  const std::vector<RequestLengths> requests = lengths_of(options);
  Progress progress("measuring", (options.rounds + 1) * tokens_of(requests, options.n), "tokens");
  Run run{.options = options,
          .engine = engine,
          .requests = requests,
          .shared_prefix = {},
          .random = Random(options.seed),
          .progress = &progress};
  append_random_ids(run.shared_prefix, options.shared_prefix_tokens, engine.model().vocab_size, run.random);
  const Result<int64_t> first_token_us = run_rounds(run, report);
  if (!first_token_us) return first_token_us.error();
  report.start_to_first_token_ms = static_cast<double>(*first_token_us - start_us) / 1e3;
  return report;
}

}  // namespace

Result<std::vector<OfflineReport>> run_offline_all(const std::vector<OfflineOptions>& workloads) {
  const SteadyClock clock;
  const int64_t start_us = clock.now_us();
  for (const OfflineOptions& o : workloads)
    if (Status checked = check_options(o); !checked) return checked.error();
  const Result<ModelSpec> spec = read_model_config(workloads.front().engine.model_dir);
  if (!spec) return spec.error();
  Result<std::unique_ptr<Engine>> engine = Engine::open(with_capacity(workloads, *spec));
  if (!engine) return engine.error();
  for (const OfflineOptions& o : workloads)
    if (o.probe_read && (*engine)->config().device != "cpu")
      return invalid(
          fmt::format("probe_read measures host memory; this engine runs on {}", (*engine)->model().device),
          "probe_read");
  const double open_ms = static_cast<double>(clock.now_us() - start_us) / 1e3;
  std::vector<OfflineReport> reports;
  for (const OfflineOptions& o : workloads) {
    Result<OfflineReport> report = run_workload(**engine, *spec, o, start_us);
    if (!report) return report.error();
    if (!reports.empty()) report->start_to_first_token_ms = reports.front().start_to_first_token_ms;
    report->open_ms = open_ms;
    reports.push_back(*std::move(report));
  }
  return reports;
}

Result<OfflineReport> run_offline(const OfflineOptions& options) {
  Result<std::vector<OfflineReport>> reports = run_offline_all({options});
  if (!reports) return reports.error();
  return std::move(reports->front());
}

}  // namespace quire
