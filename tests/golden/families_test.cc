// Every family and rotary kind against transformers: tests/golden/families, made by make_family_goldens.py
// (float64 from the same float32 weights). Method: the forward pass alone (model_runner.h), with several
// chunkings of the prompt.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "src/base/worse_of.h"
#include "tests/golden/model_runner.h"

namespace quire::golden {
namespace {

using nlohmann::json;

// f32 against float64 through three layers of at most 96-term sums: logits have an rms of about 5, and stay
// within 3e-5 here.
constexpr double kTolerance = 1e-4;

std::string family_dir(const std::string& name) {
  return repository_root() + "/tests/golden/families/" + name;
}

class Families : public testing::TestWithParam<std::tuple<std::string, BackEnd>> {
 protected:
  void SetUp() override {
#ifndef QUIRE_GOLDEN_CPU
    if (std::get<1>(GetParam()) == BackEnd::kCpu) GTEST_SKIP() << "built without the CPU kernels";
#endif
#ifndef QUIRE_GOLDEN_CUDA_HOST
    if (std::get<1>(GetParam()) == BackEnd::kCudaHost) GTEST_SKIP() << "built without the CUDA kernels";
#endif
    const std::string dir = family_dir(std::get<0>(GetParam()));
    std::ifstream file(dir + "/golden.json");
    ASSERT_TRUE(file) << dir;
    golden_ = json::parse(file);
    prompt_ = golden_["prompt_ids"].get<std::vector<int32_t>>();
    Result<std::unique_ptr<ModelRunner>> runner =
        ModelRunner::open(dir, {.back_end = std::get<1>(GetParam()), .block_tokens = 8});
    ASSERT_TRUE(runner.has_value()) << runner.error().message;
    runner_ = std::move(*runner);
  }

  // The largest difference from the stored rows of `ids`, which come after what the list holds, run in chunks.
  double logits_error(std::span<const int32_t> ids, const json& stored_rows, int32_t chunk) {
    const auto vocab = static_cast<size_t>(runner_->spec().vocab_size);
    double worst = 0;
    for (size_t at = 0; at < ids.size(); at += static_cast<size_t>(chunk)) {
      const size_t count = std::min(static_cast<size_t>(chunk), ids.size() - at);
      const std::vector<float> logits = runner_->extend(ids.subspan(at, count));
      for (size_t i = 0; i < logits.size(); ++i) {
        const double stored = stored_rows[at + i / vocab][i % vocab].get<double>();
        worst = worse_of(worst, std::abs(static_cast<double>(logits[i]) - stored));
      }
    }
    return worst;
  }

  json golden_;
  std::vector<int32_t> prompt_;
  std::unique_ptr<ModelRunner> runner_;
};

TEST_P(Families, LogitsAreThoseOfTransformersAtEveryPosition) {
  for (const int32_t chunk : {40, 7, 1}) {
    runner_->clear();
    EXPECT_LT(logits_error(prompt_, golden_["logits"], chunk), kTolerance) << "chunks of " << chunk;
  }
}

TEST_P(Families, GreedyIdsAreThoseOfTransformers) {
  const auto wanted = golden_["greedy_ids"].get<std::vector<int32_t>>();
  EXPECT_EQ(runner_->greedy(prompt_, static_cast<int32_t>(wanted.size()), 40), wanted);
}

std::string test_name(const testing::TestParamInfo<std::tuple<std::string, BackEnd>>& info) {
  std::string name = std::get<0>(info.param);
  for (char& c : name) c = c == '-' ? '_' : c;
  return name + "_" + name_of(std::get<1>(info.param));
}

// Past max_position_embeddings, where its scaling acts: the golden has logits of the continuation as well (add_dynamic_logits.py).
class DynamicRope : public Families {};

TEST_P(DynamicRope, LogitsOfTheContinuationAreThoseOfTheReference) {
  const auto ids = golden_["greedy_ids"].get<std::vector<int32_t>>();
  for (const int32_t chunk : {64, 7, 1}) {
    runner_->clear();
    runner_->extend(prompt_);
    EXPECT_LT(logits_error(ids, golden_["greedy_logits"], chunk), kTolerance) << "chunks of " << chunk;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Models, Families,
    testing::Combine(testing::Values("llama-mha-untied", "llama-mqa-bias", "mistral-window",
                                     "mistral-headdim", "qwen2", "qwen2-window", "qwen3", "rope-linear",
                                     "rope-dynamic", "rope-yarn", "rope-yarn-mscale", "rope-llama3"),
                     testing::Values(BackEnd::kReference, BackEnd::kCpu, BackEnd::kCudaHost)),
    test_name);
INSTANTIATE_TEST_SUITE_P(Models, DynamicRope,
                         testing::Combine(testing::Values("rope-dynamic"),
                                          testing::Values(BackEnd::kReference, BackEnd::kCpu,
                                                          BackEnd::kCudaHost)),
                         test_name);

}  // namespace
}  // namespace quire::golden
