// Attention that reads shared blocks once for all their sequences, in the engine: the same tokens as with
// every list read by itself, over random conversations whose prompts form trees (a common beginning,
// branches, turns that go on from a turn before), with parallel samples, in chunks and with too little room.
// On the host shim by default; QUIRE_TEST_DEVICE=cuda runs more of it on a card.
//
// The two differ in the order of sums, so 16-bit values differ in their last bits and a token may flip where
// the two likeliest are close. So the run without is asked for the margin of each token, and a sequence is
// compared up to the first small one.
#include <filesystem>
#include <random>

#include "tests/golden/engine_rig.h"

namespace quire::golden {
namespace {

constexpr double kMargin = 0.02;  // f16: 11 bits, logits below 16
constexpr int64_t kNever = -1, kAlways = 0;

bool on_card() {
  return env_or("QUIRE_TEST_DEVICE", "cuda-host") == "cuda";
}

struct Ask {
  std::vector<int32_t> prompt;
  int32_t n = 1, max_tokens = 8;
  std::string policy;
};

// What one of n continuations was, and how sure each token of it.
struct Answer {
  std::vector<int32_t> ids;
  std::vector<double> margins;  // where they were asked for
};

class Cascade : public ::testing::Test {
 protected:
  void SetUp() override {
    config_.model_dir = shared_data() + "/models/stories260K-hd128-bf16";
    if (!std::filesystem::exists(config_.model_dir))
      GTEST_SKIP() << config_.model_dir << " is not there (set QUIRE_SHARED)";
    config_.device = on_card() ? "cuda" : "cuda-host";
    config_.dtype = "f16";
    config_.block_tokens = 8;
    config_.max_sequences = 32;
    config_.max_step_tokens = 128;
    config_.kv_cache_bytes = 16 << 20;
    config_.check_invariants = true;
  }

  // All of them at once; with_margins: tokens are chosen on the host, with their rivals reported.
  std::vector<std::vector<Answer>> answers(const std::vector<Ask>& asks, int64_t min_saved_bytes,
                                           bool with_margins) {
    config_.cascade_min_saved_bytes = min_saved_bytes;
    Result<std::unique_ptr<Engine>> engine = Engine::open(config_);
    EXPECT_TRUE(engine.has_value()) << engine.error().message;
    if (!engine) return {};
    std::vector<std::shared_ptr<Collector>> sinks;
    for (const Ask& ask : asks) sinks.push_back(ask_for(**engine, ask, with_margins));
    std::vector<std::vector<Answer>> out;
    for (size_t i = 0; i < asks.size(); ++i) {
      sinks[i]->wait();
      out.emplace_back();
      for (int32_t k = 0; k < asks[i].n; ++k) out.back().push_back(answer_of(*sinks[i], k));
    }
    saved_tokens_ = (*engine)->stats().shared_read_tokens_total;
    expect_nothing_held(**engine);
    return out;
  }

  void expect_the_same(const std::vector<Ask>& asks, const std::vector<bool>& on_host = {false}) {
    const auto alone = answers(asks, kNever, true);
    EXPECT_EQ(saved_tokens_, 0);
    for (const bool with_margins : on_host) {
      const auto together = answers(asks, kAlways, with_margins);
      EXPECT_GT(saved_tokens_, 0);
      ASSERT_EQ(together.size(), alone.size());
      for (size_t i = 0; i < asks.size(); ++i)
        for (size_t k = 0; k < alone[i].size(); ++k) expect_equal(together[i][k], alone[i][k], i, k);
    }
    EXPECT_GT(compared_, 2 * skipped_) << "most tokens have a margin";
  }

  EngineConfig config_;
  int64_t saved_tokens_ = 0;

