// The whole engine on the demo model: Engine::open, requests through the queue, events out of the delivery
// thread. What its requests may ask for beside greedy tokens (engine_goldens_test.cc): samples that share a
// prompt, beams, prompt logprobs, cancelling, text. QUIRE_TEST_DEVICE: cpu, or cuda-host for the CUDA kernels.
#include <algorithm>
#include <cmath>
#include <future>

#include "src/engine/threaded_engine.h"
#include "src/model/config.h"
#include "tests/golden/stored_goldens.h"

namespace quire::golden {
namespace {

class DemoEngine : public ::testing::Test {
 protected:
  void SetUp() override {
    cases_ = read_cases(goldens_of(kDemoModel));
    config_.model_dir = root_dir() + "/models/demo";
    config_.device = env_or("QUIRE_TEST_DEVICE", "cpu");
    config_.max_sequences = 32;
    config_.max_step_tokens = 512;
    config_.check_invariants = true;
  }
  void open() {
    Result<std::unique_ptr<Engine>> opened = Engine::open(config_);
    ASSERT_TRUE(opened.has_value()) << opened.error().message;
    engine_ = std::move(*opened);
  }
  void open_over_committed() {
    Result<EngineParts> parts = open_parts(config_);
    ASSERT_TRUE(parts.has_value()) << parts.error().message;
    parts->core.reserve = {.least = 0, .rise = 0, .decay = 0};
    engine_.reset();
    engine_ = std::move(ThreadedEngine::start(std::move(*parts))).value();
  }
  std::shared_ptr<Collector> submit(const std::vector<int32_t>& prompt, SamplingParams sampling) {
    return golden::submit(*engine_, prompt, std::move(sampling));
  }

