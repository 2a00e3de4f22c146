// What a running engine asks of its device from step to step, as the executor itself counts it (the log lines `step_calls`, `memory_item`
// and `device_memory`). Method: whole engines on stories260K, their log read from standard error. On the host shim by default;
// QUIRE_TEST_DEVICE=cuda runs it on a card.
#include <regex>

#include "tests/golden/stories_rig.h"

namespace quire::golden {
namespace {

constexpr int64_t kMiB = 1 << 20;

class DeviceCallsOfSteps : public StoriesTest {
 protected:
  void SetUp() override {
    StoriesTest::SetUp();
    config_.device = device_;
    config_.max_sequences = 8;
    config_.max_step_tokens = 64;
    config_.max_context_tokens = 256;
    config_.kv_cache_bytes = 200 * 16 * kTokenBytes;  // whole blocks
  }

  // Runs all together on an engine of its own; the log of its life.
  std::string log_of(const std::vector<SamplingParams>& asks) {
    testing::internal::CaptureStderr();
    {
      Result<std::unique_ptr<Engine>> engine = Engine::open(config_);
      EXPECT_TRUE(engine.has_value()) << engine.error().message;
      if (!engine) return testing::internal::GetCapturedStderr();
      std::vector<std::shared_ptr<Collector>> sinks;
      for (const SamplingParams& sampling : asks)
        sinks.push_back(submit(**engine, prompt_of(static_cast<int32_t>(5 + 9 * sinks.size()), 1), sampling));
      for (const auto& sink : sinks) sink->wait();
    }
    return testing::internal::GetCapturedStderr();
  }
  // The number behind `key=` in the line that holds `line`; -1: there is none.
  static int64_t number(const std::string& log, const std::string& line, const std::string& key) {
    std::smatch found;
    const std::regex pattern(line + "[^\n]* " + key + "=([0-9]+)");
    return std::regex_search(log, found, pattern) ? std::stoll(found[1]) : -1;
  }
  static int64_t calls(const std::string& log, const std::string& key) {
    return number(log, "step_calls", key);
  }
};

SamplingParams drawn(uint64_t seed) {
  SamplingParams p;
  p.max_tokens = 40;
  p.ignore_eos = true;
  p.seed = seed;
  p.top_p = 0.9;
  p.top_k = 30;
  return p;
}

// Prompts in chunks beside decodes, every way of sampling that the device knows.
TEST_F(DeviceCallsOfSteps, StepsSampledOnTheDeviceTakeNoMemoryAndWaitForNothing) {
  config_.max_prefill_chunk_tokens = 16;
  std::vector<SamplingParams> asks = {greedy(40), drawn(1), drawn(2), drawn(3)};
  asks[1].n = 3;
  asks[2].repetition_penalty = 1.2;
  asks[2].no_repeat_ngram = 3;
  asks[2].logit_bias = {{17, 2.0}};
  asks[3].logprobs = 5;
  asks[3].min_p = 0.02;
  const std::string log = log_of(asks);
  EXPECT_GE(calls(log, "steps"), 40) << log;
  EXPECT_EQ(calls(log, "sampled_on_host"), 0);
  EXPECT_EQ(calls(log, "allocations"), 0);
  EXPECT_EQ(calls(log, "waits"), 0);
  EXPECT_EQ(calls(log, "pageable_copies"), 0);
}

// A step's shape is captured when it comes for the second and the third time, one for each turn, and never again: a longer life of the same
// steps makes no more of them. `requests` of different prompts, one after another, so that every life has the same steps in the same order.
TEST_F(DeviceCallsOfSteps, AWarmedStepIsCapturedNoMore) {
  config_.max_prefill_chunk_tokens = 16;
  const auto log_of_life = [&](int requests, int32_t tokens) {
    testing::internal::CaptureStderr();
    {
      Result<std::unique_ptr<Engine>> engine = Engine::open(config_);
      EXPECT_TRUE(engine.has_value()) << engine.error().message;
      for (int i = 0; engine && i < requests; ++i) {
        SamplingParams sampling = drawn(1);
        sampling.temperature = i % 2;  // 0: the likeliest
        sampling.max_tokens = tokens;
        submit(**engine, prompt_of(20, 1 + i), sampling)->wait();
      }
    }
    return testing::internal::GetCapturedStderr();
  };
  const std::string life = log_of_life(4, 5), more_steps = log_of_life(4, 15),
                    more_requests = log_of_life(6, 5);
  EXPECT_GE(calls(life, "captures"), 4) << "of decode steps and of prompts, two turns each";
  EXPECT_GT(calls(more_steps, "steps"), calls(life, "steps") + 30);
  EXPECT_EQ(calls(more_steps, "captures"), calls(life, "captures")) << more_steps;
  EXPECT_EQ(calls(more_requests, "captures"), calls(life, "captures")) << more_requests;
  for (const std::string& log : {life, more_steps, more_requests})
    EXPECT_EQ(calls(log, "captures"), number(log, "step_graphs", "captured")) << "no other place captures";
}

// Beams and typical_p are chosen on the host: such a step waits once for its logits, which come by pinned memory.
TEST_F(DeviceCallsOfSteps, StepsSampledOnTheHostWaitOnceForTheirLogits) {
  std::vector<SamplingParams> asks = {greedy(12), greedy(12), drawn(3)};
  asks[0].beam_width = 3;
  asks[2].typical_p = 0.8;
  const std::string log = log_of(asks);
  EXPECT_GE(calls(log, "sampled_on_host"), 12) << log;
  EXPECT_EQ(calls(log, "allocations"), 0);
  EXPECT_EQ(calls(log, "waits"), calls(log, "sampled_on_host"));
  EXPECT_EQ(calls(log, "pageable_copies"), 0);
}

// How far what is taken may be from the plan on the shim. Pinned memory is the device's own there: what weights are sent through stays
// until the workspace is there, and a step's arrays lie there twice.
int64_t slack_of(const std::string& item) {
  if (item == "weights" || item == "workspace") return 288 << 10;
  return item == "steps_and_policies" ? kMiB : 256;
}

// A card gives memory out in pieces of 2 MiB, and the driver takes some for kernels when they first run: there the sum must fit.
TEST_F(DeviceCallsOfSteps, TheMemoryTakenIsTheMemoryPlanned) {
  config_.swap_space_bytes = config_.kv_cache_bytes;
  const std::string log = log_of({greedy(2)});
  int64_t planned = 0;
  for (const std::string item :
       {"weights", "product_plans", "cache", "host_memory", "logits", "workspace", "steps_and_policies"}) {
    SCOPED_TRACE(item);
    const int64_t asked = number(log, "item=" + item, "planned_bytes");
    const int64_t taken = number(log, "item=" + item, "taken_bytes");
    ASSERT_GE(asked, 0) << log;
    if (device_ != "cuda") {
      EXPECT_LE(std::abs(taken - asked), slack_of(item)) << taken << " of " << asked;
    }
    planned += asked;
  }
  EXPECT_EQ(number(log, "item=cache", "planned_bytes"), config_.kv_cache_bytes);
  EXPECT_GT(number(log, "item=graphs", "planned_bytes"), 0);
  EXPECT_GE(number(log, "device_memory", "planned_bytes"), planned);
  EXPECT_LE(number(log, "device_memory", "taken_bytes"), number(log, "device_memory", "planned_bytes"));
  const std::string device = log.substr(log.find("event=device_memory "));
  for (const char* key : {" device=", " driver=", " toolkit=", " compute_capability=", " free_bytes="})
    EXPECT_LT(device.find(key), device.find('\n')) << key;
}

}  // namespace
}  // namespace quire::golden
