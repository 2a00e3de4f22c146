#include "benchmarks/sim/sim.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>

#include <nlohmann/json.hpp>

#include "benchmarks/sim/play.h"
#include "benchmarks/sim/plot.h"
#include "benchmarks/sim/reservoir.h"
#include "benchmarks/sim/timeline.h"
#include "src/base/progress.h"

namespace quire {
namespace {

constexpr int64_t kEpisodeSteps = 5000;
constexpr int64_t kDefaultSteps = 100'000;
constexpr size_t kMaxLatencies = 2'000'000;  // kept; of more an even choice

constexpr std::array<const char*, kNumSimFaults> kFaultNames = {
    "cancel_waiting", "cancel_parked",  "cancel_prefill", "cancel_decode", "cancel_preempted",
    "cancel_copying", "cancel_paused",  "cancel_ended",   "deadline",      "slow_reader",
    "stop",           "executor_error", "copy_error",     "copy_delay",    "no_room",
    "clock_jump",     "transfer_error", "transfer_delay", "disk_corrupt",  "disk_hang",
    "sequence_error"};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

SimPercentiles percentiles(const Reservoir& latencies) {
  std::vector<float> values = latencies.kept();
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const auto at = [&](double q) {
    return static_cast<double>(values[static_cast<size_t>(q * static_cast<double>(values.size() - 1))]);
  };
  return {at(0.5), at(0.9), at(0.99), static_cast<int64_t>(latencies.seen()),
          static_cast<int64_t>(values.size())};
}

Status write_file(const std::string& path, const std::string& text) {
  std::ofstream file(path);
  file << text;
  file.flush();
  if (!file) return error(Code::kUnavailable, fmt::format("plot: {} cannot be written", path));
  return ok();
}

// One value of each moment over time; moments without one (NaN) are left out.
PlotSeries over_time(std::string label, const Timeline& timeline, double (*value)(const SimMoment&)) {
  PlotSeries series{std::move(label), {}};
  for (const SimMoment& moment : timeline.moments()) {
    const double y = value(moment);
    if (!std::isnan(y)) series.points.emplace_back(moment.seconds / static_cast<double>(moment.looks), y);
  }
  return series;
}

double mean(double sum, const SimMoment& moment) {
  return sum / static_cast<double>(moment.looks);
}

std::vector<PlotPanel> panels_of(const Timeline& timeline, const Reservoir& ttft_ms,
                                 const Reservoir& tpot_ms) {
  const std::string seconds = "simulated seconds";
  return {{.title = "Requests",
           .x_label = seconds,
           .y_label = "number",
           .series = {over_time("sequences running", timeline,
                                [](const SimMoment& m) { return mean(m.running, m); }),
                      over_time("requests waiting", timeline,
                                [](const SimMoment& m) { return mean(m.waiting, m); })}},
          {.title = "Blocks of the device's cache",
           .x_label = seconds,
           .y_label = "share",
           .y_max = 1,
           .series = {over_time("held by requests", timeline,
                                [](const SimMoment& m) { return mean(m.held_share, m); }),
                      over_time("cached, held by nobody", timeline,
                                [](const SimMoment& m) { return mean(m.cached_share, m); })}},
          {.title = "Prompt tokens found cached",
           .x_label = seconds,
           .y_label = "share",
           .y_max = 1,
           .series = {over_time("of those looked for", timeline,
                                [](const SimMoment& m) {
                                  return m.asked_tokens > 0 ? static_cast<double>(m.found_tokens) /
                                                                  static_cast<double>(m.asked_tokens)
                                                            : NAN;
                                })}},
          {.title = "Latency of finished requests",
           .x_label = "ms",
           .y_label = "share that took no longer",
           .log_x = true,
           .y_max = 1,
           .series = {cumulative_share("first token", ttft_ms.kept()),
                      cumulative_share("each later token", tpot_ms.kept())}}};
}

class Run {
 public:
  explicit Run(const SimOptions& options) : options_(options), start_(std::chrono::steady_clock::now()) {
    if (options_.trace.empty() && options_.steps == 0 && options_.seconds == 0)
      options_.steps = kDefaultSteps;
    if (options_.steps > 0)
      progress_.emplace("simulating", options_.steps, "steps");
    else if (options_.seconds > 0)
      progress_.emplace("simulating", static_cast<int64_t>(std::ceil(options_.seconds)), "seconds");
    if (options.script.empty()) report_.seed = options.seed;
  }