  std::vector<Case> cases_;
  EngineConfig config_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(DemoEngine, FourGreedySamplesOfOnePromptAreEqualAndShareIt) {
  open();
  const Case& longest = *std::max_element(cases_.begin(), cases_.end(), [](const Case& a, const Case& b) {
    return a.prompt.size() < b.prompt.size();
  });
  SamplingParams p = greedy(static_cast<int32_t>(longest.greedy.size()));
  p.n = 4;
  const auto sink = submit(longest.prompt, p);
  sink->wait();
  for (int32_t i = 0; i < 4; ++i) EXPECT_EQ(sink->ids(i), longest.greedy) << "sample " << i;
  const auto full = static_cast<int32_t>(longest.prompt.size()) / config_.block_tokens;
  EXPECT_GE(sink->last().kv.blocks_shared_peak, full);
  EXPECT_EQ(sink->last().usage.completion_tokens, 4 * static_cast<int32_t>(longest.greedy.size()));
}

TEST_F(DemoEngine, ABeamOfWidthOneIsGreedy) {
  open();
  const Case& c = cases_.front();
  SamplingParams p = greedy(24);
  p.beam_width = 1;
  const auto sink = submit(c.prompt, p);
  sink->wait();
  EXPECT_EQ(sink->ids(), std::vector<int32_t>(c.greedy.begin(), c.greedy.begin() + 24));
}

TEST_F(DemoEngine, PromptLogprobsComeWithTheFirstEventAndMatchChunking) {
  std::vector<double> sums;
  for (const int32_t chunk : {0, 5}) {
    config_.max_prefill_chunk_tokens = chunk;
    open();
    class First final : public TokenSink {
     public:
      void on_event(const TokenEvent& e) override {
        if (!e.prompt_logprobs.empty()) got.set_value(e.prompt_logprobs);
      }
      std::promise<std::vector<TokenLogprob>> got;
    };
    auto sink = std::make_shared<First>();
    Request request;
    std::vector<int32_t> prompt = cases_.front().prompt;
    prompt.insert(prompt.end(), cases_.front().greedy.begin(), cases_.front().greedy.begin() + 20);
    request.prompt = prompt;
    request.sampling = greedy(0);
    request.sampling.prompt_logprobs = 1;
    ASSERT_TRUE(engine_->submit(std::move(request), sink).has_value());
    const std::vector<TokenLogprob> logprobs = sink->got.get_future().get();
    ASSERT_EQ(logprobs.size(), prompt.size());
    EXPECT_TRUE(std::isnan(logprobs[0].logprob));
    double sum = 0;
    for (size_t i = 1; i < prompt.size(); ++i) {
      EXPECT_EQ(logprobs[i].token_id, prompt[i]);
      EXPECT_EQ(logprobs[i].top.front().first, prompt[i]) << "the golden tokens are the likeliest";
      sum += logprobs[i].logprob;
    }
    sums.push_back(sum);
  }
  EXPECT_DOUBLE_EQ(sums[0], sums[1]);
}

// A policy that keeps what attention looked at cannot compute that again: its blocks wait on the host, its
// state in the executor, and it goes on as if nothing had been. Its reader stops, and two others want its
// room.
TEST_F(DemoEngine, PoliciesThatChooseByScoresGoOnAfterASwapAsIfTheyHadStayed) {
  const Result<ModelSpec> spec = read_model_config(config_.model_dir);
  ASSERT_TRUE(spec.has_value()) << spec.error().message;
  config_.dtype = "f32";
  config_.max_context_tokens = 256;
  config_.block_tokens = 8;
  config_.swap_space_bytes = 16 << 20;
  for (const char* policy : {"tova:budget=40", "h2o:heavy=20,recent=20"}) {
    SCOPED_TRACE(policy);
    std::vector<std::vector<int32_t>> ids;
    std::vector<KvDump> dumps;
    for (const bool tight : {false, true}) {
      config_.kv_cache_bytes = (tight ? 40 : 400) * 8 * spec->kv_bytes_per_token(DType::kF32);
      open_over_committed();
      Request request;
      request.prompt = cases_.front().prompt;
      request.sampling = greedy(120);
      request.kv_policy = policy;
      request.dump_kv = true;
      request.priority = 1;
      auto sink = std::make_shared<Collector>();
      const Result<RequestId> id = engine_->submit(std::move(request), sink);
      ASSERT_TRUE(id.has_value()) << id.error().message;
      while (tight && sink->num_ids() < 60) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      if (tight) engine_->set_paused(*id, true);
      std::vector<std::shared_ptr<Collector>> others;
      for (int i = 0; i < 2; ++i) others.push_back(submit({100 + i, 200 + i, 300 + i}, greedy(200)));
      for (const auto& other : others) other->wait();
      engine_->set_paused(*id, false);
      sink->wait();
      ids.push_back(sink->ids());
      dumps.push_back(sink->last().kv_dump);
      EXPECT_EQ(engine_->stats().swap_ins_total > 0, tight);
    }
    EXPECT_EQ(ids[0], ids[1]);
    EXPECT_EQ(dumps[0], dumps[1]);
  }
}

TEST_F(DemoEngine, ACancelledRequestFreesItsBlocks) {
  open();
  const auto sink = submit(cases_.front().prompt, greedy(2000));
  const Result<RequestId> none = engine_->submit(Request{.prompt = std::vector<int32_t>{1 << 30}}, sink);
  EXPECT_FALSE(none.has_value());
  engine_->abort(1);
  sink->wait();
  EXPECT_EQ(sink->finish(), FinishReason::kCancelled);
  engine_->drain(1000);
  expect_nothing_held(*engine_);
}

TEST_F(DemoEngine, TextGoesInAndComesOutWhereTheBuildHasTokenizers) {
  open();
  if (!engine_->model().has_tokenizer) GTEST_SKIP() << "this build has no tokenizers";
  auto sink = std::make_shared<Collector>();
  Request request;
  request.prompt = std::string("Once upon a time, there was a little girl named");
  request.sampling = greedy(40);
  request.sampling.stop = {"grandma"};
  ASSERT_TRUE(engine_->submit(std::move(request), sink).has_value());
  sink->wait();
  EXPECT_EQ(sink->finish(), FinishReason::kStop);
  EXPECT_EQ(sink->text(),
            " Lily. She loved to play outside and explore the world around her. One day, she went to her ");
}

}  // namespace
}  // namespace quire::golden
