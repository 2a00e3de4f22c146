#include "src/execute/fake_mover.h"

#include <algorithm>

#include "src/base/check.h"

namespace quire {
namespace {

bool is_on_disk(const TierCopy& copy) {
  return copy.disk != kNotOnDisk;
}

}  // namespace

void FakeMover::submit(BlockTransfer transfer) {
  Fault fault = fault_ ? fault_() : Fault{};
  const bool uses_disk = std::ranges::any_of(transfer.copies, is_on_disk);
  if (uses_disk && disk_hang_us_) fault.delay_us += disk_hang_us_();
  Link& link = links_[uses_disk ? 1 : 0];
  const double us =
      link.costs.transfer_us + link.costs.us_per_block * static_cast<double>(transfer.copies.size());
  link.busy_until_us = std::max(link.busy_until_us, now_us()) + static_cast<int64_t>(us) + fault.delay_us;
  link.under_way.push_back({std::move(transfer), link.busy_until_us, fault});
}

TransferEnd FakeMover::carry_out(const UnderWay& u) {
  const std::vector<TierCopy>& copies = u.transfer.copies;
  const size_t count = u.fault.fails ? copies.size() / 2 : copies.size();
  const auto bad = std::ranges::find_if(copies, is_on_disk);
  const bool reads_disk = u.transfer.direction == TransferDirection::kToDevice && bad != copies.end();
  const bool corrupts = reads_disk && corrupts_ && corrupts_();
  TransferEnd end{.id = u.transfer.id};
  for (size_t i = 0; i < count; ++i)
    if (!corrupts || &copies[i] != &*bad) executor_.copy(copies[i], u.transfer.direction);
  if (u.fault.fails) end.status = error(Code::kInternal, "injected fault of a copy between tiers");
  if (!corrupts) return end;
  end.status = error(Code::kInternal, "injected fault: a corrupt block on the disk");
  end.corrupt = {bad->disk};
  return end;
}

void FakeMover::poll(std::vector<TransferEnd>& ends) {
  for (Link& link : links_)
    while (!link.under_way.empty() &&
           (clock_ == nullptr || link.under_way.front().done_us <= clock_->now_us())) {
      const UnderWay next = std::move(link.under_way.front());
      link.under_way.pop_front();
      ends.push_back(carry_out(next));
    }
}

void FakeMover::wait() {
  int64_t soonest = INT64_MAX;
  for (const Link& link : links_)
    if (!link.under_way.empty()) soonest = std::min(soonest, link.under_way.front().done_us);
  check(soonest != INT64_MAX, "mover: nothing was submitted");
  const int64_t wake_us = wake_us_ ? wake_us_() : INT64_MAX;
  if (wake_us > now_us()) soonest = std::min(soonest, wake_us);  // what was due before has had its step
  if (clock_ != nullptr) clock_->advance_us(std::max<int64_t>(0, soonest - now_us()));
}

}  // namespace quire
