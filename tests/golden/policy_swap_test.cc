// A sequence that is swapped out at every step of its life, its prompt's chunks among them, goes on bit for bit as if it had stayed, under
// every KV policy. Method: the engine's core with the CPU executor, or that of QUIRE_TEST_DEVICE, stepped by hand. After each step the
// sequence's reader stops, another request takes the whole cache, and then it goes on. Tokens and log probabilities are compared by their
// bits, and kept positions where scores choose them. Without swaps the same driver checks a list's slots and blocks against the policies'
// formulas after every step.
#include <algorithm>
#include <cctype>
#include <cstring>
#include <filesystem>

#include "src/base/clock.h"
#include "src/engine/threaded_engine.h"
#include "src/model/config.h"
#include "tests/golden/engine_rig.h"

namespace quire::golden {
namespace {

constexpr int32_t kBlockTokens = 8, kBlocks = 12, kChunk = 8, kPrompt = 37, kNewTokens = 14;

std::vector<TokenId> prompt_of(int32_t length, int32_t seed) {
  std::vector<TokenId> ids;
  for (int32_t i = 0; i < length; ++i) ids.push_back(3 + (i * i * 7 + i * 13 + seed * 101) % 500);
  return ids;
}

struct Life {
  std::vector<TokenId> ids;
  std::vector<float> logprobs;
  KvDump kept;
  int64_t steps = 0, swaps = 0;
};

class SteppedEngine {
 public:
  explicit SteppedEngine(const EngineConfig& config) {
    Result<EngineParts> parts = open_parts(config);
    check(parts.has_value(), parts ? "" : parts.error().message);
    parts_ = std::move(*parts);
    parts_.core.config.check_invariants = true;
    Result<std::unique_ptr<EngineCore>> core =
        EngineCore::create(parts_.core, *parts_.executor, *parts_.clock, parts_.mover.get());
    check(core.has_value(), core ? "" : core.error().message);
    core_ = std::move(*core);
  }

  RequestId submit(std::vector<TokenId> prompt, int32_t max_tokens, const PolicySpec& policy,
                   int32_t beam_width = 0) {
    auto sampling = std::make_shared<SamplingParams>(greedy(max_tokens));
    sampling->beam_width = beam_width;
    sampling->logprobs = 2;
    check(core_->queue_budget().take(static_cast<int64_t>(prompt.size()), 0).has_value(),
          "the queue has room");
    core_->submit({.request = ++last_,
                   .prompt = std::move(prompt),
                   .sampling = sampling,
                   .policy = policy,
                   .dump_kv = true});
    return last_;
  }
  // Until one more step with this request is submitted, or it has ended.
  void advance(RequestId id) {
    for (const int32_t before = progress(id); !ended(id) && progress(id) == before;) step();
  }
  void finish(RequestId id) {
    while (!ended(id)) step();
  }
  void set_paused(RequestId id, bool paused) { core_->set_paused(id, paused); }
  bool ended(RequestId id) const { return ended_.contains(id); }
  const Sequence* sequence(RequestId id) const {
    const SequenceGroup* group = core_->scheduler().find(id);
    return group == nullptr ? nullptr : group->sequences.front().get();
  }
  Life& life(RequestId id) { return lives_[id]; }
  int64_t swap_outs() const { return core_->scheduler().counters().swap_outs; }
  int64_t swap_ins() const { return core_->scheduler().counters().swap_ins; }
  void expect_empty() {
    while (!core_->idle()) step();
    EXPECT_EQ(core_->cache().num_held(), 0);
    EXPECT_EQ(core_->cache().swap_pool().num_held(), 0);
  }

 private:
  // Tokens of all steps submitted, wherever its blocks are.
  int32_t progress(RequestId id) const {
    const Sequence* s = sequence(id);
    return s == nullptr ? 0 : std::max(s->num_planned, s->swapped_computed);
  }
  void step() {
    ASSERT_TRUE(core_->step() || core_->wait_for_copy()) << "nothing can run";
    Outcome out = core_->take_outcome();
    for (const TokenOutput& token : out.tokens) {
      Life& life = lives_[token.request];
      life.ids.push_back(token.token);
      life.logprobs.push_back(token.logprob);
      for (const auto& [id, logprob] : token.top) life.logprobs.push_back(logprob);
    }
    for (SequenceEnd& end : out.ends) {
      EXPECT_FALSE(end.error) << end.error->message;
      Life& life = lives_[end.request];
      life.kept = std::move(end.kv_dump);
      life.ids.insert(life.ids.end(), end.tokens.begin(), end.tokens.end());  // a beam's
      for (const TokenLogprob& token : end.logprobs) life.logprobs.push_back(token.logprob);
      ended_.insert(end.request);
    }
  }

  EngineParts parts_;
  std::unique_ptr<EngineCore> core_;
  std::map<RequestId, Life> lives_;
  std::set<RequestId> ended_;
  RequestId last_ = 0;
};

class PolicySwap : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    config_.model_dir = shared_data() + "/models/stories260K";  // 8 query heads over 4 KV heads
    if (!std::filesystem::exists(config_.model_dir))
      GTEST_SKIP() << config_.model_dir << " is not there (set QUIRE_SHARED)";
    const Result<ModelSpec> spec = read_model_config(config_.model_dir);
    ASSERT_TRUE(spec.has_value()) << spec.error().message;
    const int64_t block_bytes = spec->kv_bytes_per_token(DType::kF32) * kBlockTokens;
    config_.device = env_or("QUIRE_TEST_DEVICE", "cpu");
    config_.dtype = "f32";
    config_.block_tokens = kBlockTokens;
    config_.max_context_tokens = kBlocks * kBlockTokens;
    config_.max_prefill_chunk_tokens = kChunk;
    config_.kv_cache_bytes = kBlocks * block_bytes;
    config_.swap_space_bytes = kBlocks * block_bytes;
    config_.preemption_mode = "swap";
    config_.prefix_cache = false;
  }

