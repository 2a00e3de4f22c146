// A step's results come in: computed positions, published blocks, tokens, ends.
#include <algorithm>
#include <cmath>
#include <limits>

#include "src/base/check.h"
#include "src/schedule/no_token.h"
#include "src/schedule/scheduler.h"

namespace quire {

void Scheduler::commit(StepView result, int64_t now_us, Outcome& out) {
  check(!in_flight_.empty() && in_flight_.front().plan->step == result.step,
        "steps are committed in the order submitted");
  SubmittedStep step = std::move(in_flight_.front());
  in_flight_.erase(in_flight_.begin());
  give_back(step.deferred);
  if (result.status) {
    for (const PlannedWork& work : step.work)
      if (result.failure_of(work.sequence->id) == nullptr)
        commit_work(work, now_us);
      else
        distrust_copy(work);
    let_go(step, now_us);
    fail_sequences(step, result, now_us, out);
    commit_dumps(step, result);
    commit_prompts(step, result, now_us, out);
    commit_samples(step, result, now_us, out);
  } else {
    for (const PlannedWork& work : step.work) distrust_copy(work);
    let_go(step, now_us);
    fail_step(step, result.status.error(), now_us, out);
  }
  ++counters_.steps;
  reserve_ratio_ = std::max(limits_.reserve.least, reserve_ratio_ - limits_.reserve.decay);
  sweep();
  recycle(std::move(step));
}

// What follows a failed step was computed on top of nothing: positions count only where all before them do.
void Scheduler::commit_work(const PlannedWork& work, int64_t now_us) {
  Sequence& s = *work.sequence;
  if (s.num_computed != work.first) return;
  s.num_computed += work.count;
  if (work.forks)  // what the samples share was under way when they were forked
    for (const auto& other : s.group->sequences) other->num_computed = s.num_computed;
  if (s.finished()) return;
  publish_computed(s, now_us);
  if (work.first >= s.num_prompt_tokens || s.num_computed < s.num_prompt_tokens) return;
  measure(*s.group);
  // The list that it ends with is no prefix, or no more of it is published.
  if (s.group->traits.cuts_after_prompt || s.group->is_beam) write_behind(s, now_us);
}

void Scheduler::publish_computed(Sequence& s, int64_t now_us) {
  // A beam's branches die young; only its prompt is worth keeping.
  const int32_t known = s.group->is_beam ? s.num_prompt_tokens : s.num_tokens();
  publish(s, size_.whole_blocks(std::min(s.num_computed, known)), now_us);
  unpark_waiters(s, false);
}

// Whether a failed step's copies were made nobody knows: a block that was to be one holds nothing to publish.
// Samples that a later step has forked meanwhile hold it too; the whole request ends with this step, also where the sample that
// was to copy has had its last token since.
void Scheduler::distrust_copy(const PlannedWork& work) {
  if (!work.copied) return;
  const int32_t before = work.first / block_tokens_ * block_tokens_;
  for (const auto& s : work.sequence->group->sequences) s->num_computed = std::min(s->num_computed, before);
}

void Scheduler::let_go(SubmittedStep& step, int64_t now_us) {
  for (Sequence* s : step.named)
    if (--s->num_in_flight == 0 && s->finished()) retire(*s, now_us);
}

void Scheduler::fail_step(SubmittedStep& step, const Error& error, int64_t now_us, Outcome& out) {
  for (Sequence* s : step.sampled)
    if (!s->group->is_beam) --s->num_pending;
  for (Sequence* s : step.named) fail_request_of(*s, error, now_us, out);
}

const Error* StepView::failure_of(SequenceId sequence) const {
  for (const Failure& failure : failures)
    if (failure.sequence == sequence) return &failure.error;
  return nullptr;
}

void Scheduler::fail_sequences(SubmittedStep& step, const StepView& result, int64_t now_us, Outcome& out) {
  if (result.failures.empty()) return;
  for (Sequence* s : step.named)
    if (const Error* error = result.failure_of(s->id)) fail_request_of(*s, *error, now_us, out);
}

// Whether or not this one has ended: what its samples share may be what failed.
void Scheduler::fail_request_of(const Sequence& s, const Error& error, int64_t now_us, Outcome& out) {
  if (s.group->state != GroupState::kEnded) end_group(*s.group, FinishReason::kFailed, error, now_us, out);
}

void Scheduler::commit_prompts(SubmittedStep& step, StepView& result, int64_t now_us, Outcome& out) {
  for (StepView::Prompt& prompt : result.prompts) {
    const auto work = std::find_if(step.work.begin(), step.work.end(),
                                   [&](const PlannedWork& w) { return w.sequence->id == prompt.sequence; });
    check(work != step.work.end(), "prompt logprobs belong to a sequence of the step");
    SequenceGroup& group = *work->sequence->group;
    if (group.state == GroupState::kEnded) continue;
    group.prompt_logprobs.resize(group.num_prompt_tokens());
    for (size_t i = 0; i < prompt.tokens.size() && group.state != GroupState::kEnded; ++i) {
      const size_t position = static_cast<size_t>(prompt.first_position) + i;
      if (std::isnan(prompt.tokens[i].logprob))
        fail_without_logits(group, no_prompt_logprob_error(static_cast<int32_t>(position)), now_us, out);
      else if (position < group.prompt_logprobs.size())
        group.prompt_logprobs[position] = std::move(prompt.tokens[i]);
    }
  }
  for (const PlannedWork& work : step.work) {
    const int32_t prompt = work.sequence->num_prompt_tokens;
    if (work.first >= prompt || work.first + work.count < prompt) continue;
    SequenceGroup& group = *work.sequence->group;
    if (group.state == GroupState::kEnded) continue;
    if (group.wants_prompt_logprobs()) {
      group.prompt_logprobs.resize(group.num_prompt_tokens());  // one token has none of its own
      group.prompt_logprobs.front() = {
          work.sequence->tokens.front(), std::numeric_limits<float>::quiet_NaN(), {}};
      out.prompts.push_back({group.request, std::move(group.prompt_logprobs)});
      group.prompt_reported = true;
    }
    if (group.sampling->max_tokens == 0) end_group(group, FinishReason::kLength, {}, now_us, out);
  }
}

void Scheduler::commit_samples(SubmittedStep& step, StepView& result, int64_t now_us, Outcome& out) {
  check(result.samples.size() == step.sampled.size(),
        "an executor gives one sample for each that was planned");
  for (size_t i = 0; i < step.sampled.size();) {
    Sequence& s = *step.sampled[i];
    check(result.samples[i].sequence == s.id, "samples come in the plan's order");
    size_t end = i + 1;
    if (s.group->is_beam) {
      while (end < step.sampled.size() && step.sampled[end]->group == s.group) ++end;
      const bool live = s.group->state != GroupState::kEnded;
      if (live) commit_beams({&step.sampled[i], end - i}, result.samples.subspan(i, end - i), now_us, out);
    } else {
      --s.num_pending;
      if (!s.finished()) commit_token(s, result.samples[i], now_us, out);
    }
    i = end;
  }
}

// Its token cannot be chosen. The others of the batch go on.
void Scheduler::fail_without_token(SequenceGroup& group, TokenId why, int32_t num_output_tokens,
                                   int64_t now_us, Outcome& out) {
  const Error error = no_token_error(why, *group.sampling, num_output_tokens);
  if (why == kNoLogit) return fail_without_logits(group, error, now_us, out);
  end_group(group, FinishReason::kFailed, error, now_us, out);
}

void Scheduler::fail_without_logits(SequenceGroup& group, const Error& error, int64_t now_us, Outcome& out) {
  ++counters_.failed_without_logits;
  end_group(group, FinishReason::kFailed, error, now_us, out);
}

void Scheduler::commit_token(Sequence& s, SampledToken& sample, int64_t now_us, Outcome& out) {
  SequenceGroup& group = *s.group;
  if (sample.token == kNoLogit || sample.token == kRulesLeaveNone)
    return fail_without_token(group, sample.token, s.num_output_tokens(), now_us, out);
  check(sample.token >= 0, "an executor samples a token for every row that is no beam's");
  s.tokens.push_back(sample.token);
  s.sum_logprob += static_cast<double>(sample.logprob);
  ++group.num_output_tokens;
  ++counters_.output_tokens;
  WaitingQueue::charge_output(group, 1);
  if (group.times.first_token_us < 0) group.times.first_token_us = now_us;
  TokenOutput& token = out.tokens.emplace_back();
  token.request = group.request;
  token.index = s.index;
  token.token = sample.token;
  token.logprob = sample.logprob;
  token.top = std::move(sample.top);
  const bool more_are_forced =
      s.num_output_tokens() < static_cast<int32_t>(group.sampling->forced_token_ids.size());
  if (!more_are_forced && std::binary_search(group.end_ids.begin(), group.end_ids.end(), sample.token))
    finish(s, FinishReason::kStop, now_us, out, sample.token);
  else if (s.num_tokens() >= group.max_total_tokens)
    finish(s, FinishReason::kLength, now_us, out);
}

}  // namespace quire
