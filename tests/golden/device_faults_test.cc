// What goes wrong with a device. At the start: an error with the numbers. In a step: the process ends, with the kernel and the last plans
// in its log, so that a supervisor starts another. Method: this program's own aligned_alloc, of which the host shim's device memory
// comes; it can refuse a size, and knows where the cache lies. Taking that from the shim's memory while an engine runs is what a card
// that lost its memory would be: the next kernel that reads the cache faults, in a step of the engine's own making.
#include <malloc.h>

#include <atomic>
#include <csignal>

#include "kernels/cuda/host_shim/memory_check.h"
#include "kernels/cuda/host_shim/runner.h"
#include "tests/golden/stories_rig.h"

namespace {

constexpr size_t kCacheBytes = 200 * 16 * 1280;  // blocks of 16 tokens
std::atomic<size_t> refused_bytes{0};            // 0: none
std::atomic<void*> cache{nullptr};               // the newest allocation of kCacheBytes

}  // namespace

extern "C" void* aligned_alloc(size_t alignment, size_t bytes) {
  if (bytes != 0 && bytes == refused_bytes) return nullptr;
  void* p = memalign(alignment, bytes);
  if (bytes == kCacheBytes) cache = p;
  return p;
}

namespace quire::golden {
namespace {

class DeviceFaults : public StoriesTest {
 protected:
  void SetUp() override {
    testing::FLAGS_gtest_death_test_style = "threadsafe";
    StoriesTest::SetUp();
    config_.device = "cuda-host";
    config_.max_sequences = 4;
    config_.max_step_tokens = 32;
    config_.max_context_tokens = 256;
    config_.kv_cache_bytes = kCacheBytes;
  }
  void TearDown() override { refused_bytes = 0; }

  // Ends with the process, or returns where the engine got over the loss.
  void lose_the_cache_while_running() {
    shim::set_default_shim_options({.checking = true});
    Result<std::unique_ptr<Engine>> engine = Engine::open(config_);
    if (!engine) return;
    const auto first = submit(**engine, {5, 6, 7}, greedy(120)),
               second = submit(**engine, {8, 9}, greedy(120));
    while (first->num_ids() < 3 || second->num_ids() < 3)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    shim::unregister_memory(cache);
    first->wait();
    second->wait();
  }
  std::string why_not_opened() {
    Result<std::unique_ptr<Engine>> engine = Engine::open(config_);
    return engine ? "it opened" : engine.error().message;
  }
};

TEST_F(DeviceFaults, AStepThatFaultsEndsTheProcessWithItsKernelAndTheLastPlans) {
  EXPECT_EXIT(
      lose_the_cache_while_running(), testing::KilledBySignal(SIGABRT),
      "check failed at [^\n]*host_device.cc:[0-9]+: [^\n]*rope_kv_write[^\n]*\n"
      "quire: plan queued last: step=[0-9]+ sequences=2 tokens=2 copies=0 [0-9]+:1@[0-9]+ [0-9]+:1@[0-9]+; "
      "before it: step=[0-9]+ sequences=2 ");
}

TEST_F(DeviceFaults, AnAllocationThatFailsIsRefusedAtTheStartWithBothSizes) {
  refused_bytes = kCacheBytes;
  const std::string why = why_not_opened();
  EXPECT_NE(why.find("cache needs 4096000 bytes of host memory; "), std::string::npos) << why;
  EXPECT_NE(why.find(" bytes are free"), std::string::npos) << why;
  refused_bytes = 0;
  EXPECT_EQ(why_not_opened(), "it opened");
}

TEST_F(DeviceFaults, ADeviceTooSmallIsRefusedWithTheSum) {
  config_.kv_cache_bytes = int64_t{1} << 40;
  const std::string why = why_not_opened();
  for (const char* part : {" MiB to take (the lesser of ", "; weights 2 + workspace ", " + logits ",
                           " + steps ", " + cache 1101005 = ", " more (lower kv_cache_bytes)"})
    EXPECT_NE(why.find(part), std::string::npos) << part << " in " << why;
}

}  // namespace
}  // namespace quire::golden
