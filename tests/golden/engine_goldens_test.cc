// Every model of the shared goldens, and the tiny one of each family and rotary kind, through the whole engine: the stored greedy tokens,
// computed in float64 with no cache, must come out whatever the engine does with a request: alone, in mixed batches of eight
// (thirteen requests through eight places, so prefills join running decodes) with prompts cut in chunks of 1,
// 7 and 64 tokens, with an empty prefix cache, a full one and none, and when sequences are preempted and
// computed again. Activations and cache are f32: the smallest margin of the goldens, 3.9e-4, is far above its
// error, so no step may differ. Invariants are audited after every step. QUIRE_TEST_DEVICE: cpu, cuda or cuda-host; on the host
// shim the answers are cut to kShimTokens, since it runs some hundred tokens a second.
#include <algorithm>
#include <cctype>
#include <filesystem>

#include "src/engine/threaded_engine.h"
#include "src/model/config.h"
#include "tests/golden/family_cases.h"
#include "tests/golden/stored_goldens.h"

namespace quire::golden {
namespace {

constexpr size_t kShimTokens = 16;

class EngineGoldens : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string path = goldens_of(GetParam());
    if (!std::filesystem::exists(path))
      GTEST_SKIP() << "no goldens: " << path << " is not there (set QUIRE_SHARED)";
    cases_ = is_family(GetParam()) ? family_cases(GetParam()) : read_cases(path);
    config_.model_dir = directory_of(GetParam());
    config_.device = env_or("QUIRE_TEST_DEVICE", "cpu");
    config_.dtype = "f32";
    config_.kv_cache_bytes = 64 << 20;
    config_.max_sequences = 8;
    config_.max_step_tokens = 512;
    config_.max_queued_kv_factor = 100;
    config_.check_invariants = true;
    if (config_.device == "cuda-host") cut_answers(kShimTokens);
  }
  static const std::vector<Case>& family_cases(const std::string& name) {  // the reference answers once
    static std::map<std::string, std::vector<Case>> known;
    std::vector<Case>& cases = known[name];
    if (cases.empty()) cases = read_family_cases(directory_of(name));
    return cases;
  }
  void cut_answers(size_t tokens) {
    for (Case& c : cases_) c.greedy.resize(std::min(c.greedy.size(), tokens));
  }
  void open() {
    engine_.reset();
    Result<std::unique_ptr<Engine>> opened = Engine::open(config_);
    ASSERT_TRUE(opened.has_value()) << opened.error().message;
    engine_ = std::move(*opened);
  }
  void expect_golden_alone(size_t i) {
    const auto sink = submit(*engine_, cases_[i]);
    sink->wait();
    EXPECT_EQ(sink->ids(), cases_[i].greedy) << "case " << i;
  }
  void expect_goldens_alone() {
    for (size_t i = 0; i < cases_.size(); ++i) expect_golden_alone(i);
  }
  void expect_goldens_together(int copies = 1) {
    std::vector<std::shared_ptr<Collector>> sinks;
    for (int copy = 0; copy < copies; ++copy)
      for (const Case& c : cases_) sinks.push_back(submit(*engine_, c));
    for (size_t i = 0; i < sinks.size(); ++i) {
      sinks[i]->wait();
      EXPECT_EQ(sinks[i]->ids(), cases_[i % cases_.size()].greedy) << "case " << i % cases_.size();
    }
    expect_nothing_held(*engine_);
  }
  int32_t longest() const {  // tokens of a case, answered
    size_t most = 0;
    for (const Case& c : cases_) most = std::max(most, c.prompt.size() + c.greedy.size());
    return static_cast<int32_t>(most);
  }
  int64_t cached_tokens() const { return engine_->stats().cached_tokens_total; }

  std::vector<Case> cases_;
  EngineConfig config_;
  std::unique_ptr<Engine> engine_;
};

TEST_P(EngineGoldens, ComeOutAloneWithoutTheCacheAndFromIt) {
  config_.prefix_cache = false;
  open();
  expect_goldens_alone();
  EXPECT_EQ(cached_tokens(), 0);
  config_.prefix_cache = true;
  open();
  expect_goldens_alone();
  const int64_t before = cached_tokens();
  expect_goldens_alone();
  EXPECT_GT(cached_tokens(), before);
}

TEST_P(EngineGoldens, ComeOutOfMixedBatchesInAnyChunksWithoutTheCacheAndFromIt) {
  for (const int32_t chunk : {1, 7, 64}) {
    SCOPED_TRACE(chunk);
    config_.max_prefill_chunk_tokens = chunk;
    config_.prefix_cache = false;
    open();
    expect_goldens_together();
    EXPECT_EQ(cached_tokens(), 0);
    config_.prefix_cache = true;
    open();
    expect_goldens_together();
    const int64_t before = cached_tokens();
    expect_goldens_together();
    int64_t prompt_tokens = 0;
    for (const Case& c : cases_) prompt_tokens += static_cast<int64_t>(c.prompt.size()) - 1;
    EXPECT_EQ(cached_tokens() - before, prompt_tokens) << "a hit is all of a prompt but its last token";
  }
}