  // Until the workload is through, an invariant breaks, or the limits are reached; drained in any case but a
  // broken one. The violation, if there is one.
  std::optional<std::string> play_one(std::unique_ptr<Episode>& episode, int64_t max_steps) {
    Episode& e = *episode;  // stays where it is even if a check has failed in it
    e.set_slo(options_.slo_ttft_ms, options_.slo_tpot_ms);
    timeline_.begin_episode();
    const std::optional<std::string> broken = play(episode, [&](const Episode& now) {
      if ((now.num_ticks() & 255) == 0) show(now);
      if (!options_.plot.empty() && (now.num_ticks() & 63) == 0) look(now);
      return now.num_ticks() < max_steps && !spent(steps_loaded() + now.num_steps());
    });
    e.add_to(report_, samples_);
    if (broken && report_.violations.empty()) report_.violations.push_back(*broken);
    ttft_ms_.add(std::exchange(samples_.ttft_ms, {}));
    tpot_ms_.add(std::exchange(samples_.tpot_ms, {}));
    return broken;
  }
  void came_from(std::optional<uint64_t> seed) { report_.seed = seed; }
  Status keep_script(SimScript script) {
    script.seed = options_.seed;
    report_.script =
        options_.script_out.empty() ? fmt::format("quire-sim-{}.jsonl", options_.seed) : options_.script_out;
    report_.script_events = static_cast<int64_t>(script.events.size());
    return write_script(script, report_.script);
  }
  bool spent(int64_t steps) const {
    if (options_.steps > 0 && steps >= options_.steps) return true;
    return options_.seconds > 0 && (steps & 255) == 0 && seconds_since(start_) >= options_.seconds;
  }
  bool done() const {
    return !report_.violations.empty() || spent(steps_loaded()) ||
           (options_.seconds > 0 && seconds_since(start_) >= options_.seconds);
  }

  // Of a trace, whose end is that of its requests.
  void expect_requests(int64_t count) { progress_.emplace("simulating", count, "requests"); }

  Result<SimReport> finish() {
    progress_.reset();
    report_.steps_per_s = static_cast<double>(report_.steps) / std::max(1e-9, seconds_since(start_));
    const double asked = std::max<double>(1, static_cast<double>(samples_.prompt_tokens));
    report_.hit_rate = static_cast<double>(samples_.cached_tokens) / asked;
    report_.host_hit_rate = static_cast<double>(report_.host_hit_tokens) / asked;
    report_.disk_hit_rate = static_cast<double>(report_.disk_hit_tokens) / asked;
    report_.running_mean =
        report_.steps > 0 ? static_cast<double>(samples_.running_sum) / static_cast<double>(report_.steps)
                          : 0;
    report_.ttft_ms = percentiles(ttft_ms_);
    report_.tpot_ms = percentiles(tpot_ms_);
    report_.waste_percent =
        samples_.waste_count > 0 ? samples_.waste_sum / static_cast<double>(samples_.waste_count) : 0;
    const double seconds = std::max(1e-9, report_.simulated_s);
    report_.output_tokens_per_s = static_cast<double>(samples_.output_tokens) / seconds;
    report_.requests_per_s = static_cast<double>(samples_.finished) / seconds;
    report_.goodput_per_s = static_cast<double>(samples_.within_slo) / seconds;
    report_.fairness_max_gap = samples_.fairness_max_gap;
    report_.dearest_request = samples_.dearest_request;
    if (const Status drawn = draw(); !drawn) return drawn.error();
    return report_;
  }

 private:
  int64_t steps_loaded() const { return report_.steps - report_.drain_steps; }

  void show(const Episode& now) {
    if (!progress_) return;
    const int64_t done = options_.steps > 0     ? steps_loaded() + now.num_steps()
                         : options_.seconds > 0 ? static_cast<int64_t>(seconds_since(start_))
                                                : now.num_submitted();
    if (done != shown_) progress_->advance(done - std::exchange(shown_, done));
  }

  void look(const Episode& now) {
    EngineStats stats;
    now.fill_stats(stats);
    timeline_.look(now.now_s(), stats);
  }

  Status draw() const {
    if (options_.plot.empty()) return ok();
    const std::string& file = options_.script.empty() ? options_.trace : options_.script;
    const std::string title = fmt::format(
        "{}{}: {} requests in {:.1f} simulated seconds",
        file.empty() ? "random load" : std::filesystem::path(file).filename().string(),
        report_.seed ? fmt::format(", seed {}", *report_.seed) : "", report_.submitted, report_.simulated_s);
    return write_file(options_.plot, to_svg(title, panels_of(timeline_, ttft_ms_, tpot_ms_)));
  }

