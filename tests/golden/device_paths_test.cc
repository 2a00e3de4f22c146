// What device_test.cc's goldens do not reach, on a CUDA device beside the CPU back end: beams, logprobs of prompts, prefixes that come back from host
// memory and disk, KV policies whose sequences are swapped. Float32, where both compute the same to some 1e-5. On the host shim by default;
// QUIRE_TEST_DEVICE=cuda runs it on a card.
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "src/engine/threaded_engine.h"
#include "src/model/config.h"
#include "tests/golden/stories_rig.h"

namespace quire::golden {
namespace {

struct Ask {
  std::vector<int32_t> prompt;
  SamplingParams sampling;
  std::string policy;
};

class PathSink final : public TokenSink {
 public:
  void on_event(const TokenEvent& event) override {
    if (!event.prompt_logprobs.empty()) prompt_logprobs = event.prompt_logprobs;
    collector.on_event(event);
  }
  Collector collector;
  std::vector<TokenLogprob> prompt_logprobs;
};

void expect_same_logprobs(const std::vector<TokenLogprob>& got, const std::vector<TokenLogprob>& wanted) {
  ASSERT_EQ(got.size(), wanted.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].token_id, wanted[i].token_id) << "token " << i;
    EXPECT_EQ(std::isnan(got[i].logprob), std::isnan(wanted[i].logprob)) << "token " << i;
    if (!std::isnan(wanted[i].logprob)) {
      EXPECT_NEAR(got[i].logprob, wanted[i].logprob, 1e-3) << "token " << i;
    }
    ASSERT_EQ(got[i].top.size(), wanted[i].top.size()) << "token " << i;
    for (size_t k = 0; k < got[i].top.size(); ++k)
      EXPECT_NEAR(got[i].top[k].second, wanted[i].top[k].second, 1e-3) << "token " << i << " rank " << k;
  }
}

class DevicePaths : public StoriesTest {
 protected:
  void SetUp() override {
    StoriesTest::SetUp();
    compare_in_f32();
    config_.max_sequences = 16;
    config_.max_step_tokens = 128;
    config_.max_context_tokens = 128;
    config_.kv_cache_bytes = 4 << 20;
  }

  void open(const std::string& device) {
    engine_.reset();
    config_.device = device;
    Result<EngineParts> parts = open_parts(config_);
    ASSERT_TRUE(parts.has_value()) << parts.error().message;
    if (over_committed_) parts->core.reserve = {.least = 0, .rise = 0, .decay = 0};
    // Such short prompts are cheaper to compute than to fetch.
    parts->core.preemption_costs.link_bytes_per_s = parts->core.preemption_costs.disk_bytes_per_s = 1e15;
    parts->core.preemption_costs.transfer_us = 0;
    engine_ = std::move(ThreadedEngine::start(std::move(*parts))).value();
  }
  // All of them come before a step begins, so that what they do to each other is the same every time; or each when the one before has ended.
  std::vector<std::shared_ptr<PathSink>> run(const std::vector<Ask>& asks, bool one_by_one = false) {
    std::vector<std::shared_ptr<PathSink>> sinks;
    std::vector<Submission> batch;
    for (const Ask& ask : asks) {
      sinks.push_back(std::make_shared<PathSink>());
      Submission& submission = batch.emplace_back();
      submission.request.prompt = ask.prompt;
      submission.request.sampling = ask.sampling;
      submission.request.kv_policy = ask.policy;
      submission.sink = sinks.back();
      if (!one_by_one) continue;
      submit(std::exchange(batch, {}));
      sinks.back()->collector.wait();
    }
    submit(std::move(batch));
    for (const auto& sink : sinks) sink->collector.wait();
    return sinks;
  }
  void submit(std::vector<Submission> batch) {
    std::vector<std::shared_ptr<TokenSink>> sinks;
    for (const Submission& s : batch) sinks.push_back(s.sink);
    const auto ids = engine_->submit_together(std::move(batch));
    if (ids) return;
    for (const auto& sink : sinks) static_cast<PathSink&>(*sink).collector.refuse(ids.error());
  }
  static void expect_same(const std::vector<std::shared_ptr<PathSink>>& got,
                          const std::vector<std::shared_ptr<PathSink>>& wanted,
                          const std::vector<Ask>& asks) {
    for (size_t i = 0; i < asks.size(); ++i) {
      SCOPED_TRACE("request " + std::to_string(i) + " " + asks[i].policy);
      for (int32_t n = 0; n < asks[i].sampling.n; ++n) {
        EXPECT_EQ(got[i]->collector.ids(n), wanted[i]->collector.ids(n)) << "sequence " << n;
        EXPECT_FALSE(wanted[i]->collector.ids(n).empty());
        expect_same_logprobs(got[i]->collector.logprobs(n), wanted[i]->collector.logprobs(n));
      }
      expect_same_logprobs(got[i]->prompt_logprobs, wanted[i]->prompt_logprobs);
    }
  }
  void expect_the_cpus(const std::vector<Ask>& asks) {
    open("cpu");
    const auto wanted = run(asks);
    open(device_);
    expect_same(run(asks), wanted, asks);
    expect_nothing_held(*engine_);
  }

