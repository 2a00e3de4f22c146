#include "src/request/waiting_queue.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <vector>

#include "src/base/check.h"

namespace quire {

double WaitingQueue::floor() const {
  double least = std::numeric_limits<double>::infinity();
  for (const auto& [name, share] : shares_)
    if (share.num_present > 0) least = std::min(least, share.counter);
  return least;
}

void WaitingQueue::enter(SequenceGroup& group) {
  check(group.share == nullptr, "a request enters the queue once");
  const auto [it, is_new] = shares_.try_emplace(group.tenant);
  TenantShare& share = it->second;
  if (share.num_present == 0) {
    const double least = floor();
    if (least < std::numeric_limits<double>::infinity()) share.counter = std::max(share.counter, least);
  }
  ++share.num_present;
  group.share = &share;
  if (is_new && shares_.size() > kMaxIdleTenants) forget_idle();
}

void WaitingQueue::leave(SequenceGroup& group) {
  check(group.share != nullptr && group.share->num_present > 0, "a request leaves the queue once");
  --group.share->num_present;
  group.share = nullptr;
}

// An idle tenant at or below the floor would be lifted to it on return, as a new one is.
void WaitingQueue::forget_idle() {
  const double least = floor();
  std::erase_if(shares_, [&](const auto& entry) {
    return entry.second.num_present == 0 && entry.second.counter <= least;
  });
}

void WaitingQueue::push(SequenceGroup& group) {
  Line& line = by_rank_[group.rank()][group.tenant];
  const auto later = [](const SequenceGroup* a, const SequenceGroup* b) { return a->order < b->order; };
  line.insert(std::upper_bound(line.begin(), line.end(), &group, later), &group);
  ++size_;
}

void WaitingQueue::erase(SequenceGroup& group) {
  const auto lines = by_rank_.find(group.rank());
  check(lines != by_rank_.end(), "an erased request is queued");
  const auto line = lines->second.find(group.tenant);
  check(line != lines->second.end(), "an erased request is in its tenant's line");
  const auto it = std::find(line->second.begin(), line->second.end(), &group);
  check(it != line->second.end(), "an erased request stands in line");
  line->second.erase(it);
  --size_;
  if (line->second.empty()) lines->second.erase(line);
  if (lines->second.empty()) by_rank_.erase(lines);
}

void WaitingQueue::promote(int64_t arrived_by_us) {
  if (by_rank_.size() < 2) return;
  std::vector<SequenceGroup*> overdue;
  for (auto lines = std::next(by_rank_.begin()); lines != by_rank_.end(); ++lines)
    for (const auto& [tenant, line] : lines->second)
      for (SequenceGroup* group : line) {
        if (group->times.arrival_us > arrived_by_us) break;
        overdue.push_back(group);
      }
  for (SequenceGroup* group : overdue) {
    erase(*group);
    group->overdue = true;
    push(*group);
  }
}

std::span<SequenceGroup* const> WaitingQueue::line_of(const SequenceGroup& group) const {
  return by_rank_.at(group.rank()).at(group.tenant);
}

double WaitingQueue::widest_gap() const {
  if (by_rank_.empty()) return 0;
  double least = std::numeric_limits<double>::infinity(), most = -least;
  for (const auto& [tenant, line] : by_rank_.begin()->second) {
    least = std::min(least, line.front()->share->counter);
    most = std::max(most, line.front()->share->counter);
  }
  return most - least;
}

SequenceGroup* WaitingQueue::next() const {
  if (by_rank_.empty()) return nullptr;
  SequenceGroup* best = nullptr;
  for (const auto& [tenant, line] : by_rank_.begin()->second) {
    SequenceGroup* head = line.front();
    const bool first = best == nullptr || head->share->counter < best->share->counter ||
                       (head->share->counter == best->share->counter && head->order < best->order);
    if (first) best = head;
  }
  return best;
}

}  // namespace quire
