// The executor end to end without an engine: plans written here, tokens against the stored ones. Method: a
// small driver that keeps two steps under way, decodes by kSampledLastStep, cuts prompts in chunks, mixes
// prefill with decode, and shares and copies blocks. The demo model against the shared goldens; the families'
// models where those are absent.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "src/execute/model_executor.h"
#include "tests/golden/model_runner.h"

namespace quire::golden {
namespace {

using nlohmann::json;

struct Case {
  std::vector<int32_t> prompt, greedy;
};

struct Continuation {  // one sequence under way
  SequenceId id{};
  const Case* golden = nullptr;
  std::vector<BlockId> blocks;
  int32_t planned = 0;  // positions planned so far
  std::vector<int32_t> got;
  bool joined = false;
  bool done() const {
    return planned >= static_cast<int32_t>(golden->prompt.size() + golden->greedy.size()) - 1;
  }
};

std::shared_ptr<const SamplingParams> greedy_sampling() {
  auto params = std::make_shared<SamplingParams>();
  params->temperature = 0;
  return params;
}

class Driver {
 public:
  explicit Driver(OpenedExecutor opened) : opened_(std::move(opened)) {
    for (int32_t b = opened_.num_blocks - 1; b >= 0; --b) free_.push_back(BlockId{b});
  }

  OpenedExecutor& opened() { return opened_; }

  // Runs all cases at once, `chunk` prompt tokens a step each; a case joins every `stagger` steps.
  std::vector<std::vector<int32_t>> run(const std::vector<Case>& cases, int32_t chunk, size_t stagger) {
    std::vector<Continuation> runs(cases.size());
    for (size_t i = 0; i < cases.size(); ++i) runs[i] = {.id = SequenceId{next_id_++}, .golden = &cases[i]};
    size_t under_way = 0;
    for (size_t step = 0;; ++step) {
      const auto plan = plan_step(std::span(runs).first(std::min(runs.size(), step / stagger + 1)), chunk);
      if (!plan->sequences.empty()) {
        opened_.executor->submit(plan);
        ++under_way;
      }
      if (under_way == 0 && step / stagger >= runs.size()) break;
      if (under_way == 2 || plan->sequences.empty()) {
        if (under_way == 0) continue;
        collect(opened_.executor->wait(), runs);
        --under_way;
      }
    }
    std::vector<std::vector<int32_t>> out;
    for (Continuation& r : runs) {
      out.push_back(r.got);
      free_.insert(free_.end(), r.blocks.begin(), r.blocks.end());
      leaves_.push_back(r.id);
    }
    return out;
  }

  std::shared_ptr<BatchPlan> plan_step(std::span<Continuation> runs, int32_t chunk) {
    auto plan = std::make_shared<BatchPlan>();
    plan->step = ++step_;
    plan->leaves.swap(leaves_);
    for (Continuation& r : runs) {
      if (!r.done()) plan->sequences.push_back(plan_sequence(r, chunk, *plan));
    }
    return plan;
  }

  PlannedSequence plan_sequence(Continuation& r, int32_t chunk, BatchPlan& plan) {
    const auto prompt = static_cast<int32_t>(r.golden->prompt.size());
    PlannedSequence s{.sequence = r.id, .first_position = r.planned, .list_length_before = r.planned};
    if (r.planned < prompt) {
      const int32_t end = std::min(r.planned + chunk, prompt);
      s.tokens.assign(r.golden->prompt.begin() + r.planned, r.golden->prompt.begin() + end);
    } else {
      s.tokens = {kSampledLastStep};
    }
    r.planned += static_cast<int32_t>(s.tokens.size());
    const auto blocks =
        static_cast<size_t>((r.planned + opened_.config.block_tokens - 1) / opened_.config.block_tokens);
    while (r.blocks.size() < blocks) {
      r.blocks.push_back(free_.back());
      free_.pop_back();
    }
    s.block_table = r.blocks;
    if (r.planned >= prompt) s.samples = {{.sequence = r.id, .position = r.planned}};
    if (r.planned >= prompt && !r.joined) {
      r.joined = true;
      plan.joins.push_back({.sequence = r.id,
                            .sampling = greedy_sampling(),
                            .history = r.golden->prompt,
                            .num_prompt_tokens = prompt});
    }
    return s;
  }

