// The mover's threads over the disk tier's files: what goes down comes back, and what is corrupt or unwanted does not.
#include <cstring>
#include <stop_token>

#include "src/execute/threaded_mover.h"
#include "tests/unit/disk_rig.h"

namespace quire {
namespace {

constexpr int32_t kBlocks = 6;

class DiskMoverTest : public DiskTest, public testing::WithParamInterface<int> {
 protected:
  // Blocks of the device, host memory and, where the device has memory of its own, two per disk thread.
  void make(const MakeCopyStream& make_stream = make_host_copy_stream) {
    arena_.resize(kBlocks * kBlockBytes);
    host_.resize(kBlocks * kBlockBytes);
    staging_.resize(GetParam() * 4 * kBlockBytes);
    Result<std::unique_ptr<DiskStore>> store = DiskStore::open(setup(8));
    ASSERT_TRUE(store.has_value()) << store.error().message;
    mover_ = make_threaded_mover(make_stream,
                                 {.arena = arena_.data(),
                                  .host = host_.data(),
                                  .block_bytes = kBlockBytes,
                                  .staging = GetParam() > 0 ? staging_.data() : nullptr,
                                  .staging_blocks = 2},
                                 std::move(*store))
                 .value();
  }
  char* arena(int32_t block) { return arena_.data() + block * kBlockBytes; }
  TransferEnd run(TransferDirection direction, std::vector<TierCopy> copies, std::stop_token unwanted = {}) {
    mover_->submit(
        {.id = 3, .direction = direction, .copies = std::move(copies), .unwanted = std::move(unwanted)});
    mover_->wait();
    std::vector<TransferEnd> ends;
    mover_->poll(ends);
    EXPECT_EQ(ends.size(), 1u);
    EXPECT_EQ(ends[0].id, 3u);
    return ends[0];
  }
  static TierCopy to_disk(TierCopy copy, int32_t place, uint64_t serial) {
    copy.disk = DiskBlockId{place};
    copy.serial = serial;
    copy.record = std::make_shared<const StoredBlock>(block(place, serial));
    return copy;
  }
  static TierCopy from_disk(int32_t device, int32_t place, uint64_t serial) {
    return {.device = BlockId{device}, .disk = DiskBlockId{place}, .serial = serial};
  }
  void TearDown() override {
    mover_.reset();
    DiskTest::TearDown();
  }
  std::string arena_, host_, staging_;
  std::unique_ptr<BlockMover> mover_;
};

TEST_P(DiskMoverTest, BlocksGoDownFromDeviceAndHostAndComeBackElsewhere) {
  make();
  std::vector<TierCopy> down;
  for (int32_t i = 0; i < 5; ++i) std::memset(arena(i), 'a' + i, kBlockBytes);
  for (int32_t i = 0; i < 5; ++i) down.push_back(to_disk({.device = BlockId{i}}, 7 - i, 10 + i));
  ASSERT_TRUE(run(TransferDirection::kToDisk, down).status);
  std::memset(host_.data() + 2 * kBlockBytes, 'z', kBlockBytes);
  ASSERT_TRUE(run(TransferDirection::kToDisk, {to_disk({.host = HostBlockId{2}}, 0, 20)}).status);
  std::fill(arena_.begin(), arena_.end(), '.');
  std::memset(host_.data() + 4 * kBlockBytes, 'y', kBlockBytes);
  ASSERT_TRUE(run(TransferDirection::kToDevice, {{.device = BlockId{3}, .host = HostBlockId{4}},
                                                 from_disk(0, 7, 10),
                                                 from_disk(5, 5, 12),
                                                 from_disk(1, 0, 20)})
                  .status);
  EXPECT_EQ(std::string(arena(0), kBlockBytes), bytes('a'));
  EXPECT_EQ(std::string(arena(1), kBlockBytes), bytes('z'));
  EXPECT_EQ(std::string(arena(2), kBlockBytes), bytes('.'));
  EXPECT_EQ(std::string(arena(3), kBlockBytes), bytes('y'));
  EXPECT_EQ(std::string(arena(5), kBlockBytes), bytes('c'));
}

TEST_P(DiskMoverTest, ACorruptBlockFailsItsTransferAndIsNamed) {
  make();
  ASSERT_TRUE(run(TransferDirection::kToDisk,
                  {to_disk({.device = BlockId{0}}, 3, 10), to_disk({.device = BlockId{1}}, 4, 11)})
                  .status);
  damage("quire-kv.blocks", 4 * 8192 + 17);
  const TransferEnd end = run(TransferDirection::kToDevice, {from_disk(2, 3, 10), from_disk(3, 4, 11)});
  EXPECT_FALSE(end.status);
  EXPECT_EQ(end.corrupt, std::vector{DiskBlockId{4}});
  EXPECT_TRUE(run(TransferDirection::kToDevice, {from_disk(2, 3, 10)}).status);
}

// Where what comes from the disk goes up by a stream.
class StagedDiskMoverTest : public DiskMoverTest {};

// Its request ends while the first block goes up to the device: of the host, or with the first two of the disk.
class StopsAtTheFirst final : public CopyStream {
 public:
  explicit StopsAtTheFirst(std::stop_source& unwanted) : unwanted_(unwanted) {}
  void copy_to_device(void* target, const void* host, int64_t bytes) override {
    unwanted_.request_stop();
    std::memcpy(target, host, static_cast<size_t>(bytes));
  }
  void copy_to_host(void* host, const void* source, int64_t bytes) override {
    std::memcpy(host, source, static_cast<size_t>(bytes));
  }
  void wait() override {}

