#include "benchmarks/sim/episode.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "src/base/check.h"
#include "src/engine/invariants.h"

namespace quire {
namespace {

constexpr size_t kMaxViolations = 8;
constexpr int32_t kMaxStepsIdle = 100000;  // that a drain may take before it counts as a hang

bool is_predictable(const SamplingParams& s) {
  return s.temperature == 0 && s.num_sequences() == 1 && s.beam_width == 0 && s.min_tokens == 0;
}

}  // namespace

Episode::Episode(const SimSetup& setup, uint64_t seed)
    : executor_(setup.model, &clock_, setup.roofline),
      mover_(executor_, &clock_, setup.tiers),
      random_(seed) {
  Result<std::unique_ptr<EngineCore>> core = EngineCore::create(setup.core, executor_, clock_, &mover_);
  check(core.has_value(), core ? "" : core.error().message);
  core_ = std::move(*core);
  core_->set_on_violation([this](const std::string& what) { violate(what); });
  executor_.set_fault([this](const BatchPlan&) {
    if (!std::exchange(executor_error_, false)) return ok();
    count(SimFault::kExecutorError);
    return Status(error(Code::kInternal, "injected fault"));
  });
  executor_.set_copy_fault([this] {
    if (copy_fault_.fails) count(SimFault::kCopyError);
    if (copy_fault_.delay_us > 0) count(SimFault::kCopyDelay);
    return std::exchange(copy_fault_, {});
  });
  mover_.set_fault([this] {
    if (transfer_fault_.fails) count(SimFault::kTransferError);
    if (transfer_fault_.delay_us > 0) count(SimFault::kTransferDelay);
    return std::exchange(transfer_fault_, {});
  });
  mover_.set_corruption([this] {
    if (!std::exchange(disk_corrupt_, false)) return false;
    count(SimFault::kDiskCorrupt);
    return true;
  });
  mover_.set_disk_hang([this] {
    if (disk_hang_us_ > 0) count(SimFault::kDiskHang);
    return std::exchange(disk_hang_us_, 0);
  });
  mover_.set_wake([this] { return core_->next_deadline_us(); });
  core_->set_allocation_fault([this] {
    if (!std::exchange(no_room_, false)) return false;
    count(SimFault::kNoRoom);
    return true;
  });
}

Episode::Episode(const SimSetup& setup, std::unique_ptr<Workload> workload, const FaultRates& rates,
                 uint64_t seed)
    : Episode(setup, seed) {
  workload_ = std::move(workload);
  rates_ = rates;
}

Episode::Episode(const SimScript& script) : Episode(script.setup, 0) {
  script_ = &script;
}

// Requests still waiting have not used their prefixes yet.
void Episode::foresee(std::shared_ptr<const NextUses> uses) {
  core_->set_next_use([this, uses = std::move(uses)](uint64_t prefix_hash) {
    return uses->after(prefix_hash, submitted_ - core_->scheduler().num_waiting_groups());
  });
}

void Episode::violate(std::string what) {
  if (violations_.size() < kMaxViolations)
    violations_.push_back(fmt::format("step {}: {}", core_->scheduler().counters().steps, what));
}

void Episode::submit(CoreRequest r) {
  ++submitted_;
  next_id_ = std::max(next_id_, r.request + 1);
  if (r.arrival_us == 0) r.arrival_us = clock_.now_us();
  const bool fits = check_request(*r.sampling, r.prompt, core_->limits(), r.policy).has_value();
  if (!fits || !core_->queue_budget().take(static_cast<int64_t>(r.prompt.size()), 0)) {
    ++refused_;
    return;
  }
  live_.resize(std::max<size_t>(live_.size(), r.request + 1));
  live_[r.request] = std::make_unique<Live>();
  ++num_live_;
  Live& live = *live_[r.request];
  live.is_beam = r.sampling->beam_width > 0;
  live.num_sequences = live.is_beam ? r.sampling->n : r.sampling->num_sequences();
  live.arrival_us = r.arrival_us;
  live.checked = is_predictable(*r.sampling) && core_->scheduler().limits().max_sequences <= 4096;
  if (live.checked) {
    live.prompt = r.prompt;
    live.tokens.reserve(static_cast<size_t>(r.sampling->max_tokens));
  }
  ids_.push_back(r.request);
  core_->submit(std::move(r));
}

void Episode::arrive() {
  while (std::optional<CoreRequest> r = workload_->next(clock_.now_us(), core_->num_unfinished())) {
    r->request = next_id_++;
    if (recording_)
      events_.push_back(
          {tick_, SimEventKind::kSubmit, r->request, 0, std::make_shared<const CoreRequest>(*r)});
    submit(std::move(*r));
  }
}

void Episode::happen(SimEvent event) {
  event.tick = tick_;
  apply(event);
  if (recording_) events_.push_back(std::move(event));
}

void Episode::apply(const SimEvent& e) {
  switch (e.kind) {
    case SimEventKind::kSubmit: {
      CoreRequest request = *e.submit;
      request.request = e.request;
      return submit(std::move(request));
    }
    case SimEventKind::kCancel:
      count(static_cast<SimFault>(stage_of(e.request)));
      return core_->abort(e.request);
    case SimEventKind::kPause:
    case SimEventKind::kResume:
      if (Live* live = find(e.request)) live->paused = e.kind == SimEventKind::kPause;
      if (e.kind == SimEventKind::kPause) count(SimFault::kSlowReader);
      return core_->set_paused(e.request, e.kind == SimEventKind::kPause);
    case SimEventKind::kStop:
      count(SimFault::kStop);
      return core_->stop(e.request, static_cast<int32_t>(e.value));
    case SimEventKind::kExecutorError:
      executor_error_ = true;
      return;
    case SimEventKind::kCopyError:
      copy_fault_.fails = true;
      return;
    case SimEventKind::kCopyDelay:
      copy_fault_.delay_us = e.value;
      return;
    case SimEventKind::kTransferError:
      transfer_fault_.fails = true;
      return;
    case SimEventKind::kTransferDelay:
      transfer_fault_.delay_us = e.value;
      return;
    case SimEventKind::kDiskCorrupt:
      disk_corrupt_ = true;
      return;
    case SimEventKind::kDiskHang:
      disk_hang_us_ = e.value;
      return;
    case SimEventKind::kSequenceError:
      return fail_a_sequence(e.value, e.request);
    case SimEventKind::kNoRoom:
      no_room_ = true;
      return;
    case SimEventKind::kClock:
      clock_.advance_us(e.value);
      return;
  }
}

void Episode::play_script() {
  const std::vector<SimEvent>& events = script_->events;
  for (; next_event_ < events.size() && events[next_event_].tick <= tick_; ++next_event_)
    apply(events[next_event_]);
}

bool Episode::advance_to_next_event() {
  int64_t at = core_->next_deadline_us();
  if (const auto arrival = workload_->next_arrival_us()) at = std::min(at, *arrival);
  if (at == kNoDeadline) return false;
  happen({.kind = SimEventKind::kClock, .value = std::max<int64_t>(0, at - clock_.now_us())});
  return true;
}

bool Episode::step() {
  if (script_ != nullptr) {
    play_script();
  } else {
    arrive();
    if (rates_ != kNoFaults) inject();
  }
  const bool armed = sequences_to_error_ >= 0;
  const int64_t no_room = faults_[static_cast<size_t>(SimFault::kNoRoom)];
  const bool worked = core_->step() || core_->wait_for_copy();
  if (armed && sequences_to_error_ < 0) executor_.set_sequence_fault({});
  ++tick_;
  found_no_room_ = no_room != faults_[static_cast<size_t>(SimFault::kNoRoom)];
  ticks_still_ = worked || found_no_room_ ? 0 : ticks_still_ + 1;
  if (ticks_still_ > 1)
    if (std::optional<std::string> broken = check_standing(*core_)) violate(std::move(*broken));
  samples_.running_sum += worked ? core_->scheduler().num_running() : 0;
  take_outcome();
  if ((core_->scheduler().counters().steps & 63) == 0) sample_state();
  if (script_ != nullptr) return tick_ < script_->num_ticks;
  return worked || advance_to_next_event() || !workload_->exhausted();
}

// What was injected says so. Room may be short only where an allocation was made to fail in this step, or a copy that hangs
// holds some; and a beam search may find fewer continuations than were asked for.
void Episode::expect_a_reason_to_fail(const SequenceEnd& end) {
  if (!end.error)
    return violate(fmt::format("invariant 13: request {} failed without an error", end.request));
  const Error& error = *end.error;
  if (error.message.starts_with("injected fault")) return;
  const bool short_of_room = found_no_room_ || core_->scheduler().transfers().num_hanging() > 0;
  if (error.code == Code::kResourceExhausted && short_of_room) return;
  const Live* live = find(end.request);
  if (error.code == Code::kOutOfRange && live != nullptr && live->is_beam) return;
  violate(fmt::format("invariant 13: request {} failed without a fault: {}", end.request, error.message));
}

void Episode::sample_state() {
  samples_.fairness_max_gap = std::max(samples_.fairness_max_gap, core_->scheduler().widest_fairness_gap());
  if (core_->cache().num_held() == 0) return;
  samples_.waste_sum += core_->cache().waste_percent();
  ++samples_.waste_count;
}

void Episode::drain() {
  steps_loaded_ = num_steps();
  rates_ = kNoFaults;
  executor_error_ = no_room_ = found_no_room_ = disk_corrupt_ = false;
  copy_fault_ = {};
  transfer_fault_ = {};
  disk_hang_us_ = 0;
  sequences_to_error_ = -1;
  executor_.set_sequence_fault({});
  for (RequestId id = 1; id < live_.size(); ++id)
    if (live_[id] != nullptr) core_->set_paused(id, false);
  for (int32_t i = 0; i < kMaxStepsIdle && (core_->step() || core_->wait_for_copy()); ++i) take_outcome();
  take_outcome();
  if (!core_->idle()) violate(fmt::format("stuck: {} requests cannot end", core_->num_unfinished()));
  if (num_live_ > 0) violate(fmt::format("invariant 9: {} requests have no end", num_live_));
  leaked_ = core_->cache().num_held() + core_->cache().swap_pool().num_held();
  for (const KvCache* tier = core_->cache().below(); tier != nullptr; tier = tier->below())
    leaked_ += tier->num_held();
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
    if (end.finish == FinishReason::kFailed) expect_a_reason_to_fail(end);
    Live* live = find(end.request);
    if (live == nullptr || ++live->num_ends > live->num_sequences)
      violate(fmt::format("invariant 9: request {} has one end too many", end.request));
  }
  for (const RequestEnd& end : out.request_ends) end_request(end);
  for (const std::string& v : executor_.violations())
    if (violations_.empty()) violate("executor: " + v);
}