  static void collect(const StepResult& result, std::vector<Continuation>& runs) {
    ASSERT_TRUE(result.status) << result.status.error().message;
    for (const SampledToken& t : result.samples) {
      for (Continuation& r : runs) {
        if (r.id == t.sequence) r.got.push_back(t.token);
      }
    }
  }

 private:
  OpenedExecutor opened_;
  std::vector<BlockId> free_;
  std::vector<SequenceId> leaves_;
  uint64_t next_id_ = 1, step_ = 0;
};

struct Model {
  std::string dir;
  std::vector<Case> cases;
};

// The demo model with the shared goldens, or else one family's model with its golden.
Model model_under_test() {
  const std::string golden = shared_dir() + "/goldens/recall-9M.json";
  if (!shared_dir().empty()) {
    Model m{.dir = repository_root() + "/models/demo"};
    const json file = json::parse(std::ifstream(golden));
    for (size_t i = 0; i < 8; ++i)
      m.cases.push_back({file["cases"][i]["prompt_ids"], file["cases"][i]["greedy_ids"]});
    return m;
  }
  Model m{.dir = repository_root() + "/tests/golden/families/rope-llama3"};
  const json c = json::parse(std::ifstream(m.dir + "/golden.json"));
  m.cases.assign(8, {c["prompt_ids"], c["greedy_ids"]});
  return m;
}

EngineConfig config_of(const Model& m) {
  return {.model_dir = m.dir,
          .device = "cpu",
          .kv_cache_bytes = 64 << 20,
          .max_step_tokens = 600,
          .max_sequences = 8};
}

std::unique_ptr<Driver> open(const EngineConfig& config) {
  Result<OpenedExecutor> opened = open_executor(config);
  EXPECT_TRUE(opened) << (opened ? "" : opened.error().message);
  return opened ? std::make_unique<Driver>(std::move(*opened)) : nullptr;
}

std::vector<std::vector<int32_t>> greedy_of(const Model& m) {
  std::vector<std::vector<int32_t>> out;
  for (const Case& c : m.cases) out.push_back(c.greedy);
  return out;
}

TEST(ModelExecutor, GivesTheStoredTokensInBatchesOfEightWithAnyChunk) {
  const Model m = model_under_test();
  const auto driver = open(config_of(m));
  ASSERT_NE(driver, nullptr);
  for (const int32_t chunk : {1, 7, 64}) {
    EXPECT_EQ(driver->run(m.cases, chunk, 1), greedy_of(m)) << "chunks of " << chunk;
    EXPECT_EQ(driver->run(m.cases, chunk, 5), greedy_of(m))
        << "chunks of " << chunk << ", joining one after another";
  }
}

TEST(ModelExecutor, GivesTheSameTokensWithOtherBlocksAndThreads) {
  const Model m = model_under_test();
  for (const int32_t block_tokens : {8, 64}) {
    EngineConfig config = config_of(m);
    config.block_tokens = block_tokens;
    config.threads = block_tokens == 8 ? 1 : 2;
    const auto driver = open(config);
    ASSERT_NE(driver, nullptr);
    EXPECT_EQ(driver->run(m.cases, 13, 2), greedy_of(m));
  }
}

TEST(ModelExecutor, ReportsTheLogprobOfEveryPromptToken) {
  const Model m = model_under_test();
  const auto driver = open(config_of(m));
  ASSERT_NE(driver, nullptr);
  const std::vector<int32_t>& prompt = m.cases[2].prompt;
  Result<std::unique_ptr<ModelRunner>> runner = ModelRunner::open(m.dir, {.back_end = BackEnd::kReference});
  ASSERT_TRUE(runner);
  const std::vector<float> logits = (*runner)->extend(prompt);
  Continuation run{.id = SequenceId{77}, .golden = &m.cases[2]};
  std::vector<float> got;
  while (run.planned < static_cast<int32_t>(prompt.size())) {
    auto plan = driver->plan_step(std::span(&run, 1), 5);
    PlannedSequence& s = plan->sequences[0];
    s.prompt_logprobs = 2;
    s.next_prompt_token =
        run.planned < static_cast<int32_t>(prompt.size()) ? prompt[static_cast<size_t>(run.planned)] : -1;
    driver->opened().executor->submit(plan);
    const StepResult result = driver->opened().executor->wait();
    ASSERT_TRUE(result.status);
    for (const SequencePromptLogprobs& p : result.prompt_logprobs) {
      EXPECT_EQ(p.first_position, static_cast<int32_t>(got.size()) + 1);
      for (const PromptLogprob& t : p.tokens) {
        EXPECT_EQ(t.token, prompt[got.size() + 1]);
        EXPECT_EQ(t.top.size(), 2u);
        got.push_back(t.logprob);
      }
    }
  }
  ASSERT_EQ(got.size(), prompt.size() - 1);
  const auto vocab = static_cast<size_t>((*runner)->spec().vocab_size);
  for (size_t i = 0; i < got.size(); ++i) {
    double sum = 0;
    for (size_t v = 0; v < vocab; ++v) sum += std::exp(static_cast<double>(logits[i * vocab + v]));
    EXPECT_NEAR(got[i], logits[i * vocab + static_cast<size_t>(prompt[i + 1])] - std::log(sum), 1e-4);
  }
}

// A second sequence takes the first one's full blocks as they are and its tail by copy, then both go on.
TEST(ModelExecutor, SharesBlocksAndCopiesTheTailBeforeTheStep) {
  const Model m = model_under_test();
  const auto driver = open(config_of(m));
  ASSERT_NE(driver, nullptr);
  const Case& c = m.cases[2];
  Continuation first{.id = SequenceId{501}, .golden = &c};
  auto plan = driver->plan_step(std::span(&first, 1), 1000);
  PlannedSequence& s = plan->sequences[0];
  Continuation second = first;
  second.id = SequenceId{502};
  s.samples.push_back({.sequence = second.id, .position = first.planned});
  PlannedJoin join = plan->joins[0];
  join.sequence = second.id;
  plan->joins.push_back(join);
  driver->opened().executor->submit(plan);
  std::vector<Continuation> runs = {first, second};
  Driver::collect(driver->opened().executor->wait(), runs);
  const BlockId copy{driver->opened().num_blocks - 3};
  runs[1].blocks.back() = copy;
  for (bool copied = false; !runs[0].done(); copied = true) {
    auto next = driver->plan_step(runs, 1);
    if (!copied) next->copies = {{.source = runs[0].blocks[second.blocks.size() - 1], .target = copy}};
    driver->opened().executor->submit(next);
    Driver::collect(driver->opened().executor->wait(), runs);
  }
  EXPECT_EQ(runs[0].got, c.greedy);
  EXPECT_EQ(runs[1].got, c.greedy);
}

TEST(ModelExecutor, FailsABadPlanAndServesTheNext) {
  const Model m = model_under_test();
  const auto driver = open(config_of(m));
  ASSERT_NE(driver, nullptr);
  Continuation run{.id = SequenceId{9}, .golden = &m.cases[0]};
  auto plan = driver->plan_step(std::span(&run, 1), 4);
  plan->sequences[0].block_table[0] = BlockId{driver->opened().num_blocks};
  driver->opened().executor->submit(plan);
  const StepResult result = driver->opened().executor->wait();
  ASSERT_FALSE(result.status);
  EXPECT_EQ(result.status.error().code, Code::kInternal);
  EXPECT_EQ(driver->run({m.cases[0]}, 4, 1)[0], m.cases[0].greedy);
}

TEST(ModelExecutor, RunsRandomWeightsFromAConfigurationAlone) {
  const std::string dir = testing::TempDir() + "quire_random_model";
  std::filesystem::create_directories(dir);
  std::filesystem::copy_file(repository_root() + "/tests/golden/families/qwen2/config.json",
                             dir + "/config.json", std::filesystem::copy_options::overwrite_existing);
  EngineConfig config{.model_dir = dir,
                      .weights = "random:3",
                      .device = "cpu",
                      .kv_cache_bytes = 1 << 20,
                      .max_step_tokens = 64,
                      .max_sequences = 4};
  const std::vector<Case> cases(2, {{1, 2, 3}, std::vector<int32_t>(20)});
  std::vector<std::vector<int32_t>> first;
  for (int round = 0; round < 2; ++round) {
    const auto driver = open(config);
    ASSERT_NE(driver, nullptr);
    const auto got = driver->run(cases, 8, 1);
    EXPECT_EQ(got[0], got[1]);
    EXPECT_GT(std::set<int32_t>(got[0].begin(), got[0].end()).size(), 2u);
    if (round == 1) {
      EXPECT_EQ(got, first);
    }
    first = got;
  }
}

// A model of one layer and random weights, otherwise as a stored family's.
EngineConfig model_of_widths(const std::string& name, const json& widths) {
  const std::string dir = testing::TempDir() + "quire_" + name;
  std::filesystem::create_directories(dir);
  std::ifstream stored(repository_root() + "/tests/golden/families/qwen2/config.json");
  json config = json::parse(stored);
  config["num_hidden_layers"] = 1;
  config["layer_types"] = {"full_attention"};
  config.update(widths);
  std::ofstream(dir + "/config.json") << config;
  return {.model_dir = dir,
          .weights = "random:5",
          .device = "cuda-host",
          .dtype = "f32",
          .kv_cache_bytes = 1 << 20,
          .max_step_tokens = 32,
          .max_sequences = 2};
}

TEST(ModelExecutor, RefusesWidthsThatTheCudaKernelsDoNotTake) {
  const auto fault = [](const char* name, const json& widths) {
    const Result<OpenedExecutor> opened = open_executor(model_of_widths(name, widths));
    return opened ? Error{.code = Code::kOk, .message = "opened"} : opened.error();
  };
  if (fault("plain", json::object()).code == Code::kUnavailable)
    GTEST_SKIP() << "this build has no CUDA kernels";
  const Error hidden = fault("wide", {{"hidden_size", 16416}, {"head_dim", 16}});
  EXPECT_EQ(hidden.message,
            "hidden_size is 16416; the CUDA kernels take at most 16384 (device cpu takes more)");
  EXPECT_EQ(hidden.code, Code::kInvalidArgument);
  EXPECT_EQ(hidden.field, "hidden_size");
  const Error vocab = fault("large_vocab", {{"vocab_size", 1200000}});
  EXPECT_EQ(vocab.message,
            "vocab_size is 1200000; the CUDA kernels take at most 524288 (device cpu takes more)");
}

// Rows of the down projection that no multiprocessor's shared memory holds.
TEST(ModelExecutor, RunsAModelOfLongRowsOnTheCudaKernels) {
  if (!open_executor(model_of_widths("plain", json::object())))
    GTEST_SKIP() << "this build has no CUDA kernels";
  const std::vector<Case> cases(1, {{1, 2}, std::vector<int32_t>(3)});
  EngineConfig config = model_of_widths("long_rows", {{"intermediate_size", 60000}});
  const auto cuda = open(config);
  config.device = "cpu";
  const auto cpu = open(config);
  ASSERT_TRUE(cuda != nullptr && cpu != nullptr);
  EXPECT_EQ(cuda->run(cases, 4, 1), cpu->run(cases, 4, 1));
}

TEST(ModelExecutor, NamesWhatCannotBeOpened) {
  const Model m = model_under_test();
  const auto fault = [&](auto change) {
    EngineConfig config = config_of(m);
    change(config);
    const Result<OpenedExecutor> opened = open_executor(config);
    return opened ? std::string("opened") : opened.error().message;
  };
  const auto names = [](const std::string& message, const char* part) {
    return message.find(part) != std::string::npos;
  };
  EXPECT_TRUE(names(fault([](EngineConfig& c) { c.device = "tpu"; }), "device is `tpu`"));
  EXPECT_TRUE(names(fault([](EngineConfig& c) { c.dtype = "f16"; }), "the CPU computes in f32 or bf16"));
  EXPECT_TRUE(names(fault([](EngineConfig& c) { c.kv_cache_dtype = "int8"; }), "kv_cache_dtype is `int8`"));
  EXPECT_TRUE(names(fault([](EngineConfig& c) { c.weights = "randon"; }), "weights is `randon`"));
  EXPECT_TRUE(
      names(fault([](EngineConfig& c) { c.kv_cache_bytes = 1ll << 50; }), " more (lower kv_cache_bytes)"));
  EXPECT_TRUE(
      names(fault([](EngineConfig& c) { c.model_dir = "/no/such"; }), "/no/such/config.json: no such file"));
}

}  // namespace
}  // namespace quire::golden
