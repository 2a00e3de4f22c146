// The thread pool of the CPU back end: every unit once, from many regions of many sizes.
#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <chrono>

namespace quire::cpu {
namespace {

TEST(ThreadPool, RunsEveryUnitOnceInEveryRegion) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
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
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // longer than a worker spins
    std::atomic<int> done = 0;
    pool.run(50, [&](int64_t, int) { ++done; });
    EXPECT_EQ(done, 50);
  }
}

TEST(ThreadPool, LetsOthersTakeTheShareOfAThreadThatIsLate) {
  ThreadPool pool(2);
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
