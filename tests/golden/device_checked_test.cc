// The whole engine on the host shim with every check of the shim on: bounds of every access, races and unwritten bytes of shared memory, divergent
// barriers, asynchronous copies, what is read before the dependency wait. The other whole-engine tests run without, since checked kernels are
// three to five times slower; kernels have checked tests of their own, on the shapes that those think of. Here the shapes are a step's: padded
// and captured ones, tables from deltas, plans of policies. A fault ends the process with the place.
#include <filesystem>

#include "kernels/cuda/host_shim/runner.h"
#include "tests/golden/engine_rig.h"

namespace quire::golden {
namespace {

class CheckedDevice : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string goldens = shared_data() + "/goldens/" + GetParam() + ".json";
    if (!std::filesystem::exists(goldens))
      GTEST_SKIP() << "no goldens: " << goldens << " is not there (set QUIRE_SHARED)";
    cases_ = read_cases(goldens);
    std::sort(cases_.begin(), cases_.end(),
              [](const Case& a, const Case& b) { return a.prompt.size() < b.prompt.size(); });
    cases_.resize(2);
    shim::set_default_shim_options({.checking = true});
    EngineConfig config;
    config.model_dir = shared_data() + "/models/" + GetParam();
    config.device = "cuda-host";
    config.max_sequences = 8;
    config.max_step_tokens = 32;
    config.max_context_tokens = 64;
    config.kv_cache_bytes = 4 << 20;
    config.check_invariants = true;
    Result<std::unique_ptr<Engine>> engine = Engine::open(config);
    ASSERT_TRUE(engine.has_value()) << engine.error().message;
    engine_ = std::move(*engine);
  }
  void TearDown() override {
    engine_.reset();
    shim::set_default_shim_options({});
  }
  std::shared_ptr<Collector> ask(const Case& c, int32_t tokens, const char* policy) {
    Request request;
    request.prompt = c.prompt;
    request.sampling = greedy(tokens);
    request.kv_policy = policy;
    auto sink = std::make_shared<Collector>();
    const Result<RequestId> id = engine_->submit(std::move(request), sink);
    EXPECT_TRUE(id) << id.error().message;
    return sink;
  }

  std::vector<Case> cases_;
  std::unique_ptr<Engine> engine_;
};

// Prompts and decodes in one step, sampled as requests ask, under every kind of policy, then the same prompts from the cache.
TEST_P(CheckedDevice, RunsMixedRequestsWithoutAFault) {
  std::vector<std::shared_ptr<Collector>> sinks;
  for (const char* policy : {"", "tova:budget=3", "h2o:heavy=2,recent=1", "stream:sinks=1,recent=3"})
    sinks.push_back(ask(cases_[sinks.size() % 2], 6, policy));
  SamplingParams drawn;
  drawn.max_tokens = 4;
  drawn.ignore_eos = true;
  drawn.n = 2;
  drawn.seed = 3;
  drawn.top_p = 0.9;
  drawn.top_k = 30;
  drawn.repetition_penalty = 1.1;
  drawn.logprobs = 2;
  sinks.push_back(submit(*engine_, cases_[1].prompt, drawn));
  for (const auto& sink : sinks) sink->wait();
  const auto again = ask(cases_[0], 6, "");
  again->wait();
  for (const auto& ids : {sinks[0]->ids(), again->ids()}) {
    ASSERT_EQ(ids.size(), 6u);
    for (size_t i = 0; i < ids.size() && cases_[0].margins[i] >= 0.1; ++i)
      EXPECT_EQ(ids[i], cases_[0].greedy[i]);
  }
  expect_nothing_held(*engine_);
}

INSTANTIATE_TEST_SUITE_P(Models, CheckedDevice, ::testing::Values("stories260K", "stories260K-hd128-bf16"),
                         [](const auto& info) {
                           return std::string(info.param) == "stories260K" ? "f32" : "bf16";
                         });

}  // namespace
}  // namespace quire::golden
