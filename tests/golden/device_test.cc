// The whole engine on a CUDA device: the goldens of the shared folder alone, together, in chunks, from the
// cache, as four samples and preempted. On the host shim by default, where a few tokens of four cases of each
// model must do; QUIRE_TEST_DEVICE=cuda runs all cases whole on a card. Then every family of models.
#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>

#include "src/engine/threaded_engine.h"
#include "src/model/config.h"
#include "tests/golden/engine_rig.h"

namespace quire::golden {
namespace {

// A step that comes out other than stored ends the comparison of a case, and must be one that the precision may turn: its
// margin between the two likeliest logits is no larger. With 16 bits the numbers themselves are compared as well, in
// device_noise_test.cc.
constexpr double kF32Margin = 1e-3;
constexpr size_t kShimCases = 4, kShimTokens = 8;

std::string device_name() {
  return env_or("QUIRE_TEST_DEVICE", "cuda-host");
}
bool on_shim() {
  return device_name() == "cuda-host";
}

const std::vector<std::string> kAllModels = {
    "stories260K",      "stories260K-hd128-bf16",     "tinystories-3.5M-qwen3",
    "babyllama-tok105", "babyllama-tok105-hd64-bf16", "recall-9M"};

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
  }
  // Of a step that may come out otherwise. Where float32 is asked for, none may.
  double margin() const {
    if (config_.dtype == "f32") return 0;
    return engine_->model().dtype == "f32" ? kF32Margin : kMostBf16Noise;
  }
  std::shared_ptr<Collector> submit(const Case& c, int32_t n = 1) {
    SamplingParams sampling = greedy(static_cast<int32_t>(c.greedy.size()));
    sampling.n = n;
    return golden::submit(*engine_, c.prompt, sampling);
  }
  void expect_golden(const Case& c, const std::vector<int32_t>& ids, size_t index) const {
    ASSERT_EQ(ids.size(), c.greedy.size()) << "case " << index;
    const auto [got, stored] = std::mismatch(ids.begin(), ids.end(), c.greedy.begin());
    if (got == ids.end()) return;
    const auto token = static_cast<size_t>(got - ids.begin());
    EXPECT_LT(c.margins[token], margin())
        << "case " << index << " token " << token << " is " << *got << ", not " << *stored;
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
};

TEST_P(DeviceGoldens, AloneTogetherAndFromTheCache) {
  config_.prefix_cache = false;
  ASSERT_NO_FATAL_FAILURE(open());
  run_alone();
  run_together();
  EXPECT_EQ(engine_->stats().cached_tokens_total, 0);
  config_.prefix_cache = true;
  ASSERT_NO_FATAL_FAILURE(open());
  run_together();
  run_together();  // every prompt is cached now
  EXPECT_GT(engine_->stats().cached_tokens_total, 0);
}

TEST_P(DeviceGoldens, InChunksOfThree) {
  config_.max_prefill_chunk_tokens = 3;
  ASSERT_NO_FATAL_FAILURE(open());
  run_together();
}

TEST_P(DeviceGoldens, AsFourSamplesThatShareTheirPrompt) {
  ASSERT_NO_FATAL_FAILURE(open());
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

// All six models in float32, whose smallest margin of a step, 3.9e-4, is far above its error: not a token may differ.
class DeviceGoldensInF32 : public DeviceGoldens {
 protected:
  void SetUp() override {
    DeviceGoldens::SetUp();
    if (IsSkipped()) return;
    cases_ = read_cases(goldens_path());
    if (on_shim()) take_closest(2, 16);
    config_.dtype = "f32";
    config_.max_prefill_chunk_tokens = 7;
  }
  // Those short enough for the shim whose margins over so many tokens are the smallest: what the least error turns.
  void take_closest(size_t cases, size_t tokens) {
    std::erase_if(cases_, [](const Case& c) { return c.prompt.size() > 40; });
    const auto margin_of = [&](const Case& c) {
      return *std::min_element(c.margins.begin(), c.margins.begin() + static_cast<std::ptrdiff_t>(tokens));
    };
    std::ranges::sort(cases_, {}, margin_of);
    cases_.resize(cases);
    for (Case& c : cases_) c.greedy.resize(tokens);
  }
};

TEST_P(DeviceGoldensInF32, EveryTokenIsTheStoredOne) {
  ASSERT_NO_FATAL_FAILURE(open());
  run_together();
  if (!on_shim()) run_alone();
}

template <typename Name>
std::string name_of(const ::testing::TestParamInfo<Name>& info) {
  std::string name = info.param;
  for (char& c : name)
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  return name;
}
INSTANTIATE_TEST_SUITE_P(Models, DeviceGoldens, ::testing::ValuesIn(kAllModels), name_of<std::string>);
INSTANTIATE_TEST_SUITE_P(Models, DeviceGoldensInF32, ::testing::ValuesIn(kAllModels), name_of<std::string>);

// Every family and rotary kind: the ids of families_test.cc, with the prompt whole and in chunks. In float32, where no step may differ.
class DeviceFamilies : public ::testing::TestWithParam<const char*> {};

TEST_P(DeviceFamilies, GreedyIdsAreThoseOfTransformers) {
  const std::string dir = root_dir() + "/tests/golden/families/" + GetParam();
  std::ifstream file(dir + "/golden.json");
  ASSERT_TRUE(file) << dir;
  const nlohmann::json golden = nlohmann::json::parse(file);
  const auto ids = golden["greedy_ids"].get<std::vector<int32_t>>();
  for (const int32_t chunk : {0, 7}) {
    EngineConfig config;
    config.model_dir = dir;
    config.device = device_name();
    config.dtype = "f32";
    config.max_sequences = 8;
    config.kv_cache_bytes = 16 << 20;
    config.max_prefill_chunk_tokens = chunk;
    config.check_invariants = true;
    Result<std::unique_ptr<Engine>> engine = Engine::open(config);
    ASSERT_TRUE(engine.has_value()) << engine.error().message;
    const auto sink = quire::golden::submit(**engine, golden["prompt_ids"].get<std::vector<int32_t>>(),
                                            greedy(static_cast<int32_t>(ids.size())));
    sink->wait();
    EXPECT_EQ(sink->ids(), ids) << "chunks of " << chunk;
  }
}

constexpr const char* kFamilies[] = {
    "llama-mha-untied", "llama-mqa-bias", "mistral-window", "mistral-headdim", "qwen2",
    "qwen2-window",     "qwen3",          "rope-linear",    "rope-dynamic",    "rope-yarn",
    "rope-yarn-mscale", "rope-llama3"};
INSTANTIATE_TEST_SUITE_P(Models, DeviceFamilies, ::testing::ValuesIn(kFamilies), name_of<const char*>);

}  // namespace
}  // namespace quire::golden
