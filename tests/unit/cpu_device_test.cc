// The CPU as a device: what it gives out is counted, and its sum is bounded by what was free. Memory is asked for and never touched, as a
// start does that fills its buffers later: to the system all of it is still free then.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "src/device/device.h"
#include "src/device/host_memory.h"

namespace quire {
namespace {

TEST(CpuDevice, CountsWhatItGaveAndWhatIsLeft) {
  const auto device = std::move(open_cpu_device(1)).value();
  const int64_t free = device->free_bytes();
  EXPECT_EQ(free, device->facts().free_bytes);
  {
    const DeviceBuffer a = std::move(device->allocate(1000, "a")).value();
    DeviceBuffer b = std::move(device->allocate_pinned(500, "b")).value();
    EXPECT_EQ(device->allocated_bytes(), 1500);
    EXPECT_EQ(device->free_bytes(), free - 1500);
    const DeviceBuffer c = std::move(b);
    EXPECT_EQ(device->allocated_bytes(), 1500);
    b = DeviceBuffer();
    EXPECT_EQ(device->allocated_bytes(), 1500);
  }
  EXPECT_EQ(device->allocated_bytes(), 0);
  EXPECT_EQ(device->free_bytes(), free);
}

TEST(CpuDevice, RefusesASumThatIsMoreThanWasFreeThoughNothingIsTouched) {
  const auto device = std::move(open_cpu_device(1)).value();
  const int64_t share = device->facts().free_bytes / 5 * 3;
  {
    const Result<DeviceBuffer> first = device->allocate(share, "first");
    if (!first)
      GTEST_SKIP() << "the machine's other programs took memory meanwhile: " << first.error().message;
    const Result<DeviceBuffer> second = device->allocate(share, "second");
    ASSERT_FALSE(second);
    EXPECT_EQ(second.error().code, Code::kResourceExhausted);
    EXPECT_NE(second.error().message.find("second needs " + std::to_string(share)), std::string::npos)
        << second.error().message;
  }
  EXPECT_EQ(device->allocated_bytes(), 0);
}

TEST(CpuDevice, NamesAnInstructionSetThatIsNone) {
  setenv("QUIRE_CPU_ISA", "avx", 1);
  const Result<std::unique_ptr<Device>> device = open_cpu_device(1);
  unsetenv("QUIRE_CPU_ISA");
  ASSERT_FALSE(device);
  EXPECT_EQ(device.error().message,
            "QUIRE_CPU_ISA is 'avx'; it must be one of plain, avx2, avx512 and avx512bf16");
}

// In a process of its own, whose address space ends 100 MB further on.
TEST(CpuDevice, NamesTheLimitOfTheAddressSpaceWhereThatIsWhatRefuses) {
  const auto allocate_under_a_limit = [] {
    const auto device = std::move(open_cpu_device(1)).value();
    int64_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    const auto limit = static_cast<rlim_t>(pages * sysconf(_SC_PAGE_SIZE) + 100'000'000);
    const rlimit limits{.rlim_cur = limit, .rlim_max = limit};
    if (setrlimit(RLIMIT_AS, &limits) != 0) _exit(1);
    const Result<DeviceBuffer> buffer = device->allocate(200'000'000, "cache");
    std::fprintf(stderr, "%s, limit %zu\n", buffer ? "given" : buffer.error().message.c_str(),
                 static_cast<size_t>(limit));
    _exit(0);
  };
  EXPECT_EXIT(allocate_under_a_limit(), testing::ExitedWithCode(0),
              "cache needs 200000000 bytes of host memory; [0-9]+ bytes are free, "
              "and RLIMIT_AS \\(ulimit -v\\) leaves (99|100)[0-9]+ bytes of ([0-9]+), limit ");
  EXPECT_EQ(address_space_note(), "") << "the tests run without such a limit";
}

}  // namespace
}  // namespace quire
