// KV policies on a CUDA device: the tokens and the kept positions of the CPU back end, which tests/e2e compares with a reference that
// has no cache. In float32, where both add the same numbers. Alone and together, in chunks, with blocks of 8, as four samples, behind a
// cached prefix, with little room. On the host shim by default; QUIRE_TEST_DEVICE=cuda runs it on a card.
#include "tests/golden/stories_rig.h"

namespace quire::golden {
namespace {

struct Ask {
  std::vector<int32_t> prompt;
  std::string policy;
  int32_t max_tokens = 12, n = 1, beam_width = 0;
};

struct Answer {
  std::vector<int32_t> ids;
  KvDump kept;
  bool operator==(const Answer&) const = default;
};

// Budgets around the block size, parts that end inside a block, prompts that are shorter than the budget and some that are longer.
std::vector<Ask> asks() {
  std::vector<Ask> list;
  int32_t seed = 0;
  for (const char* policy :
       {"tova:budget=15", "tova:budget=32", "tova:budget=1", "h2o:heavy=8,recent=7", "h2o:heavy=0,recent=16",
        "h2o:heavy=9,recent=1", "h2o:heavy=20,recent=13", "window:size=20", "stream:sinks=4,recent=20", ""})
    for (const int32_t length : {5, 41})
      list.push_back({.prompt = prompt_of(length, ++seed), .policy = policy});
  return list;
}

class RetentionOnDevice : public StoriesTest {
 protected:
  void SetUp() override {
    StoriesTest::SetUp();
    compare_in_f32();
    config_.max_sequences = 32;
    config_.max_step_tokens = 256;
    config_.kv_cache_bytes = 8 << 20;
  }

  std::vector<std::vector<Answer>> answers(const std::string& device, const std::vector<Ask>& list) {
    config_.device = device;
    Result<std::unique_ptr<Engine>> engine = Engine::open(config_);
    EXPECT_TRUE(engine.has_value()) << engine.error().message;
    if (!engine) return {};
    std::vector<std::shared_ptr<DumpCollector>> sinks;
    for (const Ask& ask : list) sinks.push_back(ask_for(**engine, ask));
    std::vector<std::vector<Answer>> out;
    for (size_t i = 0; i < list.size(); ++i) {
      sinks[i]->wait();
      out.emplace_back();
      for (int32_t k = 0; k < list[i].n; ++k) out.back().push_back({sinks[i]->ids(k), sinks[i]->dumps[k]});
    }
    cached_tokens_ = (*engine)->stats().cached_tokens_total;
    expect_nothing_held(**engine);
    return out;
  }
  void expect_the_same(const std::vector<Ask>& list) {
    const auto wanted = answers("cpu", list);
    const auto got = answers(device_, list);
    ASSERT_EQ(got.size(), wanted.size());
    for (size_t i = 0; i < list.size(); ++i)
      for (size_t k = 0; k < wanted[i].size(); ++k) {
        const std::string what = list[i].policy + ", prompt of " + std::to_string(list[i].prompt.size()) +
                                 ", sample " + std::to_string(k);
        ASSERT_FALSE(wanted[i][k].kept.empty()) << what;
        EXPECT_EQ(got[i][k].ids, wanted[i][k].ids) << what;
        EXPECT_EQ(got[i][k].kept, wanted[i][k].kept) << what;
      }
  }

  int64_t cached_tokens_ = 0;

 private:
  class DumpCollector final : public TokenSink {
   public:
    void on_event(const TokenEvent& event) override {
      if (event.finish != FinishReason::kNone) dumps[event.index] = event.kv_dump;
      inner_.on_event(event);
    }
    void wait() { inner_.wait(); }
    void refuse(const Error& why) { inner_.refuse(why); }
    std::vector<int32_t> ids(int32_t index) { return inner_.ids(index); }
    std::map<int32_t, KvDump> dumps;

