// Memory of KV policies in whole-engine runs. Method: this program's own operator new and aligned_alloc, which count and can be told to refuse
// one size. On the host shim every device and pinned buffer is an aligned_alloc, so that steps take none is seen; on the CPU the lists are the
// host's vectors, and one that finds no memory ends its request and no other. What the others answer is what they answer without it.
#include <atomic>
#include <cstdlib>
#include <new>

#include <malloc.h>

#include "tests/golden/stories_rig.h"

namespace {

std::atomic<size_t> refused_new{0}, refused_aligned{0};  // bytes; 0 = none. The first of that size is refused
std::atomic<int> num_aligned{0}, num_refused{0};

bool refuses(std::atomic<size_t>& armed, size_t bytes) {
  size_t wanted = bytes;
  if (bytes == 0 || !armed.compare_exchange_strong(wanted, 0)) return false;
  ++num_refused;
  return true;
}

}  // namespace

// Not inlined: the compiler would see malloc beside delete, and free beside new.
[[gnu::noinline]] void* operator new(size_t bytes) {
  void* p = refuses(refused_new, bytes) ? nullptr : std::malloc(bytes == 0 ? 1 : bytes);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
[[gnu::noinline]] void operator delete(void* p) noexcept {
  std::free(p);
}
[[gnu::noinline]] void operator delete(void* p, size_t) noexcept {
  std::free(p);
}
extern "C" void* aligned_alloc(size_t alignment, size_t bytes) {
  ++num_aligned;
  return refuses(refused_aligned, bytes) ? nullptr : memalign(alignment, bytes);
}

namespace quire::golden {
namespace {

struct Ask {
  int32_t length = 0;
  const char* policy = "";
  bool dump = false;
};

class PolicyMemoryInRuns : public StoriesTest {
 protected:
  void SetUp() override {
    StoriesTest::SetUp();
    compare_in_f32();
    config_.max_sequences = 8;
    config_.max_step_tokens = 128;
    config_.max_prefill_chunk_tokens = 37;
    config_.kv_cache_bytes = 4 << 20;
  }
  void TearDown() override { refused_new = refused_aligned = 0; }

  std::unique_ptr<Engine> open(const char* device) {
    config_.device = device;
    Result<std::unique_ptr<Engine>> engine = Engine::open(config_);
    EXPECT_TRUE(engine.has_value()) << engine.error().message;
    return engine ? std::move(*engine) : nullptr;
  }
  struct Ending {
    std::vector<int32_t> ids;
    std::optional<Error> error;
  };
  static std::vector<Ending> run(Engine& engine, const std::vector<Ask>& asks) {
    std::vector<std::shared_ptr<ErrorSink>> sinks;
    for (const Ask& ask : asks) {
      Request request;
      std::vector<int32_t> prompt;
      for (int32_t i = 0; i < ask.length; ++i) prompt.push_back(3 + (i * i * 7 + i * 13 + ask.length) % 500);
      request.prompt = std::move(prompt);
      request.sampling = greedy(12);
      request.kv_policy = ask.policy;
      request.dump_kv = ask.dump;
      sinks.push_back(std::make_shared<ErrorSink>());
      EXPECT_TRUE(engine.submit(std::move(request), sinks.back()));
    }
    std::vector<Ending> endings;
    for (const auto& sink : sinks) endings.push_back(sink->wait());
    expect_nothing_held(engine);
    return endings;
  }
  // The first of `asks` fails where `arm` makes it; the others give what they give without.
  template <class Arm>
  void expect_the_first_fails(const char* device, const std::vector<Ask>& asks, const Arm& arm,
                              const std::string& text) {
    const std::unique_ptr<Engine> engine = open(device);
    ASSERT_NE(engine, nullptr);
    const std::vector<Ending> sound = run(*engine, asks);
    for (const Ending& ending : sound) ASSERT_FALSE(ending.error);
    const std::unique_ptr<Engine> again = open(device);
    num_refused = 0;
    arm();
    const std::vector<Ending> got = run(*again, asks);
    EXPECT_EQ(num_refused, 1) << "the fault was never met";
    ASSERT_TRUE(got[0].error);
    EXPECT_EQ(got[0].error->code, Code::kResourceExhausted);
    EXPECT_NE(got[0].error->message.find(text), std::string::npos) << got[0].error->message;
    for (size_t i = 1; i < asks.size(); ++i) {
      EXPECT_FALSE(got[i].error) << i;
      EXPECT_EQ(got[i].ids, sound[i].ids) << i;
    }
    EXPECT_EQ(again->stats().requests_failed_total, 1);
  }

 private:
  class ErrorSink final : public TokenSink {
   public:
    void on_event(const TokenEvent& event) override {
      const std::lock_guard lock(mutex_);
      ending_.ids.insert(ending_.ids.end(), event.token_ids.begin(), event.token_ids.end());
      if (event.error) ending_.error = event.error;
      if (event.last) done_ = true, changed_.notify_all();
    }
    Ending wait() {
      std::unique_lock lock(mutex_);
      EXPECT_TRUE(changed_.wait_for(lock, std::chrono::seconds(120), [this] { return done_; }));
      return ending_;
    }

   private:
    std::mutex mutex_;
    std::condition_variable changed_;
    Ending ending_;
    bool done_ = false;
  };
};

// Sums over a prompt of 111 tokens in chunks of 37 grow, in the third, from 74 to twice that: 592 bytes, which nothing else here has.
TEST_F(PolicyMemoryInRuns, OnTheCpuAListWithoutMemoryFailsItsRequestAlone) {
  expect_the_first_fails(
      "cpu", {{111, "h2o:heavy=8,recent=7"}, {50, "h2o:heavy=8,recent=7"}, {41, "tova:budget=15"}, {30, ""}},
      [] { refused_new = 592; },
      "no host memory for the lists and scores of kv_policy 'h2o:heavy=8,recent=7'");
}

// 20 lists of 11 slots and a free one, 4 bytes each: 960, rounded to 1024.
TEST_F(PolicyMemoryInRuns, OnTheDeviceADumpWithoutMemoryFailsItsRequestAlone) {
  expect_the_first_fails(
      "cuda-host",
      {{41, "h2o:heavy=9,recent=1", true}, {30, "h2o:heavy=8,recent=7"}, {20, "tova:budget=15"}, {25, ""}},
      [] { refused_aligned = 1024; }, "dump of a KV policy's lists");
}

TEST_F(PolicyMemoryInRuns, OnTheDeviceStepsTakeNoMemory) {
  const std::unique_ptr<Engine> engine = open("cuda-host");
  ASSERT_NE(engine, nullptr);
  const int before = num_aligned;
  EXPECT_GT(before, 0) << "the counter is not what the device calls";
  for (const Ending& ending : run(*engine, {{111, "h2o:heavy=8,recent=7"},
                                            {5, "tova:budget=1"},
                                            {90, "tova:budget=64"},
                                            {60, "h2o:heavy=0,recent=16"},
                                            {30, ""}}))
    EXPECT_FALSE(ending.error);
  EXPECT_EQ(num_aligned, before);
}

}  // namespace
}  // namespace quire::golden
