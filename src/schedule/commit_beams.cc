// Beam search meets the cache: chosen continuations become beams by forking their parents, parents nobody
// chose are dropped.
#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "src/base/check.h"
#include "src/schedule/beam_search.h"
#include "src/schedule/scheduler.h"

namespace quire {
namespace {

std::span<const std::pair<TokenId, float>> likeliest(const SampledToken& row, int32_t num_top) {
  return std::span(row.top).first(std::min(row.top.size(), static_cast<size_t>(std::max(num_top, 0))));
}

// A beam's tokens come and go with it, and most beams die: their logprobs are put together when one is kept.
std::vector<TokenLogprob> logprobs_of(const Sequence& beam) {
  std::vector<TokenLogprob> all(beam.beam_logprobs.size());
  for (size_t i = 0; i < all.size(); ++i) {
    all[i].token_id = beam.tokens[static_cast<size_t>(beam.num_prompt_tokens) + i];
    all[i].logprob = beam.beam_logprobs[i];
    if (!beam.beam_tops.empty()) all[i].top = beam.beam_tops[i];
  }
  return all;
}

BeamHypothesis hypothesis_of(const Sequence& beam, const SampledToken& row, const BeamEnd& end,
                             int32_t num_top) {
  BeamHypothesis h;
  const auto& [token, logprob] = row.top[static_cast<size_t>(end.pick.candidate)];
  const auto top = likeliest(row, num_top);
  h.tokens.assign(beam.tokens.begin() + beam.num_prompt_tokens, beam.tokens.end());
  h.tokens.push_back(token);
  h.logprobs = logprobs_of(beam);
  h.logprobs.push_back({token, logprob, {top.begin(), top.end()}});
  h.kv_dump = beam.kv_dump;
  h.finish = end.by_id ? FinishReason::kStop : FinishReason::kLength;
  h.score = end.score;
  return h;
}

void append(Sequence& beam, const SampledToken& row, const BeamPick& pick, int32_t num_top) {
  const auto& [token, logprob] = row.top[static_cast<size_t>(pick.candidate)];
  const auto top = likeliest(row, num_top);
  beam.tokens.push_back(token);
  beam.beam_logprobs.push_back(logprob);
  if (num_top > 0) beam.beam_tops.emplace_back(top.begin(), top.end());
  beam.sum_logprob = pick.sum_logprob;
}

// For another beam, as new but for the memory of its vectors.
std::unique_ptr<Sequence> emptied(std::unique_ptr<Sequence> beam) {
  Sequence fresh;
  fresh.tokens = std::move(beam->tokens);
  fresh.beam_logprobs = std::move(beam->beam_logprobs);
  fresh.tokens.clear();
  fresh.beam_logprobs.clear();
  *beam = std::move(fresh);
  return beam;
}

// The first part of the policy memory that none has.
int32_t take_place(std::vector<bool>& taken) {
  const auto free = std::ranges::find(taken, false);
  check(free != taken.end(), "a beam search has no more beams than it is wide");
  *free = true;
  return static_cast<int32_t>(free - taken.begin());
}

void keep_hypothesis(std::vector<BeamHypothesis>& kept, BeamHypothesis hypothesis, int32_t width) {
  const auto better = [](const BeamHypothesis& a, const BeamHypothesis& b) { return a.score > b.score; };
  kept.insert(std::upper_bound(kept.begin(), kept.end(), hypothesis, better), std::move(hypothesis));
  if (static_cast<int32_t>(kept.size()) > width) kept.pop_back();
}

}  // namespace

void Scheduler::commit_beams(std::span<Sequence* const> beams, std::span<SampledToken> rows, int64_t now_us,
                             Outcome& out) {
  SequenceGroup& group = *beams.front()->group;
  const SamplingParams& sampling = *group.sampling;
  for (const SampledToken& row : rows)
    if (row.token == kNoLogit)
      return fail_without_token(group, kNoLogit, beams.front()->num_output_tokens(), now_us, out);
  std::vector<BeamRow> beam_rows;
  beam_rows.reserve(beams.size());
  for (size_t i = 0; i < beams.size(); ++i) beam_rows.push_back({beams[i]->sum_logprob, rows[i].top});
  const BeamStep step{.width = sampling.beam_width,
                      .length_penalty = sampling.length_penalty,
                      .early_stopping = sampling.early_stopping,
                      .end_ids = group.end_ids,
                      .length = beams.front()->num_output_tokens() + 1,
                      .at_limit = beams.front()->num_tokens() + 1 >= group.max_total_tokens};
  const BeamChoice choice = choose_beams(beam_rows, step);
  for (const BeamEnd& end : choice.ended)
    keep_hypothesis(group.finished_beams,
                    hypothesis_of(*beams[end.pick.parent], rows[end.pick.parent], end, sampling.logprobs),
                    sampling.beam_width);
  if (group.times.first_token_us < 0) group.times.first_token_us = now_us;
  // As they come, whatever is reported in the end.
  WaitingQueue::charge_output(group, static_cast<int64_t>(beams.size()));
  if (choice.next.empty() || beams_done(group.finished_beams, choice.next.front().sum_logprob, step))
    end_beams(group, now_us, out);
  else
    advance_beams(beams, rows, choice.next, now_us);
}

void Scheduler::advance_beams(std::span<Sequence* const> beams, std::span<SampledToken> rows,
                              std::span<const BeamPick> next, int64_t now_us) {
  SequenceGroup& group = *beams.front()->group;
  if (!std::exchange(group.forked, true)) ++room_epoch_;  // what it may still take is less than was kept free
  std::vector<Sequence*> chosen(next.size());
  std::vector<bool> kept(beams.size(), false), places(static_cast<size_t>(group.num_slots()), false);
  for (const BeamPick& pick : next) places[static_cast<size_t>(beams[pick.parent]->list_place)] = true;
  // All forks before any token is added: two children of one parent share what it was.
  for (size_t i = 0; i < next.size(); ++i) {
    Sequence* parent = beams[next[i].parent];
    chosen[i] = kept[next[i].parent] ? &fork_beam(*parent, take_place(places)) : parent;
    kept[next[i].parent] = true;
  }
  for (size_t i = 0; i < next.size(); ++i)
    append(*chosen[i], rows[static_cast<size_t>(next[i].parent)], next[i], group.sampling->logprobs);
  measure(group);
  for (size_t i = 0; i < beams.size(); ++i)
    if (!kept[i]) drop(*beams[i], now_us);
  for (auto& s : group.sequences) {
    if (!s->finished() || s->num_in_flight > 0) continue;
    if (spare_beams_.size() < kSpareBeams) spare_beams_.push_back(emptied(std::move(s)));
    s.reset();
  }
  std::erase(group.sequences, nullptr);
}

Sequence& Scheduler::fork_beam(Sequence& source, int32_t place) {
  Sequence& beam = fork(source);
  beam.list_place = place;
  if (source.group->traits.overwrites_slots)
    policy_forks_.push_back({.source = source.id, .target = beam.id, .place = place});
  return beam;
}

void Scheduler::end_beams(SequenceGroup& group, int64_t now_us, Outcome& out) {
  measure(group);
  const int32_t num_computed = group.sequences.front()->num_computed;
  for (int32_t i = 0; i < group.num_reported(); ++i) {
    SequenceEnd& end = out.ends.emplace_back();
    end.request = group.request;
    end.index = i;
    end.num_computed = num_computed;
    if (i >= static_cast<int32_t>(group.finished_beams.size())) {
      end.finish = FinishReason::kFailed;
      end.error = error(Code::kOutOfRange, fmt::format("beam search found {} continuations; n is {}",
                                                       group.finished_beams.size(), group.sampling->n));
      continue;
    }
    BeamHypothesis& h = group.finished_beams[i];
    end.finish = h.finish;
    if (h.finish == FinishReason::kStop) end.stop_token = h.tokens.back();
    end.tokens = std::move(h.tokens);
    end.logprobs = std::move(h.logprobs);
    end.kv_dump = std::move(h.kv_dump);
    group.num_output_tokens += static_cast<int32_t>(end.tokens.size());
  }
  counters_.output_tokens += group.num_output_tokens;
  const FinishReason reason = out.ends[out.ends.size() - group.num_reported()].finish;
  for (const auto& s : group.sequences)
    if (!s->finished()) drop(*s, now_us);
  close_group(group, reason, now_us, out);
}

}  // namespace quire
