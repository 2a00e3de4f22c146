#include "benchmarks/sim/workload.h"

#include <algorithm>

#include "src/policy/reject.h"
#include "src/request/admission.h"

namespace quire {
namespace {

SamplingParams draw_sampling(Random& random, const LoadMix& mix) {
  SamplingParams p;
  p.temperature = random.chance(0.7) ? 0 : 1;
  p.max_tokens =
      static_cast<int32_t>(random.chance(0.05) ? 0 : random.between(1, random.chance(0.4) ? 300 : 40));
  p.ignore_eos = random.chance(0.5);
  if (random.chance(mix.samples)) p.n = static_cast<int32_t>(random.between(2, 6));
  if (random.chance(mix.best_of)) p.best_of = p.n + 2;
  if (random.chance(mix.beams) && p.max_tokens > 0) {
    p.n = 1;
    p.best_of = 0;
    p.beam_width = static_cast<int32_t>(random.between(2, 5));
    p.early_stopping = random.chance(0.5);
  }
  if (random.chance(0.05)) p.prompt_logprobs = 0;
  if (random.chance(0.05)) p.min_tokens = std::min(p.max_tokens, 5);
  return p;
}

PolicySpec draw_policy(Random& random, const LoadMix& mix, int64_t most_tokens) {
  const auto tokens = [&] { return static_cast<int32_t>(random.between(1, most_tokens)); };
  const bool first = random.chance(0.5);
  if (random.chance(mix.scores))
    return first ? PolicySpec{.kind = RetentionKind::kTova, .budget = tokens()}
                 : PolicySpec{.kind = RetentionKind::kH2o, .recent = tokens(), .heavy = tokens()};
  if (first) return {.kind = RetentionKind::kWindow, .window = tokens()};
  const auto sinks = static_cast<int32_t>(random.between(1, 8));
  return {.kind = RetentionKind::kStream, .sinks = sinks, .recent = tokens()};
}

// ---- requests that just fit ----

int64_t bound_of(const CoreRequest& r, const SamplingParams& p, const CacheRoom& room) {
  const auto prompt = static_cast<int64_t>(r.prompt.size());
  if (!traits(r.policy).drops_tokens) return peak_blocks(prompt, p, room.block_tokens);
  return peak_blocks(r.policy, prompt, p.max_tokens, p.num_sequences(), room.max_chunk_tokens,
                     room.block_tokens);
}

// By a part of what it is, or not at all where it is 1.
template <typename Number>
bool lessen(Number& number) {
  if (number <= 1) return false;
  number -= 1 + (number - 1) / 16;
  return true;
}

bool lessen_sequences(SamplingParams& p) {
  if (p.best_of > 0)
    p.best_of = 0;
  else if (p.n > 1)
    --p.n;
  else if (p.beam_width > 0)
    p.beam_width = p.beam_width > 2 ? p.beam_width - 1 : 0;
  else
    return false;
  return true;
}

bool lessen(PolicySpec& policy) {
  const bool last = lessen(policy.window) || lessen(policy.recent) || lessen(policy.budget);
  return last || lessen(policy.heavy) || lessen(policy.sinks);
}

// Until its bound is `blocks`, or just below. What its policy keeps is lessened first: a list that is long lets go of most.
void lessen_to(int64_t blocks, const CacheRoom& room, bool keeps_policy, CoreRequest& r, SamplingParams& p) {
  while (bound_of(r, p, room) > blocks) {
    if (!keeps_policy && lessen(r.policy)) continue;
    if (lessen_sequences(p) || lessen(p.max_tokens)) continue;
    if (r.prompt.size() == 1) return;
    r.prompt.resize(r.prompt.size() - 1 - r.prompt.size() / 16);
  }
}

class RandomWorkload final : public Workload {
 public:
  RandomWorkload(uint64_t seed, int32_t max_sequences, int32_t vocab_size, bool deadlines, const LoadMix& mix)
      : random_(seed),
        max_sequences_(max_sequences),
        vocab_size_(vocab_size),
        deadlines_(deadlines),
        mix_(mix) {
    level_ = draw_level();
    for (int i = 0; i < 8; ++i) prefixes_.push_back(draw(random_.between(1, 150)));
  }
  std::optional<CoreRequest> next(int64_t now_us, int64_t num_live) override {
    if (num_live >= level_ || random_.chance(0.5)) {
      if (random_.chance(kLevelChange)) level_ = draw_level();
      return {};
    }
    if (last_beams_ && random_.chance(0.03)) return draw_twin(now_us);
    CoreRequest r = draw_request(now_us);
    if (r.sampling->beam_width > 0) last_beams_ = r;
    return r;
  }
  std::optional<int64_t> next_arrival_us() const override { return {}; }
  bool exhausted() const override { return false; }

 private:
  static constexpr double kLevelChange = 1.0 / 256;  // in a step

