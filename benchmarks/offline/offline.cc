#include "benchmarks/offline/offline.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "benchmarks/offline/round_clock.h"
#include "quire/engine.h"
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
  const Range ranges[] = {{"batch", o.batch, 1, 4096},
                          {"prompt_tokens", o.prompt_tokens, 1, 1 << 24},
                          {"new_tokens", o.new_tokens, 2, 1 << 24},
                          {"rounds", o.rounds, 1, 1000}};
  for (const Range& r : ranges) {
    if (r.value < r.low || r.value > r.high) {
      return invalid(fmt::format("{} is {}; it must be from {} to {}", r.name, r.value, r.low, r.high),
                     r.name);
    }
  }
  return ok();
}

// Room for the whole batch and nothing more: contexts of prompt + new tokens, and their blocks in the largest
// cache dtype that "auto" may choose.
EngineConfig with_capacity(const OfflineOptions& o, const ModelSpec& spec) {
  EngineConfig c = o.engine;
  const int64_t tokens = int64_t{o.prompt_tokens} + o.new_tokens;
  c.prefix_cache = false;
  c.max_sequences = std::max(c.max_sequences, o.batch);
  c.max_queued_requests = std::max(c.max_queued_requests, o.batch);
  c.max_queued_kv_factor = std::max(c.max_queued_kv_factor, 2.0);
  if (c.max_context_tokens == 0)
    c.max_context_tokens = static_cast<int32_t>(std::min<int64_t>(tokens, spec.max_positions));
  if (c.kv_cache_bytes == 0) {
    const int64_t element = c.kv_cache_dtype == "bf16" || c.kv_cache_dtype == "f16" ? 2 : 4;
    const int64_t blocks = o.batch * ((tokens + c.block_tokens - 1) / c.block_tokens + 1);
    c.kv_cache_bytes =
        blocks * c.block_tokens * spec.kv_bytes_per_token(DType::kF32) / bytes_of(DType::kF32) * element;
  }
  return c;
}

Request make_request(const OfflineOptions& o, int32_t vocab, Random& random) {
  std::vector<int32_t> ids(static_cast<size_t>(o.prompt_tokens));
  for (int32_t& id : ids) id = static_cast<int32_t>(random.below(static_cast<uint64_t>(vocab)));
  Request request;
  request.prompt = std::move(ids);
  request.sampling.temperature = 0;
  request.sampling.max_tokens = o.new_tokens;
  request.sampling.ignore_eos = true;
  request.bypass_prefix_cache = true;
  return request;
}

Result<RoundTimes> time_round(Engine& engine, const OfflineOptions& o, Random& random) {
  const SteadyClock clock;
  std::vector<Request> requests;
  for (int32_t i = 0; i < o.batch; ++i)
    requests.push_back(make_request(o, engine.model().vocab_size, random));
  RoundClock round(o.batch, clock);
  std::vector<RequestId> ids;
  for (int32_t i = 0; i < o.batch; ++i) {
    const Result<RequestId> id = engine.submit(std::move(requests[static_cast<size_t>(i)]), round.sink(i));
    if (!id) {
      engine.drain(0);  // cancels what was taken, so that no sink outlives its clock
      return id.error();
    }
  }
  RoundTimes times = round.wait();
  if (times.error) return *times.error;
  if (times.steps_between == 0) {
    return error(
        Code::kFailedPrecondition,
        fmt::format("new_tokens is {}: the first request of the batch ended before the last began; raise it",
                    o.new_tokens));
  }
  return times;
}

OfflineRound figures_of(const RoundTimes& t, const OfflineOptions& o) {
  OfflineRound r;
  r.prefill_ms = static_cast<double>(t.all_first_us - t.start_us) / 1e3;
  r.decode_ms = static_cast<double>(t.first_end_us - t.all_first_us) / 1e3;
  r.decode_steps = t.steps_between;
  r.prefill_tokens_per_s = static_cast<double>(o.batch) * o.prompt_tokens / r.prefill_ms * 1e3;
  r.decode_tokens_per_s = static_cast<double>(t.tokens_between) / r.decode_ms * 1e3;
  r.ms_per_decode_step = r.decode_ms / r.decode_steps;
  return r;
}

double median_of(const std::vector<OfflineRound>& rounds, double OfflineRound::*figure) {
  std::vector<double> values;
  for (const OfflineRound& r : rounds) values.push_back(r.*figure);
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

OfflineRound medians(const std::vector<OfflineRound>& rounds) {
  OfflineRound m;
  for (double OfflineRound::*figure :
       {&OfflineRound::prefill_tokens_per_s, &OfflineRound::decode_tokens_per_s,
        &OfflineRound::ms_per_decode_step, &OfflineRound::prefill_ms, &OfflineRound::decode_ms}) {
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
}

}  // namespace

Result<OfflineReport> run_offline(const OfflineOptions& options) {
  if (Status checked = check_options(options); !checked) return checked.error();
  const Result<ModelSpec> spec = read_model_config(options.engine.model_dir);
  if (!spec) return spec.error();
  Result<std::unique_ptr<Engine>> engine = Engine::open(with_capacity(options, *spec));
  if (!engine) return engine.error();
  OfflineReport report{.options = options};
  describe(**engine, *spec, report);
  const EngineStats stats = (*engine)->stats();
  const int64_t block_bytes = stats.blocks_total > 0 ? stats.kv_bytes_total / stats.blocks_total : 0;
  Random random(options.seed);
  for (int32_t round = -1; round < options.rounds; ++round) {
    const Result<RoundTimes> times = time_round(**engine, options, random);
    if (!times) return times.error();
    report.kv_bytes_peak = std::max(report.kv_bytes_peak, times->blocks_peak * block_bytes);
    if (round >= 0) report.rounds.push_back(figures_of(*times, options));
  }
  report.median = medians(report.rounds);
  return report;
}

}  // namespace quire