void Episode::take_latency(const Live& live) {
  const float ttft_ms = static_cast<float>(live.first_us - live.arrival_us) * 1e-3f;
  samples_.ttft_ms.push_back(ttft_ms);
  ++samples_.finished;
  const int32_t each = live.num_tokens / std::max(1, live.num_sequences);
  float tpot_ms = 0;
  if (each > 1) {
    tpot_ms = static_cast<float>(live.last_us - live.first_us) * 1e-3f / static_cast<float>(each - 1);
    samples_.tpot_ms.push_back(tpot_ms);
  }
  if (ttft_ms <= slo_ttft_ms_ && tpot_ms <= slo_tpot_ms_) ++samples_.within_slo;
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
  if (end.finish == FinishReason::kDeadline) count(SimFault::kDeadline);
  const bool natural = end.finish == FinishReason::kLength || end.finish == FinishReason::kStop;
  const double cost =
      WaitingQueue::kPromptWeight * end.prompt_tokens + WaitingQueue::kOutputWeight * live.num_tokens;
  samples_.dearest_request = std::max(samples_.dearest_request, cost);
  if (natural && live.first_us >= 0) take_latency(live);
  live_[end.request].reset();
  --num_live_;
}

void Episode::add_to(SimReport& report, Samples& samples) const {
  EngineStats stats;
  core_->fill_stats(stats);
  report.steps += stats.steps_total;
  if (steps_loaded_) report.drain_steps += stats.steps_total - *steps_loaded_;
  for (size_t i = 0; i < kNumSimFaults; ++i) {
    report.faults_by_kind[i] += faults_[i];
    report.faults += faults_[i];
  }
  report.simulated_s += static_cast<double>(clock_.now_us()) * 1e-6;
  report.submitted += submitted_;
  report.refused += refused_ + stats.requests_refused_total;  // at the door; for deadlines
  report.finished += stats.requests_finished_total;
  report.cancelled += stats.requests_cancelled_total;
  report.failed += stats.requests_failed_total;
  report.preemptions += stats.preemptions_total;
  report.tail_drops += stats.tail_drops_total;
  report.tier_fronts_computed += core_->scheduler().transfers().counters().met;
  report.tier_waits_given_up += stats.tier_waits_given_up_total;
  report.heads_shortened += stats.heads_shortened_total;
  report.swap_outs += stats.swap_outs_total;
  report.swap_ins += stats.swap_ins_total;
  report.host_hit_tokens += stats.host.hit_tokens_total;
  report.disk_hit_tokens += stats.disk.hit_tokens_total;
  report.disk_corrupt_blocks += stats.disk_corrupt_blocks_total;
  report.copies_on_write += stats.copies_on_write_total;
  report.evictions += stats.evictions_total;
  report.blocks_leaked += leaked_;
  report.violations.insert(report.violations.end(), violations_.begin(), violations_.end());
  samples.ttft_ms.insert(samples.ttft_ms.end(), samples_.ttft_ms.begin(), samples_.ttft_ms.end());
  samples.tpot_ms.insert(samples.tpot_ms.end(), samples_.tpot_ms.begin(), samples_.tpot_ms.end());
  samples.waste_sum += samples_.waste_sum;
  samples.waste_count += samples_.waste_count;
  samples.running_sum += samples_.running_sum;
  samples.finished += samples_.finished;
  samples.within_slo += samples_.within_slo;
  samples.fairness_max_gap = std::max(samples.fairness_max_gap, samples_.fairness_max_gap);
  samples.dearest_request = std::max(samples.dearest_request, samples_.dearest_request);
  samples.output_tokens += samples_.output_tokens;
  samples.prompt_tokens += samples_.prompt_tokens;
  samples.cached_tokens += samples_.cached_tokens;
}

}  // namespace quire
