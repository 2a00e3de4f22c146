// What open_cuda_device says on this machine. Where there is a card, that memory, copies and captured graphs work on it.
#include <gtest/gtest.h>

#include <cstring>

#include "src/device/stream_device.h"

namespace quire {
namespace {

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
