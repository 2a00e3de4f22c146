// A BlockMover over the slots of a FakeExecutor, for tests and simulation. As in the threaded one, transfers to host
// memory, from it, from the disk and to it are four queues; on each they take what the link says on the moved clock,
// one after the other, so that ends come in another order than they were asked for. The link of host memory carries
// both directions at once; reads and writes of the disk share its rate. Copies are made as late as they may, when the end is polled,
// so that a block which is used or given back too early shows as a wrong slot. One that is unwanted ends with the block
// that it is at. A hook may fail or delay one, or have the disk give back what was not written. Engine thread.
#pragma once

#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "src/base/clock.h"
#include "src/execute/block_mover.h"
#include "src/execute/fake_executor.h"

namespace quire {

struct FakeLink {
  double transfer_us = 20;
  double us_per_block = 100;
};

struct FakeTiers {
  int64_t host_blocks = 0, disk_blocks = 0;
  FakeLink host, disk = {.transfer_us = 100, .us_per_block = 1000};
};

class FakeMover final : public BlockMover {
 public:
  struct Fault {
    bool fails = false;    // half of the copies are made
    int64_t delay_us = 0;  // it takes so much longer
  };

  // Without a clock transfers end when they are polled first.
  FakeMover(FakeExecutor& executor, ManualClock* clock, const FakeTiers& tiers)
      : executor_(executor), clock_(clock), tiers_(tiers) {
    executor.make_blocks_below(tiers.host_blocks, tiers.disk_blocks);
  }

  void submit(BlockTransfer transfer) override;
  void poll(std::vector<TransferEnd>& ends) override;
  void wait() override;
  void set_on_end(std::function<void()>) override {}

  void set_fault(std::function<Fault()> fault) { fault_ = std::move(fault); }
  // Asked when a transfer to or from the disk begins: it takes so much longer, and those behind it wait.
  void set_disk_hang(std::function<int64_t()> hang_us) { disk_hang_us_ = std::move(hang_us); }
  // Until when wait() may move the clock, for whoever has something to do by then.
  void set_wake(std::function<int64_t()> wake_us) { wake_us_ = std::move(wake_us); }
  // Asked when a transfer reads from the disk: true = one block of it is not what was written there.
  void set_corruption(std::function<bool()> corrupts) { corrupts_ = std::move(corrupts); }

 private:
  struct UnderWay {
    BlockTransfer transfer;
    bool fails = false;
    double us_per_block = 0;
    double waits_us = 0, copies_us = 0;  // left: of a delay, then of the copies at the link's whole rate
    std::optional<size_t> stopped_after = {};  // copies: it was unwanted
  };
  using Queue = std::deque<UnderWay>;
  static constexpr size_t kToHost = 0, kFromHost = 1, kFromDisk = 2, kToDisk = 3;
  int64_t now_us() const { return clock_ == nullptr ? 0 : clock_->now_us(); }
  double slowness(size_t queue) const;
  double next_change_us() const;
  void go_on();
  void pass_time();
  static bool stop(UnderWay& under_way);
  TransferEnd carry_out(const UnderWay& under_way);

  FakeExecutor& executor_;
  ManualClock* clock_;
  FakeTiers tiers_;
  Queue queues_[4];
  std::vector<UnderWay> done_;  // not polled yet
  double at_us_ = 0;            // what is left of each is as of then
  std::function<Fault()> fault_;
  std::function<bool()> corrupts_;
  std::function<int64_t()> disk_hang_us_, wake_us_;
};

}  // namespace quire
