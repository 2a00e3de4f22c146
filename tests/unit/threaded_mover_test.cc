// The mover's threads over memory alone, with copy streams that a test can hold up: who waits for whom. What goes
// through the disk is disk_test.cc's.
#include "src/execute/threaded_mover.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <stop_token>
#include <thread>
#include <utility>
#include <vector>

namespace quire {
namespace {

constexpr int64_t kBlockBytes = 64;
constexpr int32_t kBlocks = 4;

// Copies to the host do not return while the gate is closed.
class Gated final : public CopyStream {
 public:
  explicit Gated(std::atomic<bool>& open) : open_(open) {}
  void copy_to_device(void* target, const void* host, int64_t bytes) override {
    std::memcpy(target, host, static_cast<size_t>(bytes));
  }
  void copy_to_host(void* host, const void* source, int64_t bytes) override {
    open_.wait(false);
    std::memcpy(host, source, static_cast<size_t>(bytes));
  }
  void wait() override {}

 private:
  std::atomic<bool>& open_;
};

class ThreadedMover : public testing::Test {
 protected:
  ThreadedMover() : arena_(kBlocks * kBlockBytes, 'a'), host_(kBlocks * kBlockBytes, 'h') {
    mover_ =
        std::move(make_threaded_mover(
                      [this] { return std::make_unique<Gated>(open_); },
                      {.arena = arena_.data(), .host = host_.data(), .block_bytes = kBlockBytes}, nullptr))
            .value();
  }
  ~ThreadedMover() override { open_gate(); }
  void open_gate() {
    open_ = true;
    open_.notify_all();
  }
  void submit(uint64_t id, TransferDirection direction, int32_t device, int32_t host) {
    mover_->submit({.id = id,
                    .direction = direction,
                    .copies = {{.device = BlockId{device}, .host = HostBlockId{host}}}});
  }
  std::vector<uint64_t> ended() {
    mover_->wait();
    std::vector<TransferEnd> ends;
    mover_->poll(ends);
    std::vector<uint64_t> ids;
    for (const TransferEnd& end : ends) ids.push_back(end.id);
    return ids;
  }
  // Within ten seconds, so that a failure is one and not a hang.
  bool ends_soon() {
    for (int i = 0; i < 1000 && !seen_; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return seen_;
  }
  std::atomic<bool> open_{false}, seen_{false};
  std::string arena_, host_;
  std::unique_ptr<BlockMover> mover_;
};

// A request waits for the second; the first is written ahead of an eviction, for nobody.
TEST_F(ThreadedMover, WhatComesBackDoesNotWaitForWhatGoesDown) {
  mover_->set_on_end([this] { seen_ = true; });
  submit(1, TransferDirection::kToHost, 0, 0);
  submit(2, TransferDirection::kToDevice, 1, 1);
  const bool came = ends_soon();
  EXPECT_TRUE(came) << "it stands behind a copy that nobody waits for";
  if (came) {
    EXPECT_EQ(ended(), std::vector<uint64_t>{2});
    EXPECT_EQ(arena_.substr(kBlockBytes, kBlockBytes), std::string(kBlockBytes, 'h'));
    EXPECT_EQ(host_.substr(0, kBlockBytes), std::string(kBlockBytes, 'h')) << "the other is still under way";
  }
  open_gate();
  if (came) {
    EXPECT_EQ(ended(), std::vector<uint64_t>{1});
    EXPECT_EQ(host_.substr(0, kBlockBytes), std::string(kBlockBytes, 'a'));
  }
}

TEST_F(ThreadedMover, WhatNobodyWaitsForEndsBetweenTwoBlocks) {
  std::stop_source unwanted;
  mover_->submit({.id = 1,
                  .direction = TransferDirection::kToHost,
                  .copies = {{.device = BlockId{0}, .host = HostBlockId{0}},
                             {.device = BlockId{2}, .host = HostBlockId{2}}},
                  .unwanted = unwanted.get_token()});
  unwanted.request_stop();
  open_gate();
  mover_->wait();
  std::vector<TransferEnd> ends;
  mover_->poll(ends);
  ASSERT_EQ(ends.size(), 1u);
  EXPECT_EQ(ends[0].status.error().code, Code::kCancelled);
  EXPECT_EQ(ends[0].stopped_after, 0) << "blocks of the disk";
  EXPECT_EQ(host_.substr(2 * kBlockBytes, kBlockBytes), std::string(kBlockBytes, 'h'));
}

TEST_F(ThreadedMover, WhatNobodyWaitsForDoesNotStandBehindAnother) {
  std::stop_source unwanted;
  submit(1, TransferDirection::kToHost, 0, 0);
  mover_->submit({.id = 2,
                  .direction = TransferDirection::kToHost,
                  .copies = {{.device = BlockId{1}, .host = HostBlockId{1}}},
                  .unwanted = unwanted.get_token()});
  submit(3, TransferDirection::kToHost, 2, 2);
  std::vector<TransferEnd> ends;
  mover_->poll(ends);
  EXPECT_TRUE(ends.empty());
  unwanted.request_stop();
  mover_->poll(ends);
  ASSERT_EQ(ends.size(), 1u) << "the first is held up";
  EXPECT_EQ(ends[0].id, 2u);
  EXPECT_EQ(ends[0].stopped_after, 0);
  open_gate();
  std::vector<uint64_t> order;
  while (order.size() < 2)
    for (const uint64_t id : ended()) order.push_back(id);
  EXPECT_EQ(order, (std::vector<uint64_t>{1, 3}));
  EXPECT_EQ(host_.substr(kBlockBytes, kBlockBytes), std::string(kBlockBytes, 'h'));
}

// Of what is queued nothing is done before it is waited for.
class Counted final : public CopyStream {
 public:
  explicit Counted(std::vector<int64_t>& batches) : batches_(batches) {}
  void copy_to_device(void*, const void*, int64_t bytes) override { queued_ += bytes; }
  void copy_to_host(void*, const void*, int64_t bytes) override { queued_ += bytes; }
  void wait() override {
    if (queued_ > 0) batches_.push_back(std::exchange(queued_, 0));
  }