TEST_P(EngineGoldens, ComeOutWhenSequencesArePreempted) {
  const Result<ModelSpec> spec = read_model_config(config_.model_dir);
  ASSERT_TRUE(spec.has_value()) << spec.error().message;
  // Room for the longest and two blocks more. Chunks of 1 hold little at a time: with much more, answers of kShimTokens never meet.
  config_.max_context_tokens = (longest() + 15) / 16 * 16;
  config_.kv_cache_bytes = spec->kv_bytes_per_token(DType::kF32) * (config_.max_context_tokens + 32);
  for (const bool prefix_cache : {false, true}) {
    for (const int32_t chunk : {1, 7, 64}) {
      SCOPED_TRACE(testing::Message() << "chunks of " << chunk << ", prefix cache " << prefix_cache);
      config_.prefix_cache = prefix_cache;
      config_.max_prefill_chunk_tokens = chunk;
      Result<EngineParts> parts = open_parts(config_);
      ASSERT_TRUE(parts.has_value()) << parts.error().message;
      parts->core.reserve = {.least = 0, .rise = 0, .decay = 0};  // over-commit as far as it goes
      engine_.reset();
      engine_ = std::move(ThreadedEngine::start(std::move(*parts))).value();
      expect_goldens_together(2);
      EXPECT_GT(engine_->stats().preemptions_total, 0);
    }
  }
}

TEST_P(EngineGoldens, ComeOutWhenSequencesAreSwapped) {
  const Result<ModelSpec> spec = read_model_config(config_.model_dir);
  ASSERT_TRUE(spec.has_value()) << spec.error().message;
  config_.max_context_tokens = std::min(192, spec->max_positions);
  config_.kv_cache_bytes = spec->kv_bytes_per_token(DType::kF32) * 224;
  config_.swap_space_bytes = 4 * config_.kv_cache_bytes;
  config_.preemption_mode = "swap";
  for (const bool prefix_cache : {false, true}) {
    SCOPED_TRACE(testing::Message() << "prefix cache " << prefix_cache);
    config_.prefix_cache = prefix_cache;
    Result<EngineParts> parts = open_parts(config_);
    ASSERT_TRUE(parts.has_value()) << parts.error().message;
    parts->core.reserve = {.least = 0, .rise = 0, .decay = 0};  // over-commit as far as it goes
    engine_.reset();
    engine_ = std::move(ThreadedEngine::start(std::move(*parts))).value();
    expect_goldens_together(2);
    const EngineStats stats = engine_->stats();
    EXPECT_GT(stats.swap_outs_total, 0);
    EXPECT_EQ(stats.swap_outs_total, stats.preemptions_total);
    EXPECT_EQ(stats.swap_ins_total, stats.swap_outs_total);
    EXPECT_EQ(stats.swap_blocks_held, 0);
  }
}

// Every prompt, twice over, through a cache that holds few of them and a tier below it that holds all.
class GoldensOfTiers : public EngineGoldens {
 protected:
  void SetUp() override {
    EngineGoldens::SetUp();
    if (IsSkipped()) return;
    const Result<ModelSpec> spec = read_model_config(config_.model_dir);
    ASSERT_TRUE(spec.has_value()) << spec.error().message;
    config_.max_context_tokens = 192;
    config_.block_tokens = 8;
    config_.kv_cache_bytes = spec->kv_bytes_per_token(DType::kF32) * 192;
    for (Case& c : cases_) {  // so that there is something to find: what was generated is asked again
      const auto middle = c.greedy.begin() + static_cast<std::ptrdiff_t>(c.greedy.size() / 2);
      c.prompt.insert(c.prompt.end(), c.greedy.begin(), middle);
      c.greedy.erase(c.greedy.begin(), middle);
    }
  }
  void open_with_costs(const PreemptionCosts& costs) {
    engine_.reset();
    Result<EngineParts> parts = open_parts(config_);
    ASSERT_TRUE(parts.has_value()) << parts.error().message;
    parts->core.preemption_costs = costs;
    engine_ = std::move(ThreadedEngine::start(std::move(*parts))).value();
  }
  void open_with_free_copies() {  // such short prompts are cheaper to compute
    open_with_costs({.link_bytes_per_s = 1e15, .transfer_us = 0, .disk_bytes_per_s = 1e15});
  }
  // As if computing a token took as long as copying it: the front of a prefix is computed while its tail comes.
  void open_with_both_ends() {
    const Result<ModelSpec> spec = read_model_config(config_.model_dir);
    ASSERT_TRUE(spec.has_value()) << spec.error().message;
    const auto bytes_per_s = 1e5 * static_cast<double>(spec->kv_bytes_per_token(DType::kF32));
    open_with_costs({.link_bytes_per_s = bytes_per_s,
                     .transfer_us = 0,
                     .disk_bytes_per_s = bytes_per_s,
                     .flops_per_s = 1,
                     .flops_per_token = 1e-5,
                     .flops_per_token_pair = 0,
                     .step_us = 0,
                     .least_chunk_tokens = 8});
  }
};

