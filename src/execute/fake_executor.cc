#include "src/execute/fake_executor.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "src/base/check.h"

namespace quire {
namespace {

// Tokens that both begin with. By runs first: what shares much differs at its end.
size_t num_common(std::span<const TokenId> a, std::span<const TokenId> b) {
  constexpr size_t kRun = 16;
  const size_t most = std::min(a.size(), b.size());
  size_t i = 0;
  while (i + kRun <= most && std::memcmp(&a[i], &b[i], kRun * sizeof(TokenId)) == 0) i += kRun;
  while (i < most && a[i] == b[i]) ++i;
  return i;
}

}  // namespace

FakeExecutor::FakeExecutor(const FakeModel& model, ManualClock* clock, const Roofline& roofline)
    : model_(model), size_(model.block_tokens), clock_(clock), roofline_(roofline) {
  for (size_t kind = 0; kind < overwrites_.size(); ++kind)
    overwrites_[kind] = traits({.kind = static_cast<RetentionKind>(kind)}).overwrites_slots;
  if (!model.check_content) return;
  slots_.resize(static_cast<size_t>(model.num_blocks) * model.block_tokens);
  version_.resize(model.num_blocks);
}

void FakeExecutor::submit(std::shared_ptr<const BatchPlan> plan) {
  int64_t done = 0;
  const CopyFault copies = copy_fault_ && !plan->copies.empty() ? copy_fault_() : CopyFault{};
  if (clock_ != nullptr) {
    int64_t tokens = 0, context = 0;
    for (const PlannedSequence& s : plan->sequences) {
      tokens += static_cast<int64_t>(s.tokens.size());
      context += s.first_position;
    }
    const double us = roofline_.step_us(tokens, context + tokens);
    done = busy_until_us_ =
        std::max(busy_until_us_, clock_->now_us()) + static_cast<int64_t>(us) + copies.delay_us;
  }
  submitted_.push_back({std::move(plan), done, copies.fails});
  check(submitted_.size() <= 2, "at most two steps are under way");
}

StepResult FakeExecutor::wait() {
  check(!submitted_.empty(), "wait follows submit");
  const Submitted next = std::move(submitted_.front());
  submitted_.pop_front();
  if (clock_ != nullptr && clock_->now_us() < next.done_us)
    clock_->advance_us(next.done_us - clock_->now_us());
  if (clock_ != nullptr) return run(*next.plan, next.copies_fail);
  const auto start = std::chrono::steady_clock::now();
  StepResult result = run(*next.plan, next.copies_fail);
  run_us_ += std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
  return result;
}

StepResult FakeExecutor::run(const BatchPlan& plan, bool copies_fail) {
  StepResult result;
  result.step = plan.step;
  for (const SequenceId id : plan.leaves) known_.erase(value(id));
  for (const PolicyFork& f : plan.forks) known_[value(f.target)].list = known_[value(f.source)].list;
  for (const PlannedJoin& j : plan.joins) join(j);
  result.status = carry_out_copies(plan, copies_fail);
  if (result.status && fault_) result.status = fault_(plan);
  if (!result.status) {
    fail(plan);
    return result;
  }
  for (const PlannedSequence& s : plan.sequences)  // as copies do: before any write of the step
    if (model_.check_content && !s.cut_source.empty() && !known_[value(s.sequence)].poisoned)
      cut(s, known_[value(s.sequence)]);
  met_.clear();
  size_t num_samples = 0;
  for (const PlannedSequence& s : plan.sequences) {
    Known& known = known_[value(s.sequence)];
    known.keeps_all = keeps_all(s);
    if (known.last_step == 0 && !known.keeps_all) known.forget_seen();  // its list's slots are not positions
    known.last_step = plan.step;
    if (model_.check_content && !known.poisoned && !write_decode(plan, s, known)) {
      if (check_shape(s, known))
        write(plan, s, known);
      else
        known.poisoned = true;  // a look into its list could read beyond
    }
    met_.push_back(&known);
    num_samples += s.samples.size();
  }
  result.samples = std::exchange(spare_samples_, {});
  result.samples.resize(num_samples);
  SampledToken* samples = result.samples.data();
  for (size_t i = 0; i < met_.size(); ++i) {
    const PlannedSequence& s = plan.sequences[i];
    if (model_.check_content && !met_[i]->poisoned) verify(s, *met_[i]);
    prompt_logprobs(s, result);
    sample(plan, s, *met_[i], samples);
    samples += s.samples.size();
    if (sequence_fault_) fail_alone(s, result);
  }
  if (plan.step % 4096 == 0) forget_stale(plan.step);
  return result;
}

Status FakeExecutor::carry_out_copies(const BatchPlan& plan, bool fail) {
  const size_t count = fail ? plan.copies.size() / 2 : plan.copies.size();
  for (size_t i = 0; i < count && model_.check_content; ++i) copy(plan.copies[i]);
  return fail ? Status(error(Code::kInternal, "injected fault of a copy")) : ok();
}

// A sequence that ended before it was ever sampled for leaves no word; it is known by its silence. One that has a list does.
void FakeExecutor::forget_stale(uint64_t step) {
  known_.erase_if([&](const Known& known) {
    return !known.joined && known.list.empty() && known.last_step + 1024 < step;
  });
}

// Nothing of a failed step was computed: what was to follow it means nothing.
void FakeExecutor::fail(const BatchPlan& plan) {
  for (const PlannedSequence& s : plan.sequences) {
    known_[value(s.sequence)].poisoned = true;
    for (const PlannedSample& sample : s.samples) known_[value(sample.sequence)].poisoned = true;
  }
}

void FakeExecutor::fail_alone(const PlannedSequence& s, StepResult& result) {
  const Status status = sequence_fault_(s);
  if (status) return;
  result.failures.push_back({s.sequence, status.error()});
  known_[value(s.sequence)].poisoned = true;
  for (const PlannedSample& sample : s.samples) known_[value(sample.sequence)].poisoned = true;
}

// Of those that joined of late, the one that starts most like a history, and how far: a beam's parent, a sample's
// sibling. Not one that took its chain from slots: that would be believed, and not compared with them.
FakeExecutor::Likeness FakeExecutor::like(const std::vector<TokenId>& history) const {
  Likeness best;
  for (const Known* known : lately_joined_) {
    if (known == nullptr || known->poisoned || known->adopted) continue;
    const std::vector<TokenId>& tokens = known->tokens;
    const size_t most = std::min(tokens.size(), history.size());
    if (most <= best.num_tokens || tokens[best.num_tokens] != history[best.num_tokens]) continue;
    const size_t common = num_common(tokens, history);
    if (common > best.num_tokens) best = {known, common};
  }
  return best;
}

// What was computed for the same tokens, and the whole blocks that were found to hold them.
void FakeExecutor::take_after(const Likeness& other, Known& known) {
  const auto end = static_cast<std::ptrdiff_t>(other.num_tokens);
  known.tokens.assign(other.known->tokens.begin(), other.known->tokens.begin() + end);
  known.chain.assign(other.known->chain.begin(), other.known->chain.begin() + end);
  if (!other.known->keeps_all) return;
  const size_t shared = static_cast<size_t>(size_.block_of(static_cast<int32_t>(other.num_tokens)));
  const size_t blocks = std::min(shared, other.known->num_whole_seen(size_.tokens()));
  const auto seen = static_cast<std::ptrdiff_t>(blocks);
  known.seen.assign(other.known->seen.begin(), other.known->seen.begin() + seen);
  known.seen_version.assign(other.known->seen_version.begin(), other.known->seen_version.begin() + seen);
  known.num_seen_in_last = blocks > 0 ? size_.tokens() : 0;
}

void FakeExecutor::join(const PlannedJoin& j) {
  Known& known = known_[value(j.sequence)];
  if (std::find(known.tokens.begin(), known.tokens.end(), -1) !=
      known.tokens.end()) {  // a window had dropped them: here is what they were
    known.tokens.clear();
    known.chain.clear();
  }
  if (known.joined) violation([&] { return fmt::format("sequence {} joins twice", value(j.sequence)); });
  const size_t common = std::min(known.tokens.size(), j.history.size());
  if (!std::equal(known.tokens.begin(), known.tokens.begin() + static_cast<std::ptrdiff_t>(common),
                  j.history.begin()))
    violation([&] {
      return fmt::format("sequence {} joins with another history than its slots hold", value(j.sequence));
    });
  known.tokens.resize(common);
  known.chain.resize(common);
  if (model_.check_content) {
    const Likeness other = known.last_step == 0 && common == 0 ? like(j.history) : Likeness{};
    if (other.num_tokens > 0) take_after(other, known);
    known.append(std::span(j.history).subspan(known.tokens.size()));
  }
  known.joined = true;
  known.sampling = j.sampling;
  known.is_greedy = j.sampling->temperature == 0;
  known.is_plain = j.sampling->allowed_token_ids.empty() && j.sampling->min_tokens == 0;
  known.seed = j.seed;
  known.num_prompt = j.num_prompt_tokens;
  known.eos = j.eos_token_ids;
  lately_joined_[next_joined_++ % lately_joined_.size()] = &known;
}

}  // namespace quire
