// A BlockMover over the slots of a FakeExecutor, for tests and simulation. A transfer takes what the link
// says on the moved clock, one after the other; its copies are made as late as they may, when its end is
// polled, so that a block which is used or given back too early shows as a wrong slot. A hook may fail or
// delay one. Engine thread.
#pragma once

#include <deque>
#include <functional>
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

class FakeMover final : public BlockMover {
 public:
  struct Fault {
    bool fails = false;    // half of the copies are made
    int64_t delay_us = 0;  // it takes so much longer
  };

  // Without a clock transfers end when they are polled first.
  FakeMover(FakeExecutor& executor, int64_t num_host_blocks, ManualClock* clock, const FakeLink& link = {})
      : executor_(executor), clock_(clock), link_(link) {
    executor.make_host_blocks(num_host_blocks);
  }

  void submit(BlockTransfer transfer) override;
  void poll(std::vector<TransferEnd>& ends) override;
  void wait() override;
  void set_on_end(std::function<void()>) override {}

  void set_fault(std::function<Fault()> fault) { fault_ = std::move(fault); }

 private:
  struct UnderWay {
    BlockTransfer transfer;
    int64_t done_us = 0;
    bool fails = false;
  };
  int64_t now_us() const { return clock_ == nullptr ? 0 : clock_->now_us(); }

  FakeExecutor& executor_;
  ManualClock* clock_;
  FakeLink link_;
  std::function<Fault()> fault_;
  std::deque<UnderWay> under_way_;
  int64_t busy_until_us_ = 0;
};

}  // namespace quire
