// Who is admitted next: by priority, then fair shares of tenants, then first come. Who has waited too long for
// those of higher priority stands among the first from then on, so that none starves: it waits its turn by
// fair shares there. Engine thread.
//
// Fair shares are virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI
// 2024): a tenant pays for each prompt token computed and, twice as much, for each token generated; the
// tenant who has paid least is next. A tenant of whom nothing waits and who asks again is lifted to the least counter
// of those who wait at the rank of what it asks; if nobody does, to that of whoever was admitted there last. Who only
// runs neither keeps what it has not asked for nor holds others down: not to wait saves nothing (the paper's algorithm
// 2, where everybody has one rank). Nobody is admitted past a tenant that waits at the same rank and has paid less. So
// for as long as a tenant waits, each other that has been admitted at its rank meanwhile is ahead of it by no more than
// what that one can have running at once: output is paid for as it comes (invariant 11).
//
// A tenant has one counter for all ranks: what it gets at one counts at each. Where something of it waits at a low rank
// it is not lifted at a high one: it has not been idle.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "src/request/sequence_group.h"

namespace quire {

struct TenantShare {
  double counter = 0;       // prompt tokens + 2 x output tokens, lifted
  int32_t num_present = 0;  // of its requests, queued, parked or running
  int32_t num_waiting = 0;  // of these, not admitted yet: queued or parked
  std::string_view tenant;
  // When one of its requests was admitted last: its place among the queue's events, the rank, and what the tenant had paid.
  uint64_t admitted_in = 0;
  int32_t admitted_rank = 0;
  double admitted_at = 0;
  // The queue's last promotion before that, and whom it was to promote: those who arrived by then, behind others.
  uint64_t promoted_in = 0;
  int64_t promoted_by_us = 0;
};

// Who was let in although another waited who had paid less.
struct Unfairness {
  std::string_view served, waiting;
  double served_at = 0, waiting_at = 0;  // their counters: the first's at its admission
};

// Who was let in although another stood in line at a better rank, or should have by then.
struct PassedOver {
  std::string_view served;
  RequestId waiting = 0;
  bool overdue = false;  // and was not promoted
};

class WaitingQueue {
 public:
  static constexpr double kPromptWeight = 1.0, kOutputWeight = 2.0;
  // What they have paid is remembered; past it who has paid least is forgotten, and comes back as a new one.
  static constexpr size_t kMaxIdleTenants = 1024;

  void enter(SequenceGroup& group);     // once per request: its tenant is present, and waits
  void end_wait(SequenceGroup& group);  // once: it is admitted, or has ended before that
  void leave(SequenceGroup& group);     // once, at its end, after end_wait
  void push(SequenceGroup& group);      // at its place by arrival
  void admit(SequenceGroup& group);     // while it still stands in line, before it pays
  void erase(SequenceGroup& group);
  // Those who arrived at or before this time are overdue. O(tenants), and nothing while one priority waits.
  void promote(int64_t arrived_by_us);
  SequenceGroup* next() const;  // nullptr when empty
  // Those of the group's rank and tenant, by arrival; the group is queued.
  std::span<SequenceGroup* const> line_of(const SequenceGroup& group) const;
  static void charge_prompt(SequenceGroup& group, int64_t tokens) { charge(group, kPromptWeight, tokens); }
  static void charge_output(SequenceGroup& group, int64_t tokens) { charge(group, kOutputWeight, tokens); }
  // The first breach of fair shares among those who wait now. O(lines x tenants): for audits.
  std::optional<Unfairness> find_unfair() const;
  // The first of those who wait now that was passed over. O(requests x tenants): for audits.
  std::optional<PassedOver> find_passed_over() const;
  // Between the counters of two tenants who wait at the rank that is next; 0 if fewer than two do.
  double widest_gap() const;
  int32_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  size_t num_tenants() const { return shares_.size(); }  // present or remembered

 private:
  struct Line {                          // of one tenant
    std::vector<SequenceGroup*> groups;  // by arrival
    uint64_t since = 0;                  // the queue's event that made it: somebody stands in it all the time
  };
  using Lines = std::unordered_map<std::string, Line>;  // tenants with someone in line
  struct Place {                                        // by counter, then name
    double counter = 0;
    TenantShare* share = nullptr;
    bool operator<(const Place& other) const {
      return counter != other.counter ? counter < other.counter : share->tenant < other.share->tenant;
    }
  };
  static void charge(SequenceGroup& group, double weight, int64_t tokens) {
    const double paid = weight * static_cast<double>(tokens);
    group.paid += paid;
    group.share->counter += paid;
  }
  // Where a tenant of whom nothing waits begins. O(those who wait at the rank).
  double floor(int32_t rank) const;
  const TenantShare* admitted_last(int32_t rank) const;
  void no_longer_at(int32_t rank, const TenantShare& share);
  void forget_one();

  static constexpr size_t kMaxRanksKnown = 64;

  std::map<int32_t, Lines> by_rank_;
  std::unordered_map<std::string, TenantShare> shares_;
  std::set<Place> idle_;  // tenants that are not present
  // Requests that wait, by rank and tenant: parked ones too.
  std::map<int32_t, std::unordered_map<const TenantShare*, int32_t>> waiting_;
  std::map<int32_t, const TenantShare*> admitted_last_;  // by rank; of the ranks that were used last
  int32_t size_ = 0;
  uint64_t num_events_ = 0;  // requests put in line, promotions and admissions
  uint64_t promoted_in_ = 0;
  int64_t promoted_by_us_ = 0;
};

}  // namespace quire
