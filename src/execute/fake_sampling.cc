// A FakeExecutor's tokens and logprobs: hashes of what the slots hold.
#include <fmt/format.h>

#include <algorithm>

#include "src/execute/fake_executor.h"

namespace quire {
namespace {

using fake::below, fake::chain_after, fake::logprob_of, fake::mix;

bool contains(const std::vector<TokenId>& ids, TokenId id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

inline TokenId FakeExecutor::pick(uint64_t chain, const Known& known, int32_t position) const {
  uint64_t hash = known.is_greedy ? chain : mix(mix(chain, known.seed), static_cast<uint64_t>(position));
  if (known.is_plain) return static_cast<TokenId>(below(hash, static_cast<uint64_t>(model_.vocab_size)));
  const SamplingParams& sampling = *known.sampling;
  for (;; hash = mix(hash, 1)) {
    const auto& allowed = sampling.allowed_token_ids;
    const TokenId token = allowed.empty()
                              ? static_cast<TokenId>(below(hash, static_cast<uint64_t>(model_.vocab_size)))
                              : allowed[below(hash, allowed.size())];
    const bool masked = position - known.num_prompt < sampling.min_tokens &&
                        (contains(known.eos, token) || contains(sampling.stop_token_ids, token));
    if (!masked) return token;
  }
}

inline uint64_t FakeExecutor::chain_of_last(const PlannedSequence& s, const Known& known, int32_t last) {
  return keeps_all(s) ? slot_at(s.block_table, last).chain : known.chain[last];
}

void FakeExecutor::sample(const BatchPlan& plan, const PlannedSequence& s, Known& own, SampledToken* next) {
  const int32_t last = s.first_position + static_cast<int32_t>(s.tokens.size()) - 1;
  for (const PlannedSample& wanted : s.samples) {
    Known& known = wanted.sequence == s.sequence ? own : known_[value(wanted.sequence)];
    SampledToken& out = *next++;
    out.sequence = wanted.sequence;
    out.token = -1;
    out.logprob = 0;
    out.top.clear();
    if (known.poisoned || known.sampling == nullptr) {
      out.token = 0;
      if (!known.poisoned)
        violation([&] {
          return fmt::format("sequence {} is sampled for and never joined", value(wanted.sequence));
        });
      continue;
    }
    if (wanted.position != last + 1)
      violation([&] {
        return fmt::format("sequence {}: position {} is sampled after {}", value(wanted.sequence),
                           wanted.position, last);
      });
    const uint64_t chain =
        model_.check_content ? chain_of_last(s, own, last) : mix(known.seed, static_cast<uint64_t>(last));
    const TokenId best = pick(chain, known, wanted.position);
    out.logprob = logprob_of(chain);
    const int32_t candidates = std::min(wanted.top_candidates, model_.vocab_size);
    out.top.reserve(candidates);
    for (int32_t i = 0; i < candidates; ++i)
      out.top.emplace_back(best + i < model_.vocab_size ? best + i : best + i - model_.vocab_size,
                           out.logprob - 0.25f * static_cast<float>(i) - 0.1f * logprob_of(mix(chain, i)));
    if (wanted.beam) continue;
    out.token = best;
    known.sampled_in = plan.step;
    if (model_.check_content) known.push(best);
  }
}

void FakeExecutor::prompt_logprobs(const PlannedSequence& s, StepResult& result) {
  if (s.prompt_logprobs < 0) return;
  SequencePromptLogprobs& out = result.prompt_logprobs.emplace_back();
  out.sequence = s.sequence;
  out.first_position = s.first_position + 1;
  for (size_t i = 1; i <= s.tokens.size(); ++i) {
    const TokenId token = i < s.tokens.size() ? s.tokens[i] : s.next_prompt_token;
    if (token < 0) break;
    PromptLogprob& p = out.tokens.emplace_back();
    p.token = token;
    p.logprob = logprob_of(mix(static_cast<uint64_t>(token), static_cast<uint64_t>(s.first_position) + i));
    for (int32_t k = 0; k < s.prompt_logprobs; ++k)
      p.top.emplace_back((token + k) % model_.vocab_size, p.logprob - 0.1f * static_cast<float>(k));
  }
}

std::vector<TokenId> FakeExecutor::greedy(const std::vector<TokenId>& prompt, int32_t count) const {
  uint64_t chain = 0;
  for (const TokenId t : prompt) chain = chain_after(chain, t);
  std::vector<TokenId> out;
  out.reserve(count);
  for (int32_t i = 0; i < count; ++i) {
    out.push_back(static_cast<TokenId>(below(chain, static_cast<uint64_t>(model_.vocab_size))));
    chain = chain_after(chain, out.back());
  }
  return out;
}

}  // namespace quire