  SimOptions options_;
  Timeline timeline_;  // filled if it is to be drawn
  std::optional<Progress> progress_;
  int64_t shown_ = 0;  // of progress_
  std::chrono::steady_clock::time_point start_;
  SimReport report_;
  Samples samples_;  // but for the latencies
  Reservoir ttft_ms_{kMaxLatencies}, tpot_ms_{kMaxLatencies};
};

Status run_random(const SimOptions& options, const SimSetup& base, Run& run) {
  Random seeds(options.seed);
  while (!run.done()) {
    const uint64_t seed = seeds.next();
    const SimSetup setup = draw_episode(base, options, seed);
    const auto make = [&] {
      return std::make_unique<Episode>(
          setup,
          make_random_workload(seed + 1, options.sequences, setup.core.vocab_size, options.faults, setup.mix),
          options.faults ? draw_faults(seed + 3) : kNoFaults, seed + 2);
    };
    std::unique_ptr<Episode> episode = make();
    const Episode& played = *episode;
    const std::optional<std::string> broken = run.play_one(episode, kEpisodeSteps);
    if (!broken) continue;
    const int64_t num_ticks = played.num_ticks();
    return run.keep_script(shortest_script(setup, make, num_ticks, *broken));
  }
  return ok();
}

Status run_script(const SimOptions& options, Run& run) {
  const Result<SimScript> script = read_script(options.script);
  if (!script) return script.error();
  run.came_from(script->seed);
  auto episode = std::make_unique<Episode>(*script);
  run.play_one(episode, script->num_ticks);
  return ok();
}

Status run_trace(const SimOptions& options, const SimSetup& setup, Run& run) {
  const Result<TraceFormat> format = parse_trace_format(options.trace_format);
  if (!format) return format.error();
  Result<Trace> trace =
      read_trace(options.trace, *format, {.seed = options.seed, .max_requests = options.max_requests});
  if (!trace) return trace.error();
  std::shared_ptr<const NextUses> uses;
  if (setup.core.eviction == EvictionOrder::kOracle)
    uses = std::make_shared<const NextUses>(*trace, NamespaceId{identity_of(encode(setup.core.identity))},
                                            setup.core.vocab_size, setup.model.block_tokens);
  run.expect_requests(static_cast<int64_t>(trace->requests.size()));
  auto episode = std::make_unique<Episode>(
      setup, make_trace_workload(std::move(*trace), options.speed, setup.core.vocab_size),
      options.faults ? kAllFaults : kNoFaults, options.seed);
  if (uses != nullptr) episode->foresee(std::move(uses));
  run.play_one(episode, INT64_MAX);
  return ok();
}

nlohmann::ordered_json json_of(const SimPercentiles& p) {
  return {{"p50", p.p50}, {"p90", p.p90}, {"p99", p.p99}, {"count", p.count}, {"sampled", p.sampled}};
}

}  // namespace

Result<SimReport> run_sim(const SimOptions& options) {
  const Result<SimSetup> setup = make_setup(options);
  if (!setup) return setup.error();
  if (!options.plot.empty())  // told now, not after an hour's run
    if (const Status writable = write_file(options.plot, ""); !writable) return writable.error();
  Run run(options);
  const Status played = !options.script.empty() ? run_script(options, run)
                        : options.trace.empty() ? run_random(options, *setup, run)
                                                : run_trace(options, *setup, run);
  if (!played) return played.error();
  Result<SimReport> report = run.finish();
  if (report && options.seconds > 0 && report->steps == 0 && report->violations.empty())
    return invalid(
        fmt::format("seconds is {}, and setting up took longer: nothing was simulated", options.seconds),
        "seconds");
  return report;
}

std::string to_json(const SimReport& r) {
  nlohmann::ordered_json faults;
  for (size_t i = 0; i < kNumSimFaults; ++i) faults[kFaultNames[i]] = r.faults_by_kind[i];
  nlohmann::ordered_json json = {
      {"seed", r.seed ? nlohmann::ordered_json(*r.seed) : nlohmann::ordered_json()},
      {"steps", r.steps},
      {"drain_steps", r.drain_steps},
      {"faults", r.faults},
      {"violations", r.violations},
      {"steps_per_s", r.steps_per_s},
      {"simulated_s", r.simulated_s},
      {"running_mean", r.running_mean},
      {"requests",
       {{"submitted", r.submitted},
        {"finished", r.finished},
        {"refused", r.refused},
        {"cancelled", r.cancelled},
        {"failed", r.failed}}},
      {"hit_rate", r.hit_rate},
      {"hit_rate_by_tier",
       {{"device", r.hit_rate - r.host_hit_rate - r.disk_hit_rate},
        {"host", r.host_hit_rate},
        {"disk", r.disk_hit_rate}}},
      {"ttft_ms", json_of(r.ttft_ms)},
      {"tpot_ms", json_of(r.tpot_ms)},
      {"requests_per_s", r.requests_per_s},
      {"goodput_per_s", r.goodput_per_s},
      {"output_tokens_per_s", r.output_tokens_per_s},
      {"fairness", {{"max_gap", r.fairness_max_gap}, {"dearest_request", r.dearest_request}}},
      {"waste_percent", r.waste_percent},
      {"preemptions", r.preemptions},
      {"tail_drops", r.tail_drops},
      {"heads_shortened", r.heads_shortened},
      {"tier_waits_given_up", r.tier_waits_given_up},
      {"tier_fronts_computed", r.tier_fronts_computed},
      {"swap_outs", r.swap_outs},
      {"swap_ins", r.swap_ins},
      {"host_hit_tokens", r.host_hit_tokens},
      {"disk_hit_tokens", r.disk_hit_tokens},
      {"disk_corrupt_blocks", r.disk_corrupt_blocks},
      {"copies_on_write", r.copies_on_write},
      {"evictions", r.evictions},
      {"blocks_leaked", r.blocks_leaked},
      {"faults_by_kind", faults}};
  if (!r.script.empty()) json["script"] = {{"file", r.script}, {"events", r.script_events}};
  return json.dump();
}

}  // namespace quire