 private:
  static std::shared_ptr<Collector> ask_for(Engine& engine, const Ask& ask, bool with_margins) {
    auto sink = std::make_shared<Collector>();
    Request request;
    request.prompt = ask.prompt;
    request.sampling = greedy(ask.max_tokens);
    request.sampling.n = ask.n;
    request.kv_policy = ask.policy;
    if (with_margins) request.sampling.logprobs = 2;
    const Result<RequestId> id = engine.submit(std::move(request), sink);
    if (!id) sink->refuse(id.error());
    return sink;
  }
  static Answer answer_of(Collector& sink, int32_t index) {
    Answer a{.ids = sink.ids(index), .margins = {}};
    for (const TokenLogprob& l : sink.logprobs(index)) a.margins.push_back(l.top[0].second - l.top[1].second);
    return a;
  }
  void expect_equal(const Answer& got, const Answer& wanted, size_t ask, size_t sample) {
    ASSERT_EQ(got.ids.size(), wanted.ids.size());
    for (size_t t = 0; t < wanted.ids.size(); ++t) {
      if (wanted.margins[t] < kMargin) {
        skipped_ += static_cast<int64_t>(wanted.ids.size() - t);
        return;
      }
      ASSERT_EQ(got.ids[t], wanted.ids[t])
          << "request " << ask << " sample " << sample << " token " << t << ", margin " << wanted.margins[t];
      ++compared_;
    }
  }

  int64_t compared_ = 0, skipped_ = 0;
};

// Prompts that begin like an earlier one, up to anywhere, and go on by themselves.
std::vector<Ask> conversations(uint64_t seed, int count, int32_t vocab, int32_t most_tokens) {
  std::mt19937_64 random(seed);
  const auto below = [&](int n) { return static_cast<int32_t>(random() % static_cast<uint64_t>(n)); };
  std::vector<Ask> asks;
  for (int i = 0; i < count; ++i) {
    Ask ask;
    if (i > 0 && below(5) > 0) {
      const std::vector<int32_t>& from = asks[static_cast<size_t>(below(i))].prompt;
      const auto size = static_cast<int>(from.size());
      ask.prompt.assign(from.begin(), from.begin() + size / 2 + below(size - size / 2 + 1));
    }
    const int32_t own = i == 0 ? 50 : 1 + below(15);
    for (int32_t t = 0; t < own; ++t) ask.prompt.push_back(3 + below(vocab - 3));
    ask.prompt.resize(std::min<size_t>(ask.prompt.size(), 120));
    ask.n = below(4) == 0 ? 2 + below(2) : 1;
    ask.max_tokens = 3 + below(most_tokens);
    asks.push_back(std::move(ask));
  }
  return asks;
}

TEST_F(Cascade, GivesTheTokensOfListsReadAlone) {
  const int seeds = on_card() ? 40 : 1;
  for (int seed = 1; seed <= seeds; ++seed) {
    SCOPED_TRACE(seed);
    expect_the_same(conversations(static_cast<uint64_t>(seed), on_card() ? 40 : 8, 512, on_card() ? 60 : 6),
                    {false, true});
  }
}

TEST_F(Cascade, GivesThemInChunksAndWithLittleRoom) {
  config_.max_prefill_chunk_tokens = 7;
  config_.kv_cache_bytes = 40 * 8 * 2 * 5 * 4 * 128 * 2;  // 40 blocks: requests wait, and give way
  config_.max_context_tokens = 200;
  config_.max_queued_kv_factor = 1000;
  expect_the_same(conversations(7, 6, 512, 6));
}

TEST_F(Cascade, LeavesSequencesUnderAPolicyOut) {
  std::vector<Ask> asks = conversations(5, 6, 512, 6);
  for (size_t i = 1; i < asks.size(); i += 3)
    asks[i].policy = i % 2 == 0 ? "window:size=20" : "stream:sinks=3,recent=20";
  expect_the_same(asks);
}

TEST_F(Cascade, WaitsForEnoughToSave) {
  Ask ask{.prompt = {}, .n = 4, .max_tokens = 4, .policy = ""};
  for (int32_t t = 0; t < 64; ++t) ask.prompt.push_back(3 + t * 7 % 500);
  answers({ask}, kAlways, false);
  const int64_t all = saved_tokens_, per_step = 3 * 64;
  EXPECT_EQ(all, 3 * per_step) << "the first token is the prompt's";
  // A third of four lists' slots, less their different ones: 85 - 64 of 64 slots each, 86 - 68, 88 - 72.
  const int64_t token_bytes = 2 * 4 * 128 * 2;
  answers({ask}, 16 * token_bytes, false);
  EXPECT_EQ(saved_tokens_, all);
  answers({ask}, 16 * token_bytes + 1, false);
  EXPECT_EQ(saved_tokens_, 2 * per_step) << "in the third step what the lists have of their own outweighs it";
  answers({ask}, 21 * token_bytes + 1, false);
  EXPECT_EQ(saved_tokens_, 0);
}

}  // namespace
}  // namespace quire::golden