 private:
  std::vector<int64_t>& batches_;
  int64_t queued_ = 0;
};

// A step may have to wait for all of it.
TEST(ThreadedMoverQueues, NoMoreAtOnceThanAStepMayWaitFor) {
  constexpr int64_t kMiB = 1 << 20;
  struct Case {
    int64_t block_bytes;
    bool side_by_side;
    std::vector<int64_t> batches;
  };
  for (const Case& c :
       {Case{12 * kMiB, true, {24 * kMiB, 24 * kMiB, 12 * kMiB}},
        Case{12 * kMiB, false, {24 * kMiB, 24 * kMiB, 12 * kMiB}}, Case{kMiB, true, {5 * kMiB}},
        Case{40 * kMiB, true, std::vector<int64_t>(5, 40 * kMiB)}}) {
    const std::unique_ptr<char[]> arena(new char[10 * c.block_bytes]), host(new char[10 * c.block_bytes]);
    for (const auto direction : {TransferDirection::kToHost, TransferDirection::kToDevice}) {
      std::vector<int64_t> batches;
      const auto mover =
          make_threaded_mover([&batches] { return std::make_unique<Counted>(batches); },
                              {.arena = arena.get(), .host = host.get(), .block_bytes = c.block_bytes},
                              nullptr)
              .value();
      BlockTransfer transfer{.id = 1, .direction = direction};
      for (int32_t i = 0; i < 5; ++i)
        transfer.copies.push_back({.device = BlockId{c.side_by_side ? i : 2 * i}, .host = HostBlockId{i}});
      mover->submit(std::move(transfer));
      mover->wait();
      std::vector<TransferEnd> ends;
      mover->poll(ends);
      EXPECT_EQ(batches, c.batches) << c.block_bytes << " bytes a block";
    }
  }
}

TEST_F(ThreadedMover, WhatGoesOneWayEndsInItsOrder) {
  for (const uint64_t id : {1, 2, 3}) submit(id, TransferDirection::kToHost, static_cast<int32_t>(id), 0);
  open_gate();
  std::vector<uint64_t> order;
  while (order.size() < 3)
    for (const uint64_t id : ended()) order.push_back(id);
  EXPECT_EQ(order, (std::vector<uint64_t>{1, 2, 3}));
}

}  // namespace
}  // namespace quire