  bool over_committed_ = false;
  std::unique_ptr<Engine> engine_;
};

Ask beams(int32_t width, int32_t n, int32_t length) {
  Ask ask{.prompt = prompt_of(length, width)};
  ask.sampling = greedy(6);
  ask.sampling.beam_width = width;
  ask.sampling.n = n;
  ask.sampling.logprobs = 2;
  return ask;
}

TEST_F(DevicePaths, BeamsAreTheCpusBesideOthers) {
  expect_the_cpus(
      {beams(2, 2, 9), beams(4, 3, 21), {.prompt = prompt_of(5, 1), .sampling = greedy(8)}, beams(3, 1, 1)});
}

TEST_F(DevicePaths, LogprobsOfPromptsAreTheCpusInChunks) {
  config_.max_prefill_chunk_tokens = 7;
  std::vector<Ask> asks;
  for (const int32_t length : {1, 17, 40}) {
    asks.push_back({.prompt = prompt_of(length, length), .sampling = greedy(3)});
    asks.back().sampling.prompt_logprobs = 3;
    asks.back().sampling.logprobs = 1;
  }
  asks.push_back({.prompt = prompt_of(12, 2), .sampling = greedy(8)});
  asks.push_back({.prompt = prompt_of(30, 3), .sampling = greedy(0)});  // scored alone
  asks.back().sampling.prompt_logprobs = 0;
  asks.back().sampling.n = 1;
  open("cpu");
  const auto wanted = run(asks);
  EXPECT_EQ(wanted.back()->prompt_logprobs.size(), 30u);
  open(device_);
  const auto got = run(asks);
  for (size_t i = 0; i < asks.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(got[i]->collector.ids(), wanted[i]->collector.ids());
    expect_same_logprobs(got[i]->prompt_logprobs, wanted[i]->prompt_logprobs);
  }
}

// Layers that see all and layers with a window, whose decode has a plan each: tokens as they were decoded, alone and beside
// others, have the logprobs that they have in a prompt, where no plan is made. bf16 and a head size that decode's own kernel takes.
// Rounding to bf16 on the two ways moves a logprob by up to 0.018 on the shim and 0.024 on an H100; one plan for all layers, by up to 1.8.
TEST_F(DevicePaths, LayersOfTwoWindowsHaveAPlanEach) {
  std::ifstream source(root_dir() + "/tests/golden/families/qwen2-window/config.json");
  nlohmann::json model = nlohmann::json::parse(source);
  model["hidden_size"] = 256;  // heads of 64
  model["num_hidden_layers"] = 4;
  model["layer_types"] = {"full_attention", "sliding_attention", "full_attention", "sliding_attention"};
  std::string dir = testing::TempDir() + "quire_two_windows_XXXXXX";
  ASSERT_NE(mkdtemp(dir.data()), nullptr);
  std::ofstream(dir + "/config.json") << model.dump();
  config_.model_dir = dir;
  config_.weights = "random:5";
  config_.dtype = "bf16";
  open(device_);
  std::vector<Ask> asks;
  for (const int32_t length : {3, 20, 41}) {
    asks.push_back({.prompt = prompt_of(length, length), .sampling = greedy(30)});
    for (int32_t& id : asks.back().prompt) id %= 128;
    asks.back().sampling.logprobs = 0;
  }
  const auto decoded = run(asks);
  for (size_t i = 0; i < asks.size(); ++i) {
    SCOPED_TRACE(asks[i].prompt.size());
    const std::vector<int32_t> ids = decoded[i]->collector.ids();
    const auto& logprobs = decoded[i]->collector.logprobs();
    ASSERT_GT(ids.size(), 12u);
    Ask again{.prompt = asks[i].prompt, .sampling = greedy(1)};
    again.prompt.insert(again.prompt.end(), ids.begin(), ids.end());
    again.sampling.prompt_logprobs = 0;
    const auto scored = run({again});
    for (size_t k = 0; k < ids.size(); ++k)
      EXPECT_NEAR(logprobs[k].logprob, scored[0]->prompt_logprobs[asks[i].prompt.size() + k].logprob, 0.1)
          << k;
  }
  std::filesystem::remove_all(dir);
}

