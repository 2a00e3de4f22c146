// The memory of policies that go by scores: there from the start for the default policy, reckoned as it is taken.
#include <gtest/gtest.h>

#include "kernels/cuda/host_device.h"
#include "src/execute/device_retention.h"
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
  BatchPlan prompts(int32_t sequences) const {
    BatchPlan plan;
    for (int32_t i = 0; i < sequences; ++i)
      plan.sequences.push_back({.sequence = SequenceId{static_cast<uint64_t>(i + 1)},
                                .tokens = {1, 2, 3, 4},
                                .block_table = {BlockId{i}},
                                .policy = policy_,
                                .num_prompt_tokens = 4});
    return plan;
  }

  std::unique_ptr<StreamDevice> shim_;
  std::unique_ptr<Kernels> kernels_;
  CountingDevice device_;
  DeviceRetention retention_;
  PolicySpec policy_;
};

TEST_P(DeviceRetentionMemory, AStepOfTheDefaultPolicyTakesStatesThatAreThere) {
  const RetentionRoom room{.rows = 32, .slots = 64, .policy = policy_, .sequences = 3};
  ASSERT_TRUE(retention_.reserve(room));
  EXPECT_EQ(device_.allocated, DeviceRetention::reserved_bytes(room, kLayout, kHeads));
  const int before = device_.allocations, sums = traits(policy_).column_sums ? 1 : 0;
  ASSERT_TRUE(retention_.begin(prompts(3), 16));
  EXPECT_EQ(device_.allocations - before, 3 * sums);  // sums over prompts alone are made when one comes
  EXPECT_EQ(device_.waits, 0);
  ASSERT_TRUE(retention_.begin(prompts(4), 16));
  EXPECT_EQ(device_.allocations - before, 4 * sums + 1);
  const SequenceId gone[] = {SequenceId{2}};
  retention_.forget(gone);
  BatchPlan next = prompts(5);
  next.sequences.erase(next.sequences.begin() + 1);
  ASSERT_TRUE(retention_.begin(next, 16));
  EXPECT_EQ(device_.allocations - before, 4 * sums + 1);
}

TEST_P(DeviceRetentionMemory, AStepOfMoreSlotsThanTheCacheMakesSideOutputsLarger) {
  ASSERT_TRUE(retention_.reserve({.rows = 32, .slots = 8, .policy = policy_, .sequences = 4}));
  ASSERT_TRUE(retention_.begin(prompts(2), 16));
  EXPECT_EQ(device_.waits, 0);
  EXPECT_EQ(retention_.generation(), 0);
  ASSERT_TRUE(retention_.begin(prompts(4), 16));
  EXPECT_EQ(device_.waits, 1);
  EXPECT_EQ(retention_.generation(), 1);
}

INSTANTIATE_TEST_SUITE_P(Policies, DeviceRetentionMemory,
                         testing::Values("tova:budget=16", "h2o:heavy=8,recent=8"),
                         [](const auto& info) { return std::string(info.param).substr(0, 3); });

TEST(BufferStock, RoundsUpByAnEighthAtMostAndGivesNearSizesOneBuffer) {
  for (int64_t bytes = 1; bytes < 40'000'000; bytes += 1 + bytes / 7) {
    const int64_t size = BufferStock::size_of(bytes);
    ASSERT_GE(size, bytes);
    ASSERT_LE(size, std::max(bytes + bytes / 8, int64_t{4096} * ((bytes + 4095) / 4096))) << bytes;
    ASSERT_EQ(BufferStock::size_of(size), size);
  }
  CountingDevice device;
  BufferStock stock(device);
  stock.give_back(std::move(*stock.take(1'000'000, "test")));
  EXPECT_TRUE(stock.take(999'000, "test"));
  EXPECT_EQ(device.allocations, 1);
}

}  // namespace
}  // namespace quire
