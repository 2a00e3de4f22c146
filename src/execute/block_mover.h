// The seam between planning and the copies that run beside the steps. One engine thread calls; a mover has a
// thread and, on a card, a stream of its own. Transfers may end in any order.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "src/schedule/block_transfer.h"

namespace quire {

class BlockMover {
 public:
  virtual ~BlockMover() = default;                        // what was submitted ends first
  virtual void submit(BlockTransfer transfer) = 0;        // returns at once
  virtual void poll(std::vector<TransferEnd>& ends) = 0;  // appends those that have ended since
  virtual void wait() = 0;                                // until poll() would give one; one is under way
  virtual void set_on_end(
      std::function<void()> on_end) = 0;  // called from any thread; before the first submit
};

}  // namespace quire