// Six prompts through a cache that holds two or three, three times over.
TEST_F(DevicePaths, PrefixesComeBackFromHostMemoryAndDisk) {
  const Result<ModelSpec> spec = read_model_config(config_.model_dir);
  ASSERT_TRUE(spec.has_value()) << spec.error().message;
  config_.block_tokens = 8;
  config_.kv_cache_bytes = 16 * 8 * spec->kv_bytes_per_token(DType::kF32);
  std::vector<Ask> asks;
  for (int32_t i = 0; i < 6; ++i) asks.push_back({.prompt = prompt_of(41 + i, i), .sampling = greedy(4)});
  open("cpu");
  const auto wanted = run(asks, true);
  std::string dir = testing::TempDir() + "quire_device_paths_XXXXXX";
  ASSERT_NE(mkdtemp(dir.data()), nullptr);
  for (const bool disk : {false, true}) {
    SCOPED_TRACE(disk ? "disk" : "host");
    config_.host_kv_bytes = disk ? 0 : 8 * config_.kv_cache_bytes;
    config_.disk_kv_dir = disk ? dir : "";
    config_.disk_kv_bytes = disk ? 32 << 20 : 0;
    open(device_);
    for (int round = 0; round < 3; ++round) expect_same(run(asks, true), wanted, asks);
    const EngineStats stats = engine_->stats();
    EXPECT_GT((disk ? stats.disk : stats.host).hit_tokens_total, 0);
    EXPECT_EQ((disk ? stats.disk : stats.host).read_failures_total, 0);
    expect_nothing_held(*engine_);
  }
  engine_.reset();
  std::filesystem::remove_all(dir);
}

// The CPU has room for all; the device for two or three, and swaps.
TEST_F(DevicePaths, PoliciesGoOnAfterASwap) {
  const Result<ModelSpec> spec = read_model_config(config_.model_dir);
  ASSERT_TRUE(spec.has_value()) << spec.error().message;
  config_.block_tokens = 8;
  config_.max_queued_kv_factor = 1000;
  std::vector<Ask> asks;
  int32_t seed = 0;
  for (const char* policy :
       {"", "tova:budget=24", "", "h2o:heavy=12,recent=11", "", "window:size=20", "stream:sinks=4,recent=20"})
    asks.push_back(
        {.prompt = prompt_of(20, ++seed), .sampling = greedy(policy[0] == 0 ? 40 : 16), .policy = policy});
  open("cpu");
  const auto wanted = run(asks);
  config_.kv_cache_bytes = 16 * 8 * spec->kv_bytes_per_token(DType::kF32);
  config_.swap_space_bytes = 8 * config_.kv_cache_bytes;
  config_.preemption_mode = "swap";
  over_committed_ = true;
  open(device_);
  expect_same(run(asks), wanted, asks);
  EXPECT_GT(engine_->stats().swap_ins_total, 0);
  EXPECT_EQ(engine_->stats().swap_failures_total, 0);
  expect_nothing_held(*engine_);
}

}  // namespace
}  // namespace quire::golden