  // Crowds that queue, lulls, and now and then nobody at all.
  int64_t draw_level() {
    if (random_.chance(0.2)) return 2 * max_sequences_;
    return random_.chance(0.1) ? 0 : random_.between(1, std::max<int64_t>(1, max_sequences_ / 2));
  }
  // Of the last beams: each block of the one is another's already once the other has published it.
  CoreRequest draw_twin(int64_t now_us) {
    CoreRequest r = *last_beams_;
    if (r.deadline_us != kNoDeadline) r.deadline_us = now_us + random_.between(1, 3'000'000);
    return r;
  }
  CoreRequest draw_request(int64_t now_us) {
    CoreRequest r;
    // A new prefix that many will have: the first computes it, those who come meanwhile wait for it.
    if (random_.chance(0.05)) prefixes_[random_.below(prefixes_.size())] = draw(random_.between(1, 150));
    r.prompt = random_.chance(0.6) ? prefixes_[random_.below(prefixes_.size())] : std::vector<TokenId>{};
    extend(r.prompt);
    SamplingParams p = draw_sampling(random_, mix_);
    r.tenant = std::string(1, static_cast<char>('a' + random_.below(4)));
    r.cache_salt = random_.chance(0.1) ? r.tenant : "";
    r.bypass_prefix_cache = random_.chance(0.05);
    r.priority = random_.chance(0.1) ? static_cast<int32_t>(random_.between(-1, 1)) : 0;
    if (deadlines_ && random_.chance(0.05)) r.deadline_us = now_us + random_.between(1, 3'000'000);
    const bool fills = random_.chance(mix_.fills);
    if (random_.chance(mix_.policy)) {
      const PolicySpec policy =
          draw_policy(random_, mix_, fills ? mix_.room.blocks * mix_.room.block_tokens : 60);
      if (check_policy(policy, {.prompt_logprobs = p.prompt_logprobs >= 0})) r.policy = policy;
      if (r.policy == policy && p.num_sequences() == 1 && p.beam_width == 0 &&
          random_.chance(mix_.policy_samples))
        p.n = static_cast<int32_t>(random_.between(2, 6));
    }
    if (fills) fill_cache(r, p);
    r.sampling = std::make_shared<const SamplingParams>(p);
    if (random_.chance(0.1)) r.retention = draw_retention();
    r.seed = random_.next();
    return r;
  }
  void extend(std::vector<TokenId>& prompt) {
    const std::vector<TokenId> own = draw(random_.between(1, random_.chance(0.1) ? 250 : 30));
    prompt.insert(prompt.end(), own.begin(), own.end());
  }
  // As long as its context may be, and cut from there. Often it finds what the last of them has left in the tree: the same policy,
  // and of its prompt all, a part or more.
  void fill_cache(CoreRequest& r, SamplingParams& p) {
    const bool again = last_filling_ && p.prompt_logprobs < 0 && random_.chance(0.5);
    if (again) {
      r.prompt = last_filling_->prompt;
      r.policy = last_filling_->policy;
      r.cache_salt = last_filling_->cache_salt;
      if (random_.chance(0.3))
        r.prompt.resize(static_cast<size_t>(random_.between(1, static_cast<int64_t>(r.prompt.size()))));
      if (random_.chance(0.3)) extend(r.prompt);
    }
    const auto prompt = static_cast<int32_t>(r.prompt.size());
    p.max_tokens =
        std::max(1, mix_.room.max_context_tokens - prompt - static_cast<int32_t>(random_.below(200)));
    lessen_to(mix_.room.blocks - static_cast<int64_t>(random_.below(4)), mix_.room, again, r, p);
    p.min_tokens = std::min(p.min_tokens, p.max_tokens);
    last_filling_ = r;
  }
  KvRetention draw_retention() {
    KvRetention retention{.retention_class = static_cast<int32_t>(random_.below(3)), .ttl_ms = {}, .cost = 1};
    if (random_.chance(0.5)) retention.ttl_ms = random_.between(1, 5000);
    if (random_.chance(0.5)) retention.cost = static_cast<double>(random_.between(1, 100));
    return retention;
  }
  std::vector<TokenId> draw(int64_t count) {
    std::vector<TokenId> ids(static_cast<size_t>(count));
    for (TokenId& id : ids)
      id = static_cast<TokenId>((random_.next() >> 32) * static_cast<uint64_t>(vocab_size_) >> 32);
    return ids;
  }
  Random random_;
  int64_t max_sequences_, level_ = 0;  // requests in the engine that the load keeps up
  int32_t vocab_size_;
  bool deadlines_;
  LoadMix mix_;
  std::vector<std::vector<TokenId>> prefixes_;
  std::optional<CoreRequest> last_beams_, last_filling_;
};

class TraceWorkload final : public Workload {
 public:
  TraceWorkload(Trace trace, double speed, int32_t vocab_size)
      : trace_(std::move(trace)), speed_(speed), vocab_size_(vocab_size) {}
  std::optional<CoreRequest> next(int64_t now_us, int64_t) override {
    if (exhausted() || *next_arrival_us() > now_us) return {};
    CoreRequest r;
    SamplingParams p;
    p.temperature = 0;
    p.ignore_eos = true;
    p.max_tokens = std::max(1, trace_.requests[index_].output_tokens);
    r.sampling = std::make_shared<const SamplingParams>(p);
    r.prompt = prompt_of(trace_, index_, vocab_size_);
    r.arrival_us = *next_arrival_us();
    r.seed = index_++;
    return r;
  }
  std::optional<int64_t> next_arrival_us() const override {
    if (exhausted()) return {};
    return static_cast<int64_t>(static_cast<double>(trace_.requests[index_].arrival_us) / speed_);
  }
  bool exhausted() const override { return index_ >= trace_.requests.size(); }

 private:
  Trace trace_;
  double speed_;
  int32_t vocab_size_;
  size_t index_ = 0;
};

}  // namespace

std::unique_ptr<Workload> make_random_workload(uint64_t seed, int32_t max_sequences, int32_t vocab_size,
                                               bool deadlines, const LoadMix& mix) {
  return std::make_unique<RandomWorkload>(seed, max_sequences, vocab_size, deadlines, mix);
}

std::unique_ptr<Workload> make_trace_workload(Trace trace, double speed, int32_t vocab_size) {
  return std::make_unique<TraceWorkload>(std::move(trace), speed, vocab_size);
}

}  // namespace quire