   private:
    Collector inner_;
  };
  static std::shared_ptr<DumpCollector> ask_for(Engine& engine, const Ask& ask) {
    auto sink = std::make_shared<DumpCollector>();
    Request request;
    request.prompt = ask.prompt;
    request.sampling = greedy(ask.max_tokens);
    request.sampling.n = ask.n;
    request.sampling.beam_width = ask.beam_width;
    if (ask.n > 1 && ask.beam_width == 0) {  // logprobs: chosen on the host, by the CPU back end's sampler
      request.sampling.temperature = 1;
      request.sampling.seed = 5;
      request.sampling.logprobs = 0;
    }
    request.kv_policy = ask.policy;
    request.dump_kv = true;
    const Result<RequestId> id = engine.submit(std::move(request), sink);
    if (!id) sink->refuse(id.error());
    return sink;
  }
};

TEST_F(RetentionOnDevice, KeepsWhatTheCpuKeepsInOneBatch) {
  expect_the_same(asks());
}

TEST_F(RetentionOnDevice, KeepsItInChunksOfOneToken) {
  config_.max_prefill_chunk_tokens = 1;
  std::vector<Ask> list = asks();
  list.resize(12);
  expect_the_same(list);
}

TEST_F(RetentionOnDevice, KeepsItInChunksOfSevenAndBlocksOfEight) {
  config_.max_prefill_chunk_tokens = 7;
  config_.block_tokens = 8;
  expect_the_same(asks());
}

TEST_F(RetentionOnDevice, KeepsItThreeAtATimeWithLittleRoom) {
  config_.max_sequences = 3;
  config_.max_context_tokens = 64;
  config_.max_queued_kv_factor = 1000;
  config_.kv_cache_bytes = 10 * 16 * kTokenBytes;
  expect_the_same(asks());
}

// Room for one request at a time: the others wait, and nothing else is different.
TEST_F(RetentionOnDevice, KeepsItWhereTheMemoryForListsIsSmall) {
  std::vector<Ask> list = asks();
  list.push_back({.prompt = prompt_of(30, 77), .policy = "h2o:heavy=20,recent=13", .n = 3});
  const auto plenty = answers("cpu", list);
  config_.kv_policy_bytes = 32 << 10;
  for (const std::string& device : {std::string("cpu"), device_})
    EXPECT_EQ(answers(device, list), plenty) << device;
  config_.kv_policy_bytes = 1 << 10;
  config_.device = "cpu";
  Result<std::unique_ptr<Engine>> engine = Engine::open(config_);
  ASSERT_TRUE(engine.has_value()) << engine.error().message;
  Request request;
  request.prompt = prompt_of(30, 1);
  request.kv_policy = "h2o:heavy=20,recent=13";
  const Result<RequestId> id = (*engine)->submit(std::move(request), std::make_shared<Collector>());
  ASSERT_FALSE(id.has_value());
  EXPECT_EQ(id.error().code, Code::kInvalidArgument);
  EXPECT_NE(id.error().message.find("there are 1024 (kv_policy_bytes)"), std::string::npos)
      << id.error().message;
}

TEST_F(RetentionOnDevice, KeepsListsOfEachSamplesOwn) {
  std::vector<Ask> list;
  for (const char* policy : {"tova:budget=15", "h2o:heavy=8,recent=7"})
    for (const int32_t length : {9, 40})
      list.push_back({.prompt = prompt_of(length, 3), .policy = policy, .max_tokens = 16, .n = 4});
  expect_the_same(list);
}

// Every fork copies a beam's lists into a place of their own; beside other requests, and with as many beams as fit one after the other.
TEST_F(RetentionOnDevice, KeepsListsOfEachBeamsOwn) {
  std::vector<Ask> list;
  for (const char* policy :
       {"tova:budget=15", "h2o:heavy=8,recent=7", "tova:budget=50", "h2o:heavy=30,recent=2"})
    for (const int32_t length : {9, 40})
      list.push_back(
          {.prompt = prompt_of(length, 3), .policy = policy, .max_tokens = 24, .n = 4, .beam_width = 4});
  expect_the_same(list);
}

TEST_F(RetentionOnDevice, KeepsItBehindACachedPrefix) {
  config_.max_sequences = 1;  // one after the other
  std::vector<Ask> list;
  for (const char* policy : {"", "tova:budget=20", "tova:budget=20", "h2o:heavy=8,recent=7"})
    list.push_back({.prompt = prompt_of(50, 4), .policy = policy});
  expect_the_same(list);
  EXPECT_GE(cached_tokens_, 2 * 48);
}

}  // namespace
}  // namespace quire::golden
