#include "src/request/waiting_queue.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <utility>
#include <vector>

#include "src/base/check.h"

namespace quire {
namespace {

constexpr auto sooner = [](const auto& a, const auto& b) {
  return a.second->admitted_in < b.second->admitted_in;
};

}  // namespace

void WaitingQueue::enter(SequenceGroup& group) {
  check(group.share == nullptr, "a request enters the queue once");
  const auto found = shares_.try_emplace(group.tenant).first;
  TenantShare& share = found->second;
  share.tenant = found->first;
  if (share.num_present++ == 0) idle_.erase({share.counter, &share});
  if (share.num_waiting++ == 0) share.counter = std::max(share.counter, floor(group.rank()));
  ++waiting_[group.rank()][&share];
  group.share = &share;
}

void WaitingQueue::end_wait(SequenceGroup& group) {
  check(group.share->num_waiting > 0, "a request ends its wait once");
  --group.share->num_waiting;
  no_longer_at(group.rank(), *group.share);
}

void WaitingQueue::no_longer_at(int32_t rank, const TenantShare& share) {
  const auto tenants = waiting_.find(rank);
  check(tenants != waiting_.end(), "somebody waits at the rank of one that waits");
  const auto requests = tenants->second.find(&share);
  check(requests != tenants->second.end(), "a tenant waits at the rank of its request");
  if (--requests->second == 0) tenants->second.erase(requests);
  if (tenants->second.empty()) waiting_.erase(tenants);
}

void WaitingQueue::leave(SequenceGroup& group) {
  check(group.share != nullptr && group.share->num_present > 0, "a request leaves the queue once");
  TenantShare& share = *std::exchange(group.share, nullptr);
  if (--share.num_present > 0) return;
  check(share.num_waiting == 0, "who has left waits no more");
  idle_.insert({share.counter, &share});
  if (idle_.size() > kMaxIdleTenants) forget_one();
}

// Where nobody has come in at a rank, or not for long, whoever came in last anywhere.
const TenantShare* WaitingQueue::admitted_last(int32_t rank) const {
  if (const auto found = admitted_last_.find(rank); found != admitted_last_.end()) return found->second;
  const auto last = std::ranges::max_element(admitted_last_, sooner);
  return last == admitted_last_.end() ? nullptr : last->second;
}

double WaitingQueue::floor(int32_t rank) const {
  const auto here = waiting_.find(rank);
  if (here == waiting_.end()) {
    const TenantShare* last = admitted_last(rank);
    return last == nullptr ? 0 : last->counter;
  }
  double least = std::numeric_limits<double>::infinity();
  for (const auto& [share, requests] : here->second) least = std::min(least, share->counter);
  return least;
}

// Who has paid least of the idle: likeliest to be lifted on return, as a new one is, and gaining least if not. Not
// those by whom newcomers are measured: they are fewer than the idle.
void WaitingQueue::forget_one() {
  const auto measures = [&](const TenantShare* share) {
    return std::ranges::any_of(admitted_last_, [&](const auto& last) { return last.second == share; });
  };
  auto least = idle_.begin();
  while (measures(least->share)) ++least;
  const std::string tenant(least->share->tenant);
  idle_.erase(least);
  shares_.erase(tenant);
}

void WaitingQueue::push(SequenceGroup& group) {
  Line& line = by_rank_[group.rank()][group.tenant];
  group.queued_in = ++num_events_;
  if (line.groups.empty()) line.since = group.queued_in;
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
  if (groups.empty()) lines->second.erase(line);
  if (lines->second.empty()) by_rank_.erase(lines);
}

void WaitingQueue::admit(SequenceGroup& group) {
  TenantShare& share = *group.share;
  share.admitted_in = ++num_events_;
  share.admitted_rank = group.rank();
  share.admitted_at = share.counter;
  share.promoted_in = promoted_in_;
  share.promoted_by_us = promoted_by_us_;
  admitted_last_[group.rank()] = &share;
  if (admitted_last_.size() > kMaxRanksKnown)
    admitted_last_.erase(std::ranges::min_element(admitted_last_, sooner));
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
  for (SequenceGroup* group : overdue) {
    erase(*group);
    no_longer_at(group->rank(), *group->share);
    group->overdue = true;
    ++waiting_[group->rank()][group->share];
    push(*group);
  }
}

std::span<SequenceGroup* const> WaitingQueue::line_of(const SequenceGroup& group) const {
  return by_rank_.at(group.rank()).at(group.tenant).groups;
}

// Counters only grow: who has paid less now had paid less when the other was let in.
std::optional<Unfairness> WaitingQueue::find_unfair() const {
  for (const auto& [rank, lines] : by_rank_)
    for (const auto& [tenant, line] : lines) {
      const TenantShare& waits = *line.groups.front()->share;
      for (const auto& [name, served] : shares_)
        if (served.admitted_in > line.since && served.admitted_rank == rank &&
            served.admitted_at > waits.counter)
          return Unfairness{name, tenant, served.admitted_at, waits.counter};
    }
  return {};
}

namespace {

// Who came after that promotion may have come while the other was being let in.
std::optional<PassedOver> passed_over(const SequenceGroup& waits, const TenantShare& served) {
  if (waits.queued_in >= served.promoted_in || waits.rank() == served.admitted_rank) return {};
  const bool comes_first = waits.rank() < served.admitted_rank;
  if (!comes_first && waits.times.arrival_us > served.promoted_by_us) return {};
  return PassedOver{served.tenant, waits.request, !comes_first};
}

}  // namespace

std::optional<PassedOver> WaitingQueue::find_passed_over() const {
  for (const auto& [rank, lines] : by_rank_)
    for (const auto& [tenant, line] : lines)
      for (const SequenceGroup* group : line.groups)
        for (const auto& [name, served] : shares_)
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
