// A sequence that is swapped out and back goes on bit for bit as if it had stayed. Method: plans written
// here, one sequence a step, so that a run with a swap in its middle has the same shapes as one without; in
// between its blocks go to the host, another sequence writes all over them, and they come back elsewhere.
// Every id and logprob is compared by its bits. All models of the shared goldens on the CPU; the small ones
// on the host shim too, where its CUDA kernels are built.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "src/base/check.h"
#include "src/execute/model_executor.h"
#include "src/model/config.h"
#include "tests/golden/engine_rig.h"

namespace quire::golden {
namespace {

constexpr int32_t kBlocks = 24, kPrompt = 37, kDecodes = 12, kSwapAfter = 5;

struct Place {
  const char *model, *device;
};

struct Produced {
  std::vector<int32_t> ids;
  std::vector<float> logprobs;
};

class Driver {
 public:
  explicit Driver(OpenedExecutor opened) : opened_(std::move(opened)) {
    auto sampling = std::make_shared<SamplingParams>();
    sampling->temperature = 0;
    sampling->logprobs = 0;
    sampling_ = sampling;
  }

  // The first `tokens` ids of `prompt`, then greedy; `blocks` holds them all.
  void prefill(SequenceId id, const std::vector<int32_t>& prompt, const std::vector<BlockId>& blocks,
               Produced& out) {
    PlannedSequence s{.sequence = id, .tokens = prompt, .block_table = blocks};
    BatchPlan plan;
    plan.joins = {{.sequence = id,
                   .sampling = sampling_,
                   .history = prompt,
                   .num_prompt_tokens = static_cast<int32_t>(prompt.size())}};
    run(std::move(plan), std::move(s), out);
  }
  void decode(SequenceId id, int32_t position, const std::vector<BlockId>& blocks, Produced& out) {
    run({},
        {.sequence = id,
         .first_position = position,
         .tokens = {out.ids.back()},
         .list_length_before = position,
         .block_table = blocks},
        out);
  }
  void transfer(TransferDirection direction, const std::vector<BlockId>& device) {
    BlockTransfer transfer{.id = 7, .direction = direction};
    for (size_t i = 0; i < device.size(); ++i)  // in another order on the host, so that not all is one run
      transfer.copies.push_back({device[i], HostBlockId{static_cast<int32_t>(i ^ 1)}});
    opened_.tiers.mover->submit(std::move(transfer));
    opened_.tiers.mover->wait();
    std::vector<TransferEnd> ends;
    opened_.tiers.mover->poll(ends);
    ASSERT_EQ(ends.size(), 1u);
    EXPECT_TRUE(ends[0].status);
  }

 private:
  void run(BatchPlan plan, PlannedSequence s, Produced& out) {
    plan.step = ++step_;
    const auto position = s.first_position + static_cast<int32_t>(s.tokens.size());
    s.samples = {{.sequence = s.sequence, .position = position, .top_candidates = 1}};
    plan.sequences.push_back(std::move(s));
    opened_.executor->submit(std::make_shared<const BatchPlan>(std::move(plan)));
    const StepResult result = opened_.executor->wait();
    ASSERT_TRUE(result.status) << result.status.error().message;
    ASSERT_EQ(result.samples.size(), 1u);
    out.ids.push_back(result.samples[0].token);
    out.logprobs.push_back(result.samples[0].top.front().second);
  }

  OpenedExecutor opened_;
  std::shared_ptr<const SamplingParams> sampling_;
  uint64_t step_ = 0;
};

std::vector<BlockId> blocks_from(int32_t first, int32_t step) {
  std::vector<BlockId> blocks;
  for (int32_t i = 0; i < (kPrompt + kDecodes + 15) / 16; ++i) blocks.push_back(BlockId{first + i * step});
  return blocks;
}

class Swap : public testing::TestWithParam<Place> {
 protected:
  void SetUp() override {
    const std::string dir = shared_data() + "/models/" + GetParam().model;
    if (!std::filesystem::exists(dir))
      GTEST_SKIP() << "no models: " << dir << " is not there (set QUIRE_SHARED)";
    config_.model_dir = dir;
    config_.device = GetParam().device;
    config_.max_context_tokens = 128;
    config_.max_step_tokens = 64;
    config_.max_sequences = 4;
    Result<ModelSpec> spec = read_model_config(dir);
    ASSERT_TRUE(spec.has_value()) << spec.error().message;
    const int64_t block_bytes = spec->kv_bytes_per_token(DType::kF32) * 16;
    config_.dtype = "f32";
    config_.kv_cache_bytes = kBlocks * block_bytes;
    config_.swap_space_bytes = 5 * block_bytes;
  }
  Driver open() {
    Result<OpenedExecutor> opened = open_executor(config_);
    check(opened.has_value(), opened ? "" : opened.error().message);
    return Driver(std::move(*opened));
  }
  Produced produce(bool swaps) {
    Driver driver = open();
    std::vector<int32_t> prompt, other;
    for (int32_t i = 0; i < kPrompt; ++i) {
      prompt.push_back(3 + i * 7 % 90);
      other.push_back(5 + i * 11 % 90);
    }
    std::vector<BlockId> blocks = blocks_from(2, 1);
    Produced out, ignored;
    driver.prefill(SequenceId{1}, prompt, blocks, out);
    for (int32_t i = 0; i < kDecodes; ++i) {
      if (swaps && i == kSwapAfter) {
        driver.transfer(TransferDirection::kToHost, blocks);
        driver.prefill(SequenceId{2}, other, blocks, ignored);
        blocks = blocks_from(9, 3);
        driver.transfer(TransferDirection::kToDevice, blocks);
      }
      driver.decode(SequenceId{1}, kPrompt + i, blocks, out);
    }
    return out;
  }
  EngineConfig config_;
};

TEST_P(Swap, GoesOnBitForBit) {
  const Produced stayed = produce(false), swapped = produce(true);
  EXPECT_EQ(stayed.ids, swapped.ids);
  ASSERT_EQ(stayed.logprobs.size(), swapped.logprobs.size());
  EXPECT_EQ(
      std::memcmp(stayed.logprobs.data(), swapped.logprobs.data(), stayed.logprobs.size() * sizeof(float)),
      0);
}

TEST_P(Swap, LessThanABlockIsRefusedByName) {
  config_.swap_space_bytes = 100;
  const Result<OpenedExecutor> opened = open_executor(config_);
  ASSERT_FALSE(opened.has_value());
  EXPECT_EQ(opened.error().field, "swap_space_bytes");
  EXPECT_NE(opened.error().message.find("100"), std::string::npos) << opened.error().message;
}

std::vector<Place> places() {
  std::vector<Place> all;
  for (const char* model : {"babyllama-tok105", "babyllama-tok105-hd64-bf16", "recall-9M", "stories260K",
                            "stories260K-hd128-bf16", "tinystories-3.5M-qwen3"})
    all.push_back({model, "cpu"});
#ifdef QUIRE_TEST_CUDA_HOST
  for (const char* model : {"babyllama-tok105", "stories260K", "stories260K-hd128-bf16"})
    all.push_back({model, "cuda-host"});
#endif
  return all;
}

INSTANTIATE_TEST_SUITE_P(Models, Swap, testing::ValuesIn(places()), [](const auto& info) {
  std::string name = std::string(info.param.model) + "_" + info.param.device;
  for (char& c : name)
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  return name;
});

}  // namespace
}  // namespace quire::golden
