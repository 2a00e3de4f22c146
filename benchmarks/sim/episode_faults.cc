#include <algorithm>
#include <cmath>
#include <iterator>

#include "benchmarks/sim/episode.h"

namespace quire {
namespace {

constexpr double kBursts = 1.0 / 300;                       // begun, per step
constexpr double kOftenInBurst = 25, kLeastInBurst = 0.05;  // times as often as else, and per step
constexpr int64_t kMostBurstSteps = 12;

// Each kind of fault with what makes it more frequent: 30 times at most, and no more than every fifth step.
constexpr double kMostOften = 30, kMostPerStep = 0.2;
constexpr double FaultRates::* kKinds[] = {
    &FaultRates::cancel,         &FaultRates::pause,        &FaultRates::stop,
    &FaultRates::executor_error, &FaultRates::copy_error,   &FaultRates::copy_delay,
    &FaultRates::no_room,        &FaultRates::clock_jump,   &FaultRates::transfer_error,
    &FaultRates::transfer_delay, &FaultRates::disk_corrupt, &FaultRates::disk_hang,
    &FaultRates::sequence_error};
static_assert(std::size(kKinds) * sizeof(double) == sizeof(FaultRates), "every kind is drawn");

}  // namespace

FaultRates draw_faults(uint64_t seed) {
  Random random(seed);
  FaultRates rates = kAllFaults;
  if (random.chance(1.0 / 3)) return rates;
  for (double FaultRates::* kind : kKinds) {
    double& rate = rates.*kind;
    if (random.chance(0.5))
      rate = 0;
    else if (random.chance(0.4))
      rate = std::min(kMostPerStep, rate * std::pow(kMostOften, random.uniform()));
  }
  return rates;
}

// Asked for every sequence of every step while it is armed, so it is taken out once that has come.
void Episode::fail_a_sequence(int64_t after, RequestId of) {
  sequences_to_error_ = after;
  request_to_error_ = of;
  executor_.set_sequence_fault([this](const PlannedSequence& s) {
    if (sequences_to_error_ < 0) return ok();
    if (request_to_error_ != 0) {
      const SequenceGroup* group = core_->scheduler().find(request_to_error_);
      const auto is_it = [&s](const auto& sequence) { return sequence->id == s.sequence; };
      if (group == nullptr || std::ranges::none_of(group->sequences, is_it)) return ok();
    }
    if (sequences_to_error_-- > 0) return ok();
    count(SimFault::kSequenceError);
    return Status(error(Code::kInternal, "injected fault of one sequence"));
  });
}

RequestId Episode::any_live() {
  if (burst_steps_left_ > 0 && find(aim_) != nullptr && random_.chance(0.5)) return aim_;
  while (!ids_.empty()) {
    const size_t i = random_.below(ids_.size());
    if (find(ids_[i]) != nullptr) return ids_[i];
    ids_[i] = ids_.back();
    ids_.pop_back();
  }
  return 0;
}

RequestStage Episode::stage_of(RequestId id) const {
  const SequenceGroup* group = core_->scheduler().find(id);
  if (group == nullptr || group->state == GroupState::kEnded) return RequestStage::kEnded;
  if (group->paused) return RequestStage::kPaused;
  if (group->state == GroupState::kWaiting)
    return group->parked_on != nullptr ? RequestStage::kParked : RequestStage::kWaiting;
  for (const auto& s : group->sequences)
    if (s->copying || s->tail_comes) return RequestStage::kCopying;
  for (const auto& s : group->sequences)
    if (s->state == SequenceState::kPreempted) return RequestStage::kPreempted;
  const Sequence& first = *group->sequences.front();
  return first.num_computed < first.num_prompt_tokens ? RequestStage::kPrefill : RequestStage::kDecode;
}

// Most live requests decode: one at another stage is looked for from a random place on.
RequestId Episode::any_at(RequestStage stage) {
  if (stage == RequestStage::kEnded) return random_.below(next_id_);
  const RequestId any = any_live();
  const size_t start = ids_.empty() ? 0 : random_.below(ids_.size());
  for (size_t i = 0; i < ids_.size(); ++i) {
    const RequestId id = ids_[(start + i) % ids_.size()];
    if (find(id) != nullptr && stage_of(id) == stage) return id;
  }
  return any;
}

void Episode::inject_on_live() {
  if (comes(rates_.cancel))
    if (const RequestId id = any_at(static_cast<RequestStage>(random_.below(kNumRequestStages))))
      happen({.kind = SimEventKind::kCancel, .request = id});
  if (comes(rates_.pause))
    if (const RequestId id = any_live())
      happen({.kind = find(id)->paused ? SimEventKind::kResume : SimEventKind::kPause, .request = id});
  if (comes(rates_.stop))
    if (const RequestId id = any_live())
      happen({.kind = SimEventKind::kStop, .request = id, .value = static_cast<int64_t>(random_.below(2))});
}

// At one that begins, more often than not, and at one of several sequences if there is: it forks, shares and waits for others.
void Episode::aim() {
  one_came_ = false;
  if (burst_steps_left_ > 0) {
    --burst_steps_left_;
    return;
  }
  if (!random_.chance(kBursts)) return;
  const auto any = static_cast<RequestStage>(random_.below(kNumRequestStages));
  const RequestStage stage = random_.chance(0.6) ? RequestStage::kPrefill : any;
  const auto is_group = [this](RequestId id) { return find(id) != nullptr && find(id)->num_sequences > 1; };
  for (int look = 0; look < 4 && (look == 0 || !is_group(aim_)); ++look) aim_ = any_at(stage);
  burst_steps_left_ = static_cast<int32_t>(random_.between(2, kMostBurstSteps));
}

// In a burst two kinds like to come in one step.
bool Episode::comes(double rate) {
  if (burst_steps_left_ == 0 || rate == 0) return random_.chance(rate);
  const double often =
      one_came_ ? kMostPerStep : std::clamp(kOftenInBurst * rate, kLeastInBurst, kMostPerStep);
  const bool came = random_.chance(often);
  one_came_ |= came;
  return came;
}

void Episode::inject() {
  aim();
  inject_on_live();
  if (comes(rates_.executor_error)) happen({.kind = SimEventKind::kExecutorError});
  if (comes(rates_.copy_error)) happen({.kind = SimEventKind::kCopyError});
  if (comes(rates_.copy_delay))
    happen({.kind = SimEventKind::kCopyDelay, .value = random_.between(1, 50'000)});
  if (comes(rates_.transfer_error)) happen({.kind = SimEventKind::kTransferError});
  if (comes(rates_.transfer_delay))
    happen({.kind = SimEventKind::kTransferDelay, .value = random_.between(1, 500'000)});
  if (comes(rates_.disk_corrupt)) happen({.kind = SimEventKind::kDiskCorrupt});
  if (comes(rates_.disk_hang))
    happen({.kind = SimEventKind::kDiskHang, .value = random_.between(200'000, 20'000'000)});
  if (comes(rates_.no_room)) happen({.kind = SimEventKind::kNoRoom});
  if (comes(rates_.clock_jump)) {
    count(SimFault::kClockJump);
    happen({.kind = SimEventKind::kClock, .value = random_.between(1, 2'000'000)});
  }
  if (comes(rates_.sequence_error)) {
    const RequestId id = burst_steps_left_ > 0 ? any_live() : 0;
    happen(
        {.kind = SimEventKind::kSequenceError, .request = id, .value = random_.between(0, id > 0 ? 1 : 63)});
  }
}

}  // namespace quire