TEST_P(GoldensOfTiers, ComeOutOfTheHost) {
  config_.host_kv_bytes = 16 * config_.kv_cache_bytes;
  open_with_free_copies();
  expect_goldens_alone();
  expect_goldens_alone();
  EXPECT_GT(engine_->stats().host.hit_tokens_total, 0);
  EXPECT_GT(engine_->stats().host.blocks_cached, 0);
}

TEST_P(GoldensOfTiers, ComeOutOfBothEnds) {
  for (const bool from_disk : {false, true}) {
    SCOPED_TRACE(from_disk ? "disk" : "host");
    std::string dir = testing::TempDir() + "quire_goldens_XXXXXX";
    ASSERT_NE(mkdtemp(dir.data()), nullptr);
    if (from_disk) {
      config_.host_kv_bytes = 0;
      config_.disk_kv_dir = dir;
      config_.disk_kv_bytes = 64 << 20;
    } else {
      config_.host_kv_bytes = 16 * config_.kv_cache_bytes;
    }
    open_with_both_ends();
    expect_goldens_alone();
    const auto from_below = [&] {
      const EngineStats stats = engine_->stats();
      return stats.host.hit_tokens_total + stats.disk.hit_tokens_total;
    };
    int64_t cached = 0, found_below = 0, prompt_tokens = 0;
    for (size_t i = 0; i < cases_.size(); ++i) {
      // How fast the disk reads is learnt with the first prefix that it gives: each case has an engine that goes by the costs.
      if (from_disk) open_with_both_ends();
      const int64_t cached_before = cached_tokens(), below_before = from_below();
      expect_golden_alone(i);
      cached += cached_tokens() - cached_before;
      found_below += from_below() - below_before;
      prompt_tokens += static_cast<int64_t>(cases_[i].prompt.size()) - 1;
    }
    EXPECT_GT(found_below, 0);
    EXPECT_LT(cached, prompt_tokens * 9 / 10) << "fronts are computed";
    engine_.reset();
    std::filesystem::remove_all(dir);
  }
}

// A host tier that holds no more than the device, or none; then the same after a restart, from the disk alone.
TEST_P(GoldensOfTiers, ComeOffTheDiskBeforeAndAfterARestart) {
  for (const bool has_host : {false, true}) {
    std::string dir = testing::TempDir() + "quire_goldens_XXXXXX";
    ASSERT_NE(mkdtemp(dir.data()), nullptr);
    config_.host_kv_bytes = has_host ? config_.kv_cache_bytes : 0;
    config_.disk_kv_dir = dir;
    config_.disk_kv_bytes = 64 << 20;
    open_with_free_copies();
    expect_goldens_alone();
    expect_goldens_alone();
    EXPECT_GT(engine_->stats().disk.hit_tokens_total, 0);
    open_with_free_copies();
    EXPECT_GT(engine_->stats().disk.blocks_cached, 0);
    expect_goldens_alone();
    EXPECT_GT(engine_->stats().disk.hit_tokens_total, 0);
    EXPECT_EQ(engine_->stats().disk.read_failures_total, 0);
    engine_.reset();
    std::filesystem::remove_all(dir);
  }
}

std::string name_of_model(const testing::TestParamInfo<const char*>& info) {
  std::string name = info.param;
  for (char& c : name)
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  return name;
}

constexpr const char* kModels[] = {
    "babyllama-tok105", "babyllama-tok105-hd64-bf16", "recall-9M",
    "stories260K",      "stories260K-hd128-bf16",     "tinystories-3.5M-qwen3"};
INSTANTIATE_TEST_SUITE_P(Models, EngineGoldens, testing::ValuesIn(kModels), name_of_model);
INSTANTIATE_TEST_SUITE_P(Models, GoldensOfTiers, testing::ValuesIn(kModels), name_of_model);

constexpr const char* kFamilies[] = {
    "llama-mha-untied", "llama-mqa-bias", "mistral-window", "mistral-headdim", "qwen2",
    "qwen2-window",     "qwen3",          "rope-linear",    "rope-dynamic",    "rope-yarn",
    "rope-yarn-mscale", "rope-llama3"};
INSTANTIATE_TEST_SUITE_P(Families, EngineGoldens, testing::ValuesIn(kFamilies), name_of_model);

}  // namespace
}  // namespace quire::golden
