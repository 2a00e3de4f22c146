// The CPU as a device: what it gives out is counted, and its sum is bounded by what was free. Memory is asked for and never touched, as a
// start does that fills its buffers later: to the system all of it is still free then.
#include <gtest/gtest.h>

#include "src/device/device.h"

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

}  // namespace
}  // namespace quire
