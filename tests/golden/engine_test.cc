// The whole engine on the demo model: Engine::open, requests through the queue, tokens out of the delivery
// thread, compared with the float64 goldens of the shared folder, alone and together, with small chunks, with
// prefix hits, and with a cache so small that sequences are preempted. What a precision may flip (a step with
// a margin below kMargin) ends the comparison of a case.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <future>
#include <map>
#include <mutex>
#include <thread>

#include <nlohmann/json.hpp>

#include "quire/engine.h"
#include "src/engine/threaded_engine.h"

namespace quire {
namespace {

constexpr double kMargin = 1e-3;

std::string env_or(const char* name, const std::string& otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : value;
}
std::string root() {
  return env_or("QUIRE_ROOT", ".");
}

// Collects a request's events; done() once the last has come.
class Collector final : public TokenSink {
 public:
  void on_event(const TokenEvent& event) override {
    const std::lock_guard lock(mutex_);
    auto& ids = ids_[event.index];
    ids.insert(ids.end(), event.token_ids.begin(), event.token_ids.end());
    text_[event.index] += event.text;
    if (event.finish != FinishReason::kNone) finish_[event.index] = event.finish;
    if (event.error) error_ = event.error->message;
    EXPECT_FALSE(done_) << "an event after the last";
    done_ = event.last;
    if (event.last) last_ = event;
    if (done_) changed_.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, std::chrono::seconds(120), [this] { return done_; }))
        << "no last event";
    EXPECT_EQ(error_, "");
  }
  std::vector<int32_t> ids(int32_t index = 0) { return ids_[index]; }
  std::string text(int32_t index = 0) { return text_[index]; }
  FinishReason finish(int32_t index = 0) { return finish_[index]; }
  const TokenEvent& last() const { return last_; }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<int32_t, std::vector<int32_t>> ids_;
  std::map<int32_t, std::string> text_;
  std::map<int32_t, FinishReason> finish_;
  TokenEvent last_;
  std::string error_;
  bool done_ = false;
};

struct Case {
  std::vector<int32_t> prompt, greedy;
  std::vector<double> margins;
};

std::vector<Case> read_cases(const std::string& path) {
  std::ifstream file(path);
  const nlohmann::json goldens = nlohmann::json::parse(file);
  std::vector<Case> cases;
  for (const auto& c : goldens["cases"])
    cases.push_back({c["prompt_ids"].get<std::vector<int32_t>>(), c["greedy_ids"].get<std::vector<int32_t>>(),
                     c["margins"].get<std::vector<double>>()});
  return cases;
}

void expect_golden(const Case& c, const std::vector<int32_t>& ids, size_t index) {
  ASSERT_EQ(ids.size(), c.greedy.size()) << "case " << index;
  for (size_t i = 0; i < ids.size() && c.margins[i] >= kMargin; ++i)
    ASSERT_EQ(ids[i], c.greedy[i]) << "case " << index << " token " << i;
}

