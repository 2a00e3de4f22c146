// The memory of policies that go by scores: all there from the start; a plan that names more is refused before anything is queued.
#include <gtest/gtest.h>

#include "kernels/cuda/host_device.h"
#include "src/execute/device_retention.h"
#include "src/policy/policy_memory.h"
#include "tests/unit/counting_device.h"

namespace quire {
namespace {

constexpr int32_t kHeads = 4;
constexpr KvLayout kLayout{
    .dtype = DType::kF32, .num_layers = 3, .num_kv_heads = 2, .head_dim = 8, .block_tokens = 8};

class DeviceRetentionMemory : public testing::TestWithParam<const char*> {
 protected:
  DeviceRetentionMemory()
      : shim_(open_cuda_host_device()),
        kernels_(std::move(make_cuda_kernels(*shim_, {})).value()),
        retention_(device_, *kernels_, kLayout, nullptr, kHeads),
        policy_(*parse_policy(GetParam())) {}
  static constexpr int32_t kPrompt = 4, kTotal = 12;
  int64_t bytes_of_one() const {
    return policy_request_bytes(policy_, kPrompt, kTotal, 1,
                                {.num_layers = kLayout.num_layers, .num_kv_heads = kLayout.num_kv_heads});
  }
  void expect_refusal(const BatchPlan& plan, const std::string& text) {
    const Status begun = retention_.begin(plan, 16);
    ASSERT_FALSE(begun);
    EXPECT_NE(begun.error().message.find(text), std::string::npos) << begun.error().message;
  }
  BatchPlan prompts(int32_t sequences) const {
    BatchPlan plan;
    for (int32_t i = 0; i < sequences; ++i)
      plan.sequences.push_back({.sequence = SequenceId{static_cast<uint64_t>(i + 1)},
                                .tokens = {1, 2, 3, 4},
                                .block_table = {BlockId{i}},
                                .policy = policy_,
                                .num_prompt_tokens = kPrompt,
                                .policy_memory = i * bytes_of_one(),
                                .list_room = list_room(policy_, kTotal)});
    return plan;
  }

  std::unique_ptr<StreamDevice> shim_;
  std::unique_ptr<Kernels> kernels_;
  CountingDevice device_;
  DeviceRetention retention_;
  PolicySpec policy_;
};

TEST_P(DeviceRetentionMemory, AStepTakesNothingButWhatIsThereFromTheStart) {
  const RetentionRoom room{.rows = 32, .slots = 64, .state_bytes = 4 * bytes_of_one()};
  ASSERT_TRUE(retention_.reserve(room));
  EXPECT_EQ(device_.allocated, DeviceRetention::reserved_bytes(room, kLayout, kHeads) + room.state_bytes);
  const int before = device_.allocations;
  for (const int32_t sequences : {3, 4}) ASSERT_TRUE(retention_.begin(prompts(sequences), 16));
  const SequenceId gone[] = {SequenceId{2}};
  retention_.forget(gone);
  ASSERT_TRUE(retention_.begin(prompts(4), 16));
  EXPECT_EQ(device_.allocations, before);
  EXPECT_EQ(device_.waits, 0);
}

TEST_P(DeviceRetentionMemory, APlanBeyondWhatIsThereIsRefused) {
  ASSERT_TRUE(retention_.reserve({.rows = 32, .slots = 15, .state_bytes = 4 * bytes_of_one()}));
  ASSERT_TRUE(retention_.begin(prompts(3), 16));
  expect_refusal(prompts(4), "16 slots under policies that go by scores; there is room for 15");
  BatchPlan outside = prompts(1);
  outside.sequences[0].sequence = SequenceId{9};
  outside.sequences[0].policy_memory = 3 * bytes_of_one() + 256;
  expect_refusal(outside, " of " + std::to_string(4 * bytes_of_one()));
  BatchPlan samples = prompts(1);
  for (uint64_t i = 1; i <= 6; ++i) samples.sequences[0].samples.push_back({.sequence = SequenceId{i}});
  expect_refusal(samples, "lists of 6 samples");
}

TEST_P(DeviceRetentionMemory, ADumpThatFindsNoMemoryFailsItsSequenceAlone) {
  ASSERT_TRUE(retention_.reserve({.rows = 32, .slots = 64, .state_bytes = 4 * bytes_of_one()}));
  BatchPlan plan = prompts(3);
  plan.sequences[1].dump_kv = true;
  ASSERT_TRUE(retention_.begin(plan, 16));
  device_.refuses = true;
  std::vector<QueuedDump> dumps;
  std::vector<SequenceFailure> failures;
  retention_.end(plan, dumps, failures);
  EXPECT_TRUE(dumps.empty());
  ASSERT_EQ(failures.size(), 1u);
  EXPECT_EQ(failures[0].sequence, SequenceId{2});
  EXPECT_EQ(failures[0].error.code, Code::kResourceExhausted);
}

INSTANTIATE_TEST_SUITE_P(Policies, DeviceRetentionMemory,
                         testing::Values("tova:budget=16", "h2o:heavy=8,recent=8"),
                         [](const auto& info) { return std::string(info.param).substr(0, 3); });

}  // namespace
}  // namespace quire
