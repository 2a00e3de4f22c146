#include "src/execute/fake_mover.h"

#include <algorithm>

#include "src/base/check.h"

namespace quire {

void FakeMover::submit(BlockTransfer transfer) {
  const Fault fault = fault_ ? fault_() : Fault{};
  const double us = link_.transfer_us + link_.us_per_block * static_cast<double>(transfer.copies.size());
  busy_until_us_ = std::max(busy_until_us_, now_us()) + static_cast<int64_t>(us) + fault.delay_us;
  under_way_.push_back({std::move(transfer), busy_until_us_, fault.fails});
}

void FakeMover::poll(std::vector<TransferEnd>& ends) {
  while (!under_way_.empty() && (clock_ == nullptr || under_way_.front().done_us <= clock_->now_us())) {
    const UnderWay next = std::move(under_way_.front());
    under_way_.pop_front();
    const size_t count = next.fails ? next.transfer.copies.size() / 2 : next.transfer.copies.size();
    for (size_t i = 0; i < count; ++i) executor_.copy(next.transfer.copies[i], next.transfer.direction);
    Status status = ok();
    if (next.fails) status = error(Code::kInternal, "injected fault of a copy to or from the host");
    ends.push_back({next.transfer.id, std::move(status)});
  }
}

void FakeMover::wait() {
  check(!under_way_.empty(), "mover: nothing was submitted");
  if (clock_ != nullptr) clock_->advance_us(std::max<int64_t>(0, under_way_.front().done_us - now_us()));
}

}  // namespace quire
