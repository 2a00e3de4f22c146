// Plans that do not fit the lists a device keeps for a sequence are refused before anything is queued: a cut to another length than the
// policy keeps, or from fewer blocks than the prompt's list had, would read and write beyond them.
#include <gtest/gtest.h>

#include "kernels/cuda/host_device.h"
#include "src/execute/device_retention.h"
#include "src/policy/policy_memory.h"

namespace quire {
namespace {

constexpr KvLayout kLayout{
    .dtype = DType::kF32, .num_layers = 2, .num_kv_heads = 2, .head_dim = 16, .block_tokens = 8};
constexpr int32_t kPrompt = 30, kBudget = 10;

// A prompt of 30 tokens (four blocks) under TOVA has run; the next step's plan is cut to 10 slots and then changed by `change`.
template <class Change>
std::string answer_to(Change change) {
  const std::unique_ptr<StreamDevice> device = open_cuda_host_device();
  const auto kernels = std::move(make_cuda_kernels(*device, {.activations = DType::kF32})).value();
  const DeviceBuffer arena = std::move(device->allocate(16 * kLayout.block_bytes(), "arena")).value();
  DeviceRetention retention(*device, *kernels, kLayout, arena.as<char>(), 4);
  const PolicySpec policy{.kind = RetentionKind::kTova, .budget = kBudget};
  const PolicyMemoryLimits shape{.num_layers = kLayout.num_layers, .num_kv_heads = kLayout.num_kv_heads};
  const int64_t bytes = policy_request_bytes(policy, kPrompt, 2 * kPrompt, 1, shape);
  if (Status reserved = retention.reserve({.rows = 32, .slots = 64, .state_bytes = bytes}); !reserved)
    return reserved.error().message;
  BatchPlan plan;
  PlannedSequence& s = plan.sequences.emplace_back();
  s.sequence = SequenceId{7};
  s.tokens.assign(kPrompt, 1);
  s.block_table = {BlockId{1}, BlockId{2}, BlockId{3}, BlockId{4}};
  s.policy = policy;
  s.list_room = list_room(policy, 2 * kPrompt);
  s.num_prompt_tokens = kPrompt;
  std::vector<QueuedDump> dumps;
  if (Status begun = retention.begin(plan, kPrompt); !begun) return begun.error().message;
  std::vector<SequenceFailure> failures;
  retention.end(plan, dumps, failures);
  s.cut_source = s.block_table;
  s.block_table = {BlockId{5}, BlockId{6}};
  s.first_position = kPrompt, s.list_length_before = kBudget;
  s.tokens.assign(1, 1);
  change(s);
  const Status begun = retention.begin(plan, kPrompt);
  return begun ? "accepted" : begun.error().message;
}

TEST(DeviceRetentionCuts, RefusesThoseThatDoNotFitTheListsItKeeps) {
  EXPECT_EQ(answer_to([](PlannedSequence&) {}), "accepted");
  const std::string longer = answer_to([](PlannedSequence& s) { s.list_length_before = kBudget - 1; });
  EXPECT_NE(longer.find("sequence 7 under tova"), std::string::npos) << longer;
  EXPECT_NE(longer.find("a cut to 9 slots; 10 are kept"), std::string::npos) << longer;
  const std::string fewer = answer_to([](PlannedSequence& s) { s.cut_source.pop_back(); });
  EXPECT_NE(fewer.find("a cut from 3 blocks of 8 slots; the prompt's list has 30"), std::string::npos)
      << fewer;
}

}  // namespace
}  // namespace quire