class DemoEngine : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string path = env_or("QUIRE_SHARED", root() + "/../shared") + "/goldens/recall-9M.json";
    if (!std::filesystem::exists(path))
      GTEST_SKIP() << "no goldens: " << path << " is not there (set QUIRE_SHARED)";
    cases_ = read_cases(path);
    config_.model_dir = root() + "/models/demo";
    config_.device = "cpu";
    config_.max_sequences = 32;
    config_.max_step_tokens = 512;
    config_.check_invariants = true;
  }
  void open() {
    Result<std::unique_ptr<Engine>> opened = Engine::open(config_);
    ASSERT_TRUE(opened.has_value()) << opened.error().message;
    engine_ = std::move(*opened);
  }
  std::shared_ptr<Collector> submit(const std::vector<int32_t>& prompt, SamplingParams sampling,
                                    bool bypass = false) {
    auto sink = std::make_shared<Collector>();
    Request request;
    request.prompt = prompt;
    request.sampling = std::move(sampling);
    request.bypass_prefix_cache = bypass;
    const Result<RequestId> id = engine_->submit(std::move(request), sink);
    EXPECT_TRUE(id.has_value()) << id.error().message;
    return sink;
  }
  static SamplingParams greedy(int32_t max_tokens) {
    SamplingParams p;
    p.temperature = 0;
    p.max_tokens = max_tokens;
    p.ignore_eos = true;
    return p;
  }
  std::shared_ptr<Collector> submit(const Case& c, bool bypass = false) {
    return submit(c.prompt, greedy(static_cast<int32_t>(c.greedy.size())), bypass);
  }
  // A step that was under way when the last request ended has to run first.
  void expect_nothing_held() {
    for (int i = 0; i < 500 && engine_->stats().blocks_held > 0; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    EXPECT_EQ(engine_->stats().blocks_held, 0);
  }
  void run_alone() {
    for (size_t i = 0; i < cases_.size(); ++i) {
      const auto sink = submit(cases_[i]);
      sink->wait();
      expect_golden(cases_[i], sink->ids(), i);
    }
  }
  void run_together() {
    std::vector<std::shared_ptr<Collector>> sinks;
    for (const Case& c : cases_) sinks.push_back(submit(c));
    for (size_t i = 0; i < cases_.size(); ++i) {
      sinks[i]->wait();
      expect_golden(cases_[i], sinks[i]->ids(), i);
    }
  }

  std::vector<Case> cases_;
  EngineConfig config_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(DemoEngine, GivesTheGoldenTokensAloneTogetherAndFromTheCache) {
  open();
  run_alone();
  run_together();  // every prompt is cached now, and whole outputs too
  EXPECT_GT(engine_->stats().cached_tokens_total, 0);
}

TEST_F(DemoEngine, GivesTheGoldenTokensInChunksOfOneAndSeven) {
  for (const int32_t chunk : {1, 7}) {
    config_.max_prefill_chunk_tokens = chunk;
    open();
    run_together();
  }
}

TEST_F(DemoEngine, GivesTheGoldenTokensWhenPreempted) {
  const int64_t token_bytes = 2ll * 6 * 4 * 64 * 4;  // K and V, 6 layers, 4 heads of 64, f32
  config_.max_context_tokens = 256;
  config_.kv_cache_bytes = token_bytes * 288;
  Result<EngineParts> parts = open_parts(config_);
  ASSERT_TRUE(parts.has_value()) << parts.error().message;
  parts->core.reserve = {.least = 0, .rise = 0, .decay = 0};  // over-commit as far as it goes
  engine_ = std::move(ThreadedEngine::start(std::move(*parts))).value();
  for (int round = 0; round < 2; ++round) {
    std::vector<std::shared_ptr<Collector>> sinks;
    std::vector<size_t> which;
    for (size_t i = 0; i < cases_.size(); ++i)
      for (int copy = 0; copy < 3; ++copy)
        if (cases_[i].prompt.size() + cases_[i].greedy.size() <= 256)
          sinks.push_back(submit(cases_[i])), which.push_back(i);
    for (size_t k = 0; k < sinks.size(); ++k) {
      sinks[k]->wait();
      expect_golden(cases_[which[k]], sinks[k]->ids(), which[k]);
    }
  }
  expect_nothing_held();
  EXPECT_GT(engine_->stats().preemptions_total, 0);
}

TEST_F(DemoEngine, FourGreedySamplesOfOnePromptAreEqualAndShareIt) {
  open();
  const Case& longest = *std::max_element(cases_.begin(), cases_.end(), [](const Case& a, const Case& b) {
    return a.prompt.size() < b.prompt.size();
  });
  SamplingParams p = greedy(static_cast<int32_t>(longest.greedy.size()));
  p.n = 4;
  const auto sink = submit(longest.prompt, p);
  sink->wait();
  for (int32_t i = 0; i < 4; ++i) expect_golden(longest, sink->ids(i), i);
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

TEST_F(DemoEngine, ACancelledRequestFreesItsBlocks) {
  open();
  const auto sink = submit(cases_.front().prompt, greedy(2000));
  const Result<RequestId> none = engine_->submit(Request{.prompt = std::vector<int32_t>{1 << 30}}, sink);
  EXPECT_FALSE(none.has_value());
  engine_->abort(1);
  sink->wait();
  EXPECT_EQ(sink->finish(), FinishReason::kCancelled);
  engine_->drain(1000);
  expect_nothing_held();
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
}  // namespace quire
