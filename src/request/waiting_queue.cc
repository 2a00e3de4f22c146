#include "src/request/waiting_queue.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "src/base/check.h"

namespace quire {

void WaitingQueue::enter(SequenceGroup& group) {
  check(group.share == nullptr, "a request enters the queue once");
  Rank& rank = ranks_[group.rank()];
  const auto found = rank.shares.try_emplace(group.tenant).first;
  TenantShare& share = found->second;
  share.tenant = found->first;
  share.rank = group.rank();
  if (share.num_present++ == 0) num_idle_ -= rank.idle.erase({share.counter, &share});
  if (share.num_waiting++ == 0) {
    const double floor = floor_of(rank);
    rank.floor = std::max(rank.floor, floor);
    share.counter = std::max(share.counter, floor);
    share.stepped_out = false;
  }
  group.share = &share;
}

void WaitingQueue::end_wait(SequenceGroup& group) {
  TenantShare& share = *group.share;
  check(share.num_waiting > 0, "a request ends its wait once");
  --share.num_waiting;
}

void WaitingQueue::leave(SequenceGroup& group) {
  check(group.share != nullptr && group.share->num_present > 0, "a request leaves the queue once");
  TenantShare& share = *std::exchange(group.share, nullptr);
  if (--share.num_present > 0) return;
  check(share.num_waiting == 0, "who has left waits no more");
  ranks_.at(share.rank).idle.insert({share.counter, &share});
  if (++num_idle_ > kMaxIdleShares) forget_one();
}

double WaitingQueue::floor_of(const Rank& rank) {
  if (rank.in_line.empty()) {
    const TenantShare* last = rank.admitted_last;
    return std::max(rank.floor, last == nullptr ? rank.forgotten_at : last->counter);
  }
  double least = std::numeric_limits<double>::infinity();
  for (const TenantShare* share : rank.in_line) least = std::min(least, share->counter);
  return std::max(rank.floor, least);  // who has stepped out and is back may stand lower
}

// Who is least above where a new one begins at its rank: likeliest to be lifted on return, as a new one is, and gaining least
// if not. Counters of two ranks say nothing of each other. O(ranks + those in line).
void WaitingQueue::forget_one() {
  auto rank = ranks_.end();
  double least_above = std::numeric_limits<double>::infinity();
  for (auto at = ranks_.begin(); at != ranks_.end(); ++at) {
    if (at->second.idle.empty()) continue;
    const double above = at->second.idle.begin()->counter - floor_of(at->second);
    if (above < least_above) rank = at, least_above = above;
  }
  check(rank != ranks_.end(), "some are idle");
  const TenantShare& least = *rank->second.idle.begin()->share;
  if (rank->second.admitted_last == &least) {
    rank->second.admitted_last = nullptr;
    rank->second.forgotten_at = least.counter;
  }
  const std::string tenant(least.tenant);
  rank->second.idle.erase(rank->second.idle.begin());
  --num_idle_;
  rank->second.shares.erase(tenant);
  if (rank->second.shares.empty()) ranks_.erase(rank);
}

size_t WaitingQueue::num_shares() const {
  size_t count = 0;
  for (const auto& [rank, of_rank] : ranks_) count += of_rank.shares.size();
  return count;
}

void WaitingQueue::push(SequenceGroup& group) {
  Line& line = by_rank_[group.rank()][group.tenant];
  group.queued_in = ++num_events_;
  if (line.groups.empty()) {
    line.since = group.queued_in;
    ranks_.at(group.rank()).in_line.insert(group.share);
  }
  const auto earlier = [](const SequenceGroup* a, const SequenceGroup* b) { return a->order < b->order; };
  line.groups.insert(std::upper_bound(line.groups.begin(), line.groups.end(), &group, earlier), &group);
  ++size_;
}

void WaitingQueue::erase(SequenceGroup& group) {
  const auto lines = by_rank_.find(group.rank());
  check(lines != by_rank_.end(), "an erased request is queued");
  const auto line = lines->second.find(group.tenant);
  check(line != lines->second.end(), "an erased request is in its tenant's line");
  std::vector<SequenceGroup*>& groups = line->second.groups;
  const auto it = std::find(groups.begin(), groups.end(), &group);
  check(it != groups.end(), "an erased request stands in line");
  groups.erase(it);
  --size_;
  if (!groups.empty()) return;
  ranks_.at(group.rank()).in_line.erase(group.share);
  lines->second.erase(line);
  if (lines->second.empty()) by_rank_.erase(lines);
}

void WaitingQueue::step_out(SequenceGroup& group) {
  erase(group);
  group.share->stepped_out = true;
}

void WaitingQueue::admit(SequenceGroup& group) {
  TenantShare& share = *group.share;
  share.admitted_in = ++num_events_;
  share.admitted_at = share.counter;
  share.promoted_in = promoted_in_;
  share.promoted_by_us = promoted_by_us_;
  ranks_.at(share.rank).admitted_last = &share;
}

void WaitingQueue::promote(int64_t arrived_by_us) {
  promoted_in_ = ++num_events_;
  promoted_by_us_ = by_rank_.size() < 2 ? std::numeric_limits<int64_t>::min() : arrived_by_us;
  if (by_rank_.size() < 2) return;
  std::vector<SequenceGroup*> overdue;
  for (const auto& [rank, lines] : by_rank_)
    for (const auto& [tenant, line] : lines)
      for (SequenceGroup* group : line.groups) {
        if (group->overdue || group->times.arrival_us > arrived_by_us) break;
        overdue.push_back(group);
      }
  const auto earlier = [](const SequenceGroup* a, const SequenceGroup* b) { return a->order < b->order; };
  std::ranges::sort(overdue, earlier);  // each begins where those before it stand
  for (SequenceGroup* group : overdue) {
    erase(*group);
    promote_parked(*group);
    push(*group);
  }
}

void WaitingQueue::promote_parked(SequenceGroup& group) {
  end_wait(group);
  leave(group);
  group.overdue = true;
  enter(group);
}

std::span<SequenceGroup* const> WaitingQueue::line_of(const SequenceGroup& group) const {
  return by_rank_.at(group.rank()).at(group.tenant).groups;
}

// Counters only grow: who has paid less now had paid less when the other was let in.
std::optional<Unfairness> WaitingQueue::find_unfair() const {
  for (const auto& [rank, lines] : by_rank_)
    for (const auto& [tenant, line] : lines) {
      const TenantShare& waits = *line.groups.front()->share;
      for (const auto& [name, served] : ranks_.at(rank).shares)
        if (served.admitted_in > line.since && served.admitted_at > waits.counter)
          return Unfairness{name, tenant, served.admitted_at, waits.counter};
    }
  return {};
}

// Where one begins the others in line stand no lower, nor those who come after it.
std::optional<Unlifted> WaitingQueue::find_unlifted() const {
  for (const auto& [rank, of_rank] : ranks_)
    for (const auto& [tenant, share] : of_rank.shares)
      if (share.num_waiting > 0 && !share.stepped_out && share.counter < of_rank.floor)
        return Unlifted{tenant, rank, share.counter, of_rank.floor};
  return {};
}

namespace {

// Who came after that promotion may have come while the other was being let in.
std::optional<PassedOver> passed_over(const SequenceGroup& waits, const TenantShare& served) {
  if (waits.queued_in >= served.promoted_in || waits.rank() == served.rank) return {};
  const bool comes_first = waits.rank() < served.rank;
  if (!comes_first && waits.times.arrival_us > served.promoted_by_us) return {};
  return PassedOver{served.tenant, waits.request, !comes_first};
}

}  // namespace

std::optional<PassedOver> WaitingQueue::find_passed_over() const {
  for (const auto& [rank, lines] : by_rank_)
    for (const auto& [tenant, line] : lines)
      for (const SequenceGroup* group : line.groups)
        for (const auto& [worse, of_rank] : ranks_)
          for (const auto& [name, served] : of_rank.shares)
            if (const std::optional<PassedOver> found = passed_over(*group, served)) return found;
  return {};
}

double WaitingQueue::widest_gap() const {
  if (by_rank_.empty()) return 0;
  double least = std::numeric_limits<double>::infinity(), most = -least;
  for (const auto& [tenant, line] : by_rank_.begin()->second) {
    least = std::min(least, line.groups.front()->share->counter);
    most = std::max(most, line.groups.front()->share->counter);
  }
  return most - least;
}

SequenceGroup* WaitingQueue::next() const {
  if (by_rank_.empty()) return nullptr;
  SequenceGroup* best = nullptr;
  for (const auto& [tenant, line] : by_rank_.begin()->second) {
    SequenceGroup* head = line.groups.front();
    const bool first = best == nullptr || head->share->counter < best->share->counter ||
                       (head->share->counter == best->share->counter && head->order < best->order);
    if (first) best = head;
  }
  return best;
}

}  // namespace quire