  // Takes every block there is, so that nobody else's stay.
  void run_another(SteppedEngine& engine, int32_t seed) {
    engine.finish(engine.submit(prompt_of(kBlocks * kBlockTokens - 2, seed), 2, {}));
  }
  Life live(bool swaps, int32_t beam_width = 0) {
    SteppedEngine engine(config_);
    const RequestId id = engine.submit(prompt_of(kPrompt, 1), kNewTokens, policy_, beam_width);
    while (!engine.ended(id)) {
      engine.advance(id);
      const auto step = static_cast<int32_t>(++engine.life(id).steps);
      if (!swaps) continue;
      engine.set_paused(id, true);
      run_another(engine, 1 + step);
      engine.set_paused(id, false);
    }
    Life life = engine.life(id);
    life.swaps = engine.swap_outs();
    EXPECT_EQ(engine.swap_ins(), life.swaps);
    engine.expect_empty();
    return life;
  }

  EngineConfig config_;
  const PolicySpec policy_ = *parse_policy(GetParam());
};

TEST_P(PolicySwap, AtEveryStepChangesNoBit) {
  const Life stayed = live(false), swapped = live(true);
  EXPECT_EQ(stayed.swaps, 0);
  EXPECT_EQ(swapped.swaps, stayed.steps - 2) << "after every step but the last, whose commit ends it";
  EXPECT_EQ(stayed.ids.size(), size_t{kNewTokens});
  EXPECT_EQ(swapped.ids, stayed.ids);
  EXPECT_EQ(swapped.kept, stayed.kept);
  EXPECT_EQ(stayed.kept.empty(), !traits(policy_).row_logits);
  ASSERT_EQ(swapped.logprobs.size(), stayed.logprobs.size());
  EXPECT_EQ(
      std::memcmp(swapped.logprobs.data(), stayed.logprobs.data(), stayed.logprobs.size() * sizeof(float)),
      0);
}

// They are forked, dropped and swapped between steps, as one.
TEST_P(PolicySwap, OfBeamsAtEveryStepChangesNoBit) {
  const Life stayed = live(false, 2), swapped = live(true, 2);
  EXPECT_EQ(stayed.swaps, 0);
  EXPECT_GT(swapped.swaps, stayed.steps);
  EXPECT_EQ(stayed.ids.size(), size_t{kNewTokens});
  EXPECT_EQ(swapped.ids, stayed.ids);
  EXPECT_EQ(swapped.logprobs, stayed.logprobs);
}

int64_t blocks_of(int64_t tokens) {
  return (tokens + kBlockTokens - 1) / kBlockTokens;
}

// What a list may hold after a step of `rows` rows that ended at position `end`.
void expect_formula(const PolicySpec& policy, const Sequence& s, int32_t rows) {
  const int32_t end = s.num_planned, length = s.table.length();
  const bool slides = policy.kind == RetentionKind::kWindow || policy.kind == RetentionKind::kStream;
  if (slides) {
    const int32_t window = policy.kind == RetentionKind::kWindow ? policy.window : policy.recent;
    EXPECT_GE(length, std::min(end, capacity(policy)));
    EXPECT_LE(s.table.num_blocks(), blocks_of(policy.sinks) + blocks_of(window - 1 + rows) + 1);
  } else {
    const bool whole = policy.kind == RetentionKind::kKeepAll || end <= kPrompt;
    EXPECT_EQ(length, whole ? end : std::min(end, capacity(policy) + 1));
  }
  if (!slides || s.table.next_position() == length) {
    EXPECT_EQ(s.table.num_blocks(), blocks_of(length));
  }
}

TEST_P(PolicySwap, SlotsAndBlocksAreWhatTheFormulaSays) {
  SteppedEngine engine(config_);
  const RequestId id = engine.submit(prompt_of(kPrompt, 1), kNewTokens, policy_);
  for (int32_t before = 0; !engine.ended(id);) {
    engine.advance(id);
    const Sequence* s = engine.sequence(id);
    if (s == nullptr || s->finished()) break;
    SCOPED_TRACE(testing::Message() << "position " << s->num_planned);
    expect_formula(policy_, *s, s->num_planned - before);
    before = s->num_planned;
  }
  engine.finish(id);
  for (const auto& layer : engine.life(id).kept)
    for (const auto& list : layer)
      EXPECT_EQ(list.size(), static_cast<size_t>(std::min(kPrompt + kNewTokens - 1, capacity(policy_))));
  engine.expect_empty();
}

INSTANTIATE_TEST_SUITE_P(
    Policies, PolicySwap,
    testing::Values("none", "window:size=20", "window:size=8", "stream:sinks=4,recent=16",
                    "stream:sinks=9,recent=7", "tova:budget=10", "tova:budget=1", "tova:budget=16",
                    "h2o:heavy=5,recent=5", "h2o:heavy=15,recent=1"),
    [](const auto& info) {
      std::string name = info.param;
      std::replace_if(name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) == 0; }, '_');
      return name;
    });

}  // namespace
}  // namespace quire::golden
