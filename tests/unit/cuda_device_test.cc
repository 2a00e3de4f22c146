// What is said of drivers, cards and builds that do not fit, from made-up facts; and what open_cuda_device says on this machine. Where there is a card, that memory, copies and captured graphs work on it.
#include <gtest/gtest.h>

#include <cstring>
#include <optional>

#include "src/device/cuda_support.h"
#include "src/device/stream_device.h"

namespace quire {
namespace {

TEST(CudaSupport, AsksForNoCardWhereNoneCanBe) {
  EXPECT_EQ(why_no_card({.toolkit_version = 13000, .driver_version = 13020, .num_cards = 1}), std::nullopt);
  // Within a major version, older drivers do.
  EXPECT_EQ(why_no_card({.toolkit_version = 13020, .driver_version = 13000, .num_cards = 1}), std::nullopt);
  EXPECT_EQ(why_no_card({.toolkit_version = 13000}), "no NVIDIA driver is installed");
  EXPECT_EQ(why_no_card({.toolkit_version = 13020, .driver_version = 12080, .num_cards = 1}),
            "the driver serves CUDA 12.8, this build needs 13.0 or newer");
  EXPECT_EQ(why_no_card({.toolkit_version = 13000, .driver_version = 13000}), "the driver reports no card");
  EXPECT_EQ(why_no_card({.toolkit_version = 13000, .driver_version = 13000, .fault = "no permission"}),
            "no permission");
}

TEST(CudaSupport, RefusesACardTooOldOrWithoutCodeInTheBuild) {
  EXPECT_EQ(why_card_unfit({.name = "A100", .capability = 80}, "80-real"), std::nullopt);
  EXPECT_EQ(why_card_unfit({.name = "T4", .capability = 75, .no_code = "no image"}, "80-real"),
            "T4 has compute capability 7.5, at least 8.0 is needed");
  EXPECT_EQ(why_card_unfit({.name = "L4", .capability = 89, .no_code = "no image (209)"}, "90a-real"),
            "L4 has compute capability 8.9, and this build holds code for 90a-real only; configure with "
            "-DQUIRE_CUDA_ARCHITECTURES=89-real [no image (209)]");
  const auto hopper =
      why_card_unfit({.name = "H100", .capability = 90, .no_code = "no image"}, "80-real, 86-real");
  ASSERT_TRUE(hopper);
  EXPECT_NE(hopper->find("code for 80-real, 86-real only"), std::string::npos);
  EXPECT_NE(hopper->find("QUIRE_CUDA_ARCHITECTURES=90a-real"), std::string::npos);
  const auto later = why_card_unfit({.name = "B200", .capability = 100, .no_code = "no image"}, "90a-real");
  ASSERT_TRUE(later);
  EXPECT_NE(later->find("compute capability 10.0"), std::string::npos);
  EXPECT_NE(later->find("=100-real"), std::string::npos);
}

TEST(CudaSupport, RunsHoppersKernelsOnlyFromCodeMadeForThem) {
  EXPECT_EQ(kernel_capability(90, true), 90);
  EXPECT_EQ(kernel_capability(90, false), 80);
  EXPECT_EQ(kernel_capability(89, false), 89);
  EXPECT_EQ(kernel_capability(100, false), 100);
}

TEST(CudaDevice, SaysInOneLineWhyItCannotOpen) {
  const auto device = open_cuda_device();
  if (device) GTEST_SKIP() << "this machine has a card: " << (*device)->facts().name;
  EXPECT_EQ(device.error().code, Code::kUnavailable);
  EXPECT_GT(device.error().message.size(), 20u);
  EXPECT_EQ(device.error().message.find('\n'), std::string::npos);
}

TEST(CudaDevice, ReportsACardItCanUse) {
  const auto device = open_cuda_device();
  if (!device) GTEST_SKIP() << device.error().message;
  const DeviceFacts& f = (*device)->facts();
  EXPECT_EQ(f.kind, DeviceKind::kCuda);
  EXPECT_GE(f.compute_capability, 80);
  EXPECT_GT(f.multiprocessors, 0);
  EXPECT_GT(f.free_bytes, 0);
  EXPECT_LE(f.free_bytes, f.memory_bytes);
}

TEST(CudaDevice, RefusesMoreMemoryThanThereIsWithBothSizes) {
  auto device = open_cuda_device();
  if (!device) GTEST_SKIP() << device.error().message;
  const int64_t too_much = (*device)->facts().memory_bytes * 2;
  const auto buffer = (*device)->allocate(too_much, "weights");
  ASSERT_FALSE(buffer);
  EXPECT_EQ(buffer.error().code, Code::kResourceExhausted);
  EXPECT_NE(buffer.error().message.find(std::to_string(too_much)), std::string::npos);
}

TEST(CudaDevice, RunsACapturedCopyAgain) {
  auto opened = open_cuda_device();
  if (!opened) GTEST_SKIP() << opened.error().message;
  StreamDevice& device = **opened;
  auto host = device.allocate_pinned(8, "host"), memory = device.allocate(8, "memory");
  ASSERT_TRUE(host && memory);
  device.begin_capture();
  device.copy_to_device(memory->data(), host->data(), 4);
  device.copy_to_host(host->as<char>() + 4, memory->data(), 4);
  const auto graph = device.end_capture();
  for (const char* word : {"abcd", "wxyz"}) {
    std::memcpy(host->data(), word, 4);
    device.run(*graph);
    device.synchronize();
    EXPECT_EQ(std::memcmp(host->as<char>() + 4, word, 4), 0);
  }
}

}  // namespace
}  // namespace quire
