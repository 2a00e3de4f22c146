#include "benchmarks/sim/episode.h"

#include <fmt/format.h>

#include <algorithm>

#include "src/base/check.h"

namespace quire {
namespace {

constexpr size_t kMaxViolations = 8;
constexpr int32_t kMaxStepsIdle = 100000;  // that a drain may take before it counts as a hang

bool is_predictable(const SamplingParams& s) {
  return s.temperature == 0 && s.num_sequences() == 1 && s.beam_width == 0 && s.min_tokens == 0;
}

}  // namespace

Episode::Episode(const SimSetup& setup, std::unique_ptr<Workload> workload, const FaultRates& rates,
                 uint64_t seed)
    : executor_(setup.model, &clock_, setup.roofline),
      workload_(std::move(workload)),
      rates_(rates),
      random_(seed) {
  Result<std::unique_ptr<EngineCore>> core = EngineCore::create(setup.core, executor_, clock_);
  check(core.has_value(), core ? "" : core.error().message);
  core_ = std::move(*core);
  core_->set_on_violation([this](const std::string& what) { violate(what); });
  if (rates.step_error > 0)
    executor_.set_fault([this](const BatchPlan&) {
      if (!random_.chance(rates_.step_error)) return ok();
      ++faults_;
      return Status(error(Code::kInternal, "injected fault"));
    });
}

void Episode::violate(std::string what) {
  if (violations_.size() < kMaxViolations)
    violations_.push_back(fmt::format("step {}: {}", core_->scheduler().counters().steps, what));
}

void Episode::submit(CoreRequest r) {
  ++submitted_;
  if (r.arrival_us == 0) r.arrival_us = clock_.now_us();
  const bool fits = check_request(*r.sampling, r.prompt, core_->limits(), r.policy).has_value();
  if (!fits || !core_->queue_budget().take(static_cast<int64_t>(r.prompt.size()), 0)) {
    ++refused_;
    return;
  }
  r.request = next_id_++;
  live_.resize(next_id_);
  live_[r.request] = std::make_unique<Live>();
  ++num_live_;
  Live& live = *live_[r.request];
  live.num_sequences = r.sampling->beam_width > 0 ? r.sampling->n : r.sampling->num_sequences();
  live.arrival_us = r.arrival_us;
  live.checked = is_predictable(*r.sampling) && core_->scheduler().limits().max_sequences <= 4096;
  if (live.checked) live.prompt = r.prompt;
  ids_.push_back(r.request);
  core_->submit(std::move(r));
}

void Episode::arrive() {
  while (std::optional<CoreRequest> r = workload_->next(clock_.now_us(), core_->num_unfinished()))
    submit(std::move(*r));
}

RequestId Episode::any_live() {
  while (!ids_.empty()) {
    const size_t i = random_.below(ids_.size());
    if (find(ids_[i]) != nullptr) return ids_[i];
    ids_[i] = ids_.back();
    ids_.pop_back();
  }
  return 0;
}

void Episode::inject() {
  if (random_.chance(rates_.cancel))
    if (const RequestId id = any_live()) core_->abort(id), ++faults_;
  if (random_.chance(rates_.pause))
    if (const RequestId id = any_live()) {
      Live& live = *find(id);
      core_->set_paused(id, live.paused = !live.paused);
      ++faults_;
    }
  if (random_.chance(rates_.stop))
    if (const RequestId id = any_live()) {
      find(id)->stopped = true;
      core_->stop(id, static_cast<int32_t>(random_.below(2)));
      ++faults_;
    }
  if (random_.chance(rates_.clock_jump)) clock_.advance_us(random_.between(1, 2'000'000)), ++faults_;
}

bool Episode::advance_to_next_event() {
  int64_t at = core_->next_deadline_us();
  if (const auto arrival = workload_->next_arrival_us()) at = std::min(at, *arrival);
  if (at == kNoDeadline) return false;
  clock_.advance_us(std::max<int64_t>(0, at - clock_.now_us()));
  return true;
}

bool Episode::step() {
  arrive();
  if (rates_.cancel > 0) inject();
  const bool worked = core_->step();
  samples_.running_sum += worked ? core_->scheduler().num_running() : 0;
  take_outcome();
  if ((core_->scheduler().counters().steps & 63) == 0 && core_->cache().num_held() > 0) {
    samples_.waste_sum += core_->cache().waste_percent();
    ++samples_.waste_count;
  }
  if (worked || !workload_->exhausted()) return worked || advance_to_next_event() || !workload_->exhausted();
  return advance_to_next_event();
}

void Episode::drain() {
  rates_ = kNoFaults;
  for (RequestId id = 1; id < live_.size(); ++id)
    if (live_[id] != nullptr) core_->set_paused(id, false);
  for (int32_t i = 0; i < kMaxStepsIdle && core_->step(); ++i) take_outcome();
  take_outcome();
  if (!core_->idle()) violate(fmt::format("stuck: {} requests cannot end", core_->num_unfinished()));
  if (num_live_ > 0) violate(fmt::format("invariant 9: {} requests have no end", num_live_));
  leaked_ = core_->cache().num_held();
  if (leaked_ > 0) violate(fmt::format("{} blocks are held by nobody", leaked_));
  if (core_->queue_budget().num_requests() != 0 || core_->queue_budget().num_tokens() != 0)
    violate(fmt::format("the queue's budget keeps {} requests, {} tokens",
                        core_->queue_budget().num_requests(), core_->queue_budget().num_tokens()));
}

void Episode::take_token(const TokenOutput& token) {
  Live* found = find(token.request);
  if (found == nullptr)
    return violate(fmt::format("invariant 9: a token of request {}, which has ended", token.request));
  Live& live = *found;
  ++live.num_tokens;
  ++samples_.output_tokens;
  if (live.first_us < 0) live.first_us = clock_.now_us();
  live.last_us = clock_.now_us();
  if (live.checked) live.tokens.push_back(token.token);
}

void Episode::take_outcome() {
  core_->take_outcome(outcome_);
  const Outcome& out = outcome_;
  for (const TokenOutput& token : out.tokens) take_token(token);
  for (const SequenceEnd& end : out.ends) {
    Live* live = find(end.request);
    if (live == nullptr || ++live->num_ends > live->num_sequences)
      violate(fmt::format("invariant 9: request {} has one end too many", end.request));
  }
  for (const RequestEnd& end : out.request_ends) end_request(end);
  for (const std::string& v : executor_.violations())
    if (violations_.empty()) violate("executor: " + v);
}

void Episode::end_request(const RequestEnd& end) {
  const Live* found = find(end.request);
  if (found == nullptr) return violate(fmt::format("invariant 9: request {} ended twice", end.request));
  const Live& live = *found;
  if (live.num_ends != live.num_sequences)
    violate(fmt::format("invariant 9: request {} ended with {} of {} sequences", end.request, live.num_ends,
                        live.num_sequences));
  if (live.checked && executor_.checks_content()) {
    const std::vector<TokenId> alone =
        executor_.greedy(live.prompt, static_cast<int32_t>(live.tokens.size()));
    if (alone != live.tokens)
      violate(fmt::format("invariant 5: request {} got other tokens than alone", end.request));
  }
  samples_.prompt_tokens += end.timings.queued_ms < 0 ? 0 : end.prompt_tokens;
  samples_.cached_tokens += end.cached_tokens;
  const bool natural = end.finish == FinishReason::kLength || end.finish == FinishReason::kStop;
  if (natural && live.first_us >= 0) {
    samples_.ttft_ms.push_back(static_cast<float>(live.first_us - live.arrival_us) * 1e-3f);
    const int32_t each = live.num_tokens / std::max(1, live.num_sequences);
    if (each > 1)
      samples_.tpot_ms.push_back(static_cast<float>(live.last_us - live.first_us) * 1e-3f /
                                 static_cast<float>(each - 1));
  }
  live_[end.request].reset();
  --num_live_;
}

void Episode::add_to(SimReport& report, Samples& samples) const {
  EngineStats stats;
  core_->fill_stats(stats);
  report.steps += stats.steps_total;
  report.faults += faults_;
  report.simulated_s += static_cast<double>(clock_.now_us()) * 1e-6;
  report.submitted += submitted_;
  report.refused += refused_;
  report.finished += stats.requests_finished_total;
  report.cancelled += stats.requests_cancelled_total;
  report.failed += stats.requests_failed_total;
  report.preemptions += stats.preemptions_total;
  report.copies_on_write += stats.copies_on_write_total;
  report.evictions += stats.evictions_total;
  report.blocks_leaked += leaked_;
  report.violations.insert(report.violations.end(), violations_.begin(), violations_.end());
  samples.ttft_ms.insert(samples.ttft_ms.end(), samples_.ttft_ms.begin(), samples_.ttft_ms.end());
  samples.tpot_ms.insert(samples.tpot_ms.end(), samples_.tpot_ms.begin(), samples_.tpot_ms.end());
  samples.waste_sum += samples_.waste_sum;
  samples.waste_count += samples_.waste_count;
  samples.running_sum += samples_.running_sum;
  samples.output_tokens += samples_.output_tokens;
  samples.prompt_tokens += samples_.prompt_tokens;
  samples.cached_tokens += samples_.cached_tokens;
}

}  // namespace quire