 private:
  std::stop_source& unwanted_;
};

TEST_P(DiskMoverTest, WhatNobodyWaitsForIsReadNoFurther) {
  std::stop_source unwanted;
  make([&unwanted] { return std::make_unique<StopsAtTheFirst>(unwanted); });
  std::vector<TierCopy> down, up;
  for (int32_t i = 0; i < 4; ++i) {
    std::memset(arena(i), 'a' + i, kBlockBytes);
    down.push_back(to_disk({.device = BlockId{i}}, i, 1));
  }
  ASSERT_TRUE(run(TransferDirection::kToDisk, down).status);
  std::memset(arena(0), '-', arena_.size());
  const bool is_staged = GetParam() > 0;
  if (!is_staged) up.push_back({.device = BlockId{5}, .host = HostBlockId{0}});
  for (int32_t i = 0; i < 4; ++i) up.push_back(from_disk(i, i, 1));
  const TransferEnd end = run(TransferDirection::kToDevice, up, unwanted.get_token());
  EXPECT_EQ(end.status.error().code, Code::kCancelled);
  EXPECT_EQ(end.stopped_after, is_staged ? 2 : 0);
  for (int32_t i = 0; i < 4; ++i) EXPECT_EQ(arena(i)[0], is_staged && i < 2 ? 'a' + i : '-') << "block " << i;
}

// It is no less of a failure for having been stopped then: what is corrupt is to be forgotten.
TEST_P(StagedDiskMoverTest, WhatFailedBeforeItWasStoppedHasFailed) {
  std::stop_source unwanted;
  make([&unwanted] { return std::make_unique<StopsAtTheFirst>(unwanted); });
  std::vector<TierCopy> down, up;
  for (int32_t i = 0; i < 4; ++i) {
    down.push_back(to_disk({.device = BlockId{i}}, i, 1));
    up.push_back(from_disk(i, i, 1));
  }
  ASSERT_TRUE(run(TransferDirection::kToDisk, down).status);
  damage("quire-kv.blocks", 8192);
  const TransferEnd end = run(TransferDirection::kToDevice, up, unwanted.get_token());
  EXPECT_EQ(end.status.error().code, Code::kUnavailable);
  EXPECT_EQ(end.corrupt, std::vector<DiskBlockId>{DiskBlockId{1}});
  EXPECT_FALSE(end.stopped_after);
}

TEST_P(DiskMoverTest, WhatWasSubmittedIsOnTheDiskBeforeTheMoverGoes) {
  make();
  for (int32_t i = 0; i < 5; ++i)
    mover_->submit({.id = static_cast<uint64_t>(i),
                    .direction = TransferDirection::kToDisk,
                    .copies = {to_disk({.device = BlockId{i}}, i, 10 + i)}});
  mover_.reset();
  EXPECT_EQ(open(8).take_stored().size(), 5u);
}

INSTANTIATE_TEST_SUITE_P(Staging, StagedDiskMoverTest, testing::Values(1));
INSTANTIATE_TEST_SUITE_P(Staging, DiskMoverTest, testing::Values(0, 1), [](const auto& info) {
  return info.param > 0 ? "MemoryOfItsOwn" : "TheHostsMemory";
});

}  // namespace
}  // namespace quire
