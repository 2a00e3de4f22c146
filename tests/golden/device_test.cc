// The whole engine on a CUDA device: the goldens of the shared folder alone, together, in chunks, from the
// cache, as four samples and preempted. On the host shim by default, where a few tokens of the small models
// must do; QUIRE_TEST_DEVICE=cuda runs all cases of all models on a card.
#include <algorithm>
#include <cctype>
#include <filesystem>

#include "src/engine/threaded_engine.h"
#include "src/model/config.h"
#include "tests/golden/engine_rig.h"

namespace quire::golden {
namespace {

// What a precision may flip, a step with a smaller margin between the two likeliest logits, ends the
// comparison of a case.
constexpr double kF32Margin = 1e-3;
// Less than bf16 itself may turn: device_noise_test.cc measures up to 0.41 on recall-9M, and which step turns depends on
// what ran together. The first differences of most runs on an H100 stood at margins up to 0.074, some at 0.127.
constexpr double kBf16Margin = 0.1;
constexpr size_t kShimCases = 4, kShimTokens = 8;

std::string device_name() {
  return env_or("QUIRE_TEST_DEVICE", "cuda-host");
}
bool on_shim() {
  return device_name() == "cuda-host";
}

std::vector<std::string> model_names() {
  std::vector<std::string> names = {"stories260K", "stories260K-hd128-bf16", "tinystories-3.5M-qwen3"};
  if (!on_shim()) names.insert(names.end(), {"babyllama-tok105", "babyllama-tok105-hd64-bf16", "recall-9M"});
  return names;
}

class DeviceGoldens : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(goldens_path()))
      GTEST_SKIP() << "no goldens: " << goldens_path() << " is not there (set QUIRE_SHARED)";
    take_cases(kShimCases, kShimTokens);
    config_.model_dir = shared_data() + "/models/" + GetParam();
    config_.device = device_name();
    config_.max_sequences = 32;
    config_.max_step_tokens = 256;
    config_.kv_cache_bytes = 64 << 20;
    config_.check_invariants = true;
  }
  static std::string goldens_path() { return shared_data() + "/goldens/" + GetParam() + ".json"; }
  // All of them, or on the shim the first `cases` cut to `tokens`.
  void take_cases(size_t cases, size_t tokens) {
    cases_ = read_cases(goldens_path());
    if (!on_shim()) return;
    cases_.resize(std::min(cases_.size(), cases));
    for (Case& c : cases_) c.greedy.resize(std::min(c.greedy.size(), tokens));
  }
  void open() {
    engine_.reset();
    Result<std::unique_ptr<Engine>> opened = Engine::open(config_);
    ASSERT_TRUE(opened.has_value()) << opened.error().message;
    engine_ = std::move(*opened);
    margin_ = engine_->model().dtype == "f32" ? kF32Margin : kBf16Margin;
  }
  std::shared_ptr<Collector> submit(const Case& c, int32_t n = 1) {
    SamplingParams sampling = greedy(static_cast<int32_t>(c.greedy.size()));
    sampling.n = n;
    return golden::submit(*engine_, c.prompt, sampling);
  }
  void expect_golden(const Case& c, const std::vector<int32_t>& ids, size_t index) const {
    ASSERT_EQ(ids.size(), c.greedy.size()) << "case " << index;
    for (size_t i = 0; i < ids.size() && c.margins[i] >= margin_; ++i)
      ASSERT_EQ(ids[i], c.greedy[i]) << "case " << index << " token " << i;
  }
  void run_alone() {
    for (size_t i = 0; i < cases_.size(); ++i) {
      const auto sink = submit(cases_[i]);
      sink->wait();
      expect_golden(cases_[i], sink->ids(), i);
    }
  }
  void run_together(int copies = 1) {
    std::vector<std::shared_ptr<Collector>> sinks;
    for (int copy = 0; copy < copies; ++copy)
      for (const Case& c : cases_) sinks.push_back(submit(c));
    for (size_t k = 0; k < sinks.size(); ++k) {
      sinks[k]->wait();
      expect_golden(cases_[k % cases_.size()], sinks[k]->ids(), k % cases_.size());
    }
  }

  std::vector<Case> cases_;
  EngineConfig config_;
  std::unique_ptr<Engine> engine_;
  double margin_ = kF32Margin;
};

