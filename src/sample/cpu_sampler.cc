// The CPU sampler. Each row is independent: what a sequence draws depends on its own logits, parameters, seed
// and position alone.
#include <unordered_map>

#include "src/base/check.h"
#include "src/sample/filters.h"
#include "src/sample/ngram_index.h"
#include "src/sample/processors.h"
#include "src/sample/sampler.h"

namespace quire {
namespace {

struct State {
  std::shared_ptr<const SamplingParams> sampling;
  uint64_t seed = 0;
  std::vector<TokenId> history;
  int32_t num_prompt_tokens = 0;
  std::vector<TokenId> ending_ids;  // end of sequence and stop ids: masked until min_tokens
  std::vector<TokenCount> seen;     // one entry per distinct token; kept only when a penalty asks for it
  std::unordered_map<TokenId, size_t> seen_at;
  NgramIndex ngrams{0};

  int32_t num_output_tokens() const { return static_cast<int32_t>(history.size()) - num_prompt_tokens; }
  bool penalized() const {
    return sampling->repetition_penalty != 1.0 || sampling->presence_penalty != 0.0 ||
           sampling->frequency_penalty != 0.0;
  }
  void count(TokenId token, bool output) {
    const auto [entry, fresh] = seen_at.try_emplace(token, seen.size());
    if (fresh) seen.push_back({.token = token, .in_output = 0});
    if (output) ++seen[entry->second].in_output;
  }
  void append(TokenId token) {
    history.push_back(token);
    if (penalized()) count(token, true);
    if (sampling->no_repeat_ngram > 0) ngrams.append(history);
  }
};

State make_state(const PlannedJoin& join) {
  State state{.sampling = join.sampling,
              .seed = join.seed,
              .history = {},
              .num_prompt_tokens = join.num_prompt_tokens,
              .ending_ids = {},
              .seen = {},
              .seen_at = {},
              .ngrams = NgramIndex(join.sampling->no_repeat_ngram)};
  if (!join.sampling->ignore_eos) state.ending_ids = join.eos_token_ids;
  state.ending_ids.insert(state.ending_ids.end(), join.sampling->stop_token_ids.begin(),
                          join.sampling->stop_token_ids.end());
  for (size_t i = 0; i < join.history.size(); ++i) {
    state.history.push_back(join.history[i]);
    if (state.penalized()) state.count(join.history[i], static_cast<int32_t>(i) >= join.num_prompt_tokens);
    if (join.sampling->no_repeat_ngram > 0) state.ngrams.append(state.history);
  }
  return state;
}

void process(std::span<float> logits, const State& state) {
  const SamplingParams& p = *state.sampling;
  add_bias(logits, p.logit_bias);
  if (!p.allowed_token_ids.empty()) allow_only(logits, p.allowed_token_ids);
  if (!p.bad_words.empty()) forbid_bad_words(logits, state.history, p.bad_words);
  if (p.no_repeat_ngram > 0) forbid(logits, state.ngrams.repeats(state.history));
  if (state.penalized())
    penalize(logits, state.seen,
             {.repetition = p.repetition_penalty,
              .presence = p.presence_penalty,
              .frequency = p.frequency_penalty});
  if (state.num_output_tokens() < p.min_tokens) forbid(logits, state.ending_ids);
}

bool changes_logits(const State& state) {
  const SamplingParams& p = *state.sampling;
  return !p.logit_bias.empty() || !p.allowed_token_ids.empty() || !p.bad_words.empty() ||
         p.no_repeat_ngram > 0 || state.penalized() || state.num_output_tokens() < p.min_tokens;
}

class CpuSampler final : public Sampler {
 public:
  void join(const PlannedJoin& join) override { states_.insert_or_assign(join.sequence, make_state(join)); }
  void leave(SequenceId sequence) override { states_.erase(sequence); }
  void append(SequenceId sequence, TokenId token) override { state_of(sequence).append(token); }
  TokenId last_token(SequenceId sequence) const override {
    const auto found = states_.find(sequence);
    check(found != states_.end() && !found->second.history.empty(),
          "Sampler::last_token: the sequence has not joined");
    return found->second.history.back();
  }

  void sample(float* logits, int64_t vocab, std::span<const SampleRow> rows,
              std::vector<SampledToken>& out) override {
    for (const SampleRow& row : rows)
      out.push_back(sample_row({logits + row.logits_row * vocab, static_cast<size_t>(vocab)}, *row.sample));
  }

 private:
  State& state_of(SequenceId sequence) {
    const auto found = states_.find(sequence);
    check(found != states_.end(), "Sampler: the sequence has not joined");
    return found->second;
  }

  // Several sequences may read one row (a group's shared prefill), so processors work on a copy.
  SampledToken sample_row(std::span<const float> raw, const PlannedSample& sample) {
    State& state = state_of(sample.sequence);
    SampledToken result{.sequence = sample.sequence, .token = -1, .logprob = 0, .top = {}};
    std::span<const float> row = raw;
    if (changes_logits(state)) {
      scratch_.assign(raw.begin(), raw.end());
      process(scratch_, state);
      row = scratch_;
    }
    if (sample.beam) {  // beams rank what may follow after the processors
      result.top = likeliest(row, sample.top_candidates, log_sum_exp(row));
      std::erase_if(result.top, [](const auto& candidate) { return candidate.second == kMasked; });
      if (result.top.empty()) result.token = none_of(raw);
      return result;
    }
    result.token = choose(row, raw, state, sample.position);
    if (result.token < 0) return result;  // the request ends
    if (state.sampling->uses_logprobs() || sample.top_candidates > 0)
      report_logprobs(raw, sample.top_candidates, result);
    state.append(result.token);
    return result;
  }

  // Logprobs are of the model's own distribution. The sum over the vocabulary takes longer than all the rest:
  // at batch 8 and 152k tokens it was two fifths of a decode step, so it is left out where nobody asks.
  static void report_logprobs(std::span<const float> raw, int32_t num_top, SampledToken& result) {
    const double lse = log_sum_exp(raw);
    if (num_top > 0) result.top = likeliest(raw, num_top, lse);
    result.logprob = log_probability(raw[static_cast<size_t>(result.token)], lse);
  }

  // Never a token that a rule excludes: where the rules leave none, there is none.
  TokenId choose(std::span<const float> row, std::span<const float> raw, const State& state,
                 int32_t position) {
    const auto& forced = state.sampling->forced_token_ids;
    if (const auto output = static_cast<size_t>(state.num_output_tokens()); output < forced.size())
      return all_masked(raw) ? kNoLogit : forced[output];
    if (state.sampling->temperature == 0) {
      const TokenId best = greedy(row);
      return row[static_cast<size_t>(best)] > kMasked ? best : none_of(raw);
    }
    filter(row, *state.sampling, candidates_);
    return candidates_.empty() ? none_of(raw) : draw(candidates_, draw_uniform(state.seed, position));
  }

  static TokenId none_of(std::span<const float> raw) { return all_masked(raw) ? kNoLogit : kRulesLeaveNone; }

  std::unordered_map<SequenceId, State> states_;
  std::vector<float> scratch_;  // kept between calls, as candidates_
  std::vector<Candidate> candidates_;
};

}  // namespace

std::unique_ptr<Sampler> make_cpu_sampler() {
  return std::make_unique<CpuSampler>();
}

}  // namespace quire
