#include "src/execute/fake_mover.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <utility>

#include "src/base/check.h"

namespace quire {
namespace {

bool is_on_disk(const TierCopy& copy) {
  return copy.disk != kNotOnDisk;
}

}  // namespace

void FakeMover::submit(BlockTransfer transfer) {
  go_on();
  Fault fault = fault_ ? fault_() : Fault{};
  const bool uses_disk = std::ranges::any_of(transfer.copies, is_on_disk);
  const bool goes_up = transfer.direction == TransferDirection::kToDevice;
  if (uses_disk && disk_hang_us_) fault.delay_us += disk_hang_us_();
  const FakeLink& link = uses_disk ? tiers_.disk : tiers_.host;
  const double us = link.transfer_us + link.us_per_block * static_cast<double>(transfer.copies.size());
  Queue& queue = queues_[uses_disk ? (goes_up ? kFromDisk : kToDisk) : (goes_up ? kFromHost : kToHost)];
  queue.push_back(
      {std::move(transfer), fault.fails, link.us_per_block, static_cast<double>(fault.delay_us), us});
}

// The first of a queue copies at half of the disk's rate while the first of the other one does too.
double FakeMover::slowness(size_t queue) const {
  const auto copies = [this](size_t q) { return !queues_[q].empty() && queues_[q].front().waits_us <= 0; };
  return queue >= kFromDisk && copies(kFromDisk) && copies(kToDisk) ? 2 : 1;
}

// From at_us_ until a delay or a transfer ends.
double FakeMover::next_change_us() const {
  double least = std::numeric_limits<double>::infinity();
  for (size_t q = 0; q < std::size(queues_); ++q) {
    if (queues_[q].empty()) continue;
    const UnderWay& first = queues_[q].front();
    least = std::min(least, first.waits_us > 0 ? first.waits_us : first.copies_us * slowness(q));
  }
  return least;
}

// Until now; what ends on the way is done, and of what is unwanted by now the copies that had not begun and, with the end of
// its block, the first of a queue.
void FakeMover::go_on() {
  pass_time();
  bool stopped = false;
  for (Queue& queue : queues_) {
    if (queue.empty()) continue;
    stopped = stop(queue.front()) || stopped;
    std::erase_if(queue, [&](UnderWay& u) {
      if (&u == &queue.front() || !u.transfer.unwanted.stop_requested()) return false;
      u.stopped_after = 0;
      done_.push_back(std::move(u));
      return true;
    });
  }
  if (stopped) pass_time();
}

// The first time that it is seen to be unwanted. A delay is the first block's: a call that does not return.
bool FakeMover::stop(UnderWay& u) {
  if (u.stopped_after || !u.transfer.unwanted.stop_requested()) return false;
  const size_t count = u.transfer.copies.size();
  const double left = u.us_per_block > 0 ? std::floor(u.copies_us / u.us_per_block) : 0;
  const size_t not_begun = std::min(u.waits_us > 0 ? count - 1 : count, static_cast<size_t>(left));
  u.copies_us -= static_cast<double>(not_begun) * u.us_per_block;
  u.stopped_after = count - not_begun;
  return true;
}

void FakeMover::pass_time() {
  constexpr double kNothingUs = 1e-6;  // of rounding
  const auto now = static_cast<double>(now_us());
  for (;;) {
    const double change = next_change_us(),
                 passes = clock_ == nullptr ? change : std::min(change, now - at_us_);
    if (std::isinf(change) || passes < 0) break;
    double slow[std::size(queues_)];
    for (size_t q = 0; q < std::size(queues_); ++q) slow[q] = slowness(q);
    for (size_t q = 0; q < std::size(queues_); ++q) {
      if (queues_[q].empty()) continue;
      UnderWay& first = queues_[q].front();
      if (first.waits_us > 0) {
        first.waits_us -= passes;
        if (first.waits_us < kNothingUs) first.waits_us = 0;
        continue;
      }
      first.copies_us -= passes / slow[q];
      if (first.copies_us > kNothingUs) continue;
      done_.push_back(std::move(first));
      queues_[q].pop_front();
    }
    at_us_ += passes;
    if (passes < change) break;
  }
  at_us_ = now;
}

// What fails does so half way, unless it was stopped before.
TransferEnd FakeMover::carry_out(const UnderWay& u) {
  const std::vector<TierCopy>& copies = u.transfer.copies;
  size_t count = u.stopped_after.value_or(copies.size());
  const bool fails = u.fails && (!u.stopped_after || count > copies.size() / 2);
  if (fails) count = copies.size() / 2;
  const auto end_of_made = copies.begin() + static_cast<ptrdiff_t>(count);
  const auto bad = std::find_if(copies.begin(), end_of_made, is_on_disk);
  const bool reads_disk = u.transfer.direction == TransferDirection::kToDevice && bad != end_of_made;
  const bool corrupts = reads_disk && corrupts_ && corrupts_();
  for (auto copy = copies.begin(); copy != end_of_made; ++copy)
    if (!corrupts || copy != bad) executor_.copy(*copy, u.transfer.direction);
  TransferEnd end{.id = u.transfer.id};
  if (corrupts) {
    end.status = error(Code::kInternal, "injected fault: a corrupt block on the disk");
    end.corrupt = {bad->disk};
  } else if (fails) {
    end.status = error(Code::kInternal, "injected fault of a copy between tiers");
  } else if (u.stopped_after) {
    end = stopped_transfer(u.transfer.id, std::count_if(copies.begin(), end_of_made, is_on_disk));
  }
  return end;
}

void FakeMover::poll(std::vector<TransferEnd>& ends) {
  go_on();
  for (const UnderWay& done : std::exchange(done_, {})) ends.push_back(carry_out(done));
}

void FakeMover::wait() {
  int64_t wake_us = wake_us_ ? wake_us_() : INT64_MAX;
  if (wake_us <= now_us()) wake_us = INT64_MAX;  // what was due before has had its step
  for (go_on(); done_.empty() && now_us() < wake_us; go_on()) {
    const double change_us = next_change_us();
    check(!std::isinf(change_us), "mover: nothing was submitted");
    clock_->advance_us(std::min(static_cast<int64_t>(std::ceil(change_us)), wake_us - now_us()));
  }
}

}  // namespace quire