TEST_P(DeviceGoldens, AloneTogetherAndFromTheCache) {
  config_.prefix_cache = false;
  open();
  run_alone();
  run_together();
  EXPECT_EQ(engine_->stats().cached_tokens_total, 0);
  config_.prefix_cache = true;
  open();
  run_together();
  run_together();  // every prompt is cached now
  EXPECT_GT(engine_->stats().cached_tokens_total, 0);
}

TEST_P(DeviceGoldens, InChunksOfThree) {
  config_.max_prefill_chunk_tokens = 3;
  open();
  run_together();
}

TEST_P(DeviceGoldens, AsFourSamplesThatShareTheirPrompt) {
  open();
  const Case& longest = *std::max_element(cases_.begin(), cases_.end(), [](const Case& a, const Case& b) {
    return a.prompt.size() < b.prompt.size();
  });
  const auto sink = submit(longest, 4);
  sink->wait();
  for (int32_t i = 0; i < 4; ++i) expect_golden(longest, sink->ids(i), static_cast<size_t>(i));
  EXPECT_GE(sink->last().kv.blocks_shared_peak,
            static_cast<int32_t>(longest.prompt.size()) / config_.block_tokens);
}

// Room for the longest case and a few blocks, over-committed as far as it goes: sequences give way and are
// computed again.
TEST_P(DeviceGoldens, WhenSequencesArePreempted) {
  const Result<ModelSpec> spec = read_model_config(config_.model_dir);
  ASSERT_TRUE(spec.has_value()) << spec.error().message;
  take_cases(2, 30);
  size_t longest = 0;
  for (const Case& c : cases_) longest = std::max(longest, c.prompt.size() + c.greedy.size());
  config_.block_tokens = 8;
  const int64_t blocks = static_cast<int64_t>(longest) / config_.block_tokens + 2;
  config_.kv_cache_bytes = blocks * config_.block_tokens * spec->kv_bytes_per_token(spec->checkpoint_dtype);
  config_.max_context_tokens = static_cast<int32_t>(longest) + 1;
  config_.max_queued_kv_factor = 1000;
  Result<EngineParts> parts = open_parts(config_);
  ASSERT_TRUE(parts.has_value()) << parts.error().message;
  parts->core.reserve = {.least = 0, .rise = 0, .decay = 0};
  engine_.reset();
  engine_ = std::move(ThreadedEngine::start(std::move(*parts))).value();
  margin_ = engine_->model().dtype == "f32" ? kF32Margin : kBf16Margin;
  run_together(2);
  EXPECT_GT(engine_->stats().preemptions_total, 0);

  // The same by swap.
  config_.swap_space_bytes = 4 * config_.kv_cache_bytes;
  config_.preemption_mode = "swap";
  parts = open_parts(config_);
  ASSERT_TRUE(parts.has_value()) << parts.error().message;
  parts->core.reserve = {.least = 0, .rise = 0, .decay = 0};
  engine_.reset();
  engine_ = std::move(ThreadedEngine::start(std::move(*parts))).value();
  run_together(2);
  EXPECT_GT(engine_->stats().swap_ins_total, 0);
  EXPECT_EQ(engine_->stats().swap_blocks_held, 0);
}

INSTANTIATE_TEST_SUITE_P(Models, DeviceGoldens, ::testing::ValuesIn(model_names()), [](const auto& info) {
  std::string name = info.param;
  for (char& c : name)
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  return name;
});

}  // namespace
}  // namespace quire::golden
