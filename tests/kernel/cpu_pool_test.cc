// The thread pool of the CPU back end: every unit once, from many regions of many sizes.
#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "kernels/kernels.h"

namespace quire::cpu {
namespace {

TEST(ThreadPool, RunsEveryUnitOnceInEveryRegion) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    ASSERT_TRUE(pool.start());
    std::vector<int> runs(1000);
    for (int region = 1; region <= 2000; ++region) {
      const int64_t count = region % 97;
      std::fill(runs.begin(), runs.end(), 0);
      pool.run(count, [&](int64_t unit, int thread) {
        ASSERT_TRUE(thread >= 0 && thread < threads);
        ++runs[static_cast<size_t>(unit)];
      });
      for (int64_t i = 0; i < 100; ++i)
        ASSERT_EQ(runs[static_cast<size_t>(i)], i < count ? 1 : 0) << "region " << region;
    }
  }
}

TEST(ThreadPool, WakesWorkersThatHaveGoneToSleep) {
  ThreadPool pool(3);
  ASSERT_TRUE(pool.start());
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // longer than a worker spins
    std::atomic<int> done = 0;
    pool.run(50, [&](int64_t, int) { ++done; });
    EXPECT_EQ(done, 50);
  }
}

// In a process of its own, whose address space has no room for so many stacks. One that waits for its threads for ever is ended.
TEST(ThreadPoolDeathTest, ThreadsThatTheSystemDoesNotStartAreAnError) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "the thread sanitizer's own memory does not fit in a limited address space";
#endif
  const auto open = [] {
    alarm(20);
    const rlimit little{.rlim_cur = 1 << 30, .rlim_max = 1 << 30};
    if (setrlimit(RLIMIT_AS, &little) != 0) _exit(2);
    const auto device = open_cpu_device(1);
    const auto kernels = make_cpu_kernels(**device, {.activations = DType::kF32, .threads = 4000});
    if (kernels) _exit(3);
    std::fprintf(stderr, "%s\n", kernels.error().message.c_str());
    _exit(kernels.error().code == Code::kResourceExhausted ? 0 : 4);
  };
  EXPECT_EXIT(open(), testing::ExitedWithCode(0),
              "the system starts no thread for the CPU's kernels .* of 4000, --threads.: .*RLIMIT_AS .* is "
              "1073741824");
}

TEST(ThreadPool, LetsOthersTakeTheShareOfAThreadThatIsLate) {
  ThreadPool pool(2);
  ASSERT_TRUE(pool.start());
  std::atomic<int> others = 0;
  pool.run(10, [&](int64_t unit, int) {
    if (unit == 0) {
      while (others < 9) std::this_thread::yield();  // hangs unless all the rest run elsewhere meanwhile
    } else {
      ++others;
    }
  });
  EXPECT_EQ(others, 9);
}

}  // namespace
}  // namespace quire::cpu
