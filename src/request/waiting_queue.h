// Who is admitted next: by priority, then fair shares of tenants, then first come. Who has waited too long for
// those of higher priority stands among the first from then on, so that none starves: it waits its turn by
// fair shares there. Engine thread.
//
// Fair shares are virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI
// 2024), at each rank for itself: a tenant has a counter for each rank that it asks at. There it pays for each prompt
// token computed and, twice as much, for each token generated, of the requests that are let in at that rank; the tenant
// who has paid least there is next. A tenant of whom nothing waits at a rank and who asks there is lifted to the least
// counter of those who stand in line at it; if nobody does, to that of whoever was admitted there last, but no lower than
// where anybody has begun there before (the paper's algorithm 2, at each rank). Who only runs, or waits at other ranks,
// neither keeps what it has not asked for here nor holds others down: not to wait saves nothing. Who has stepped out of
// line, for something that only others can bring, keeps what it is owed and holds nobody down either. Nobody is admitted
// past a tenant that stands in line at the same rank and has paid less. So for as long as a tenant stands there, each
// other that has been admitted there meanwhile is ahead of it by no more than what that one can have running at once:
// output is paid for as it comes (invariant 11).
//
// Who is promoted leaves its rank for the first of all, and begins there like anybody else. Where it is let in it pays.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "src/request/sequence_group.h"

namespace quire {

struct TenantShare {         // of what is served at one rank
  double counter = 0;        // prompt tokens + 2 x output tokens, lifted
  int32_t num_present = 0;   // of its requests, queued, parked or let in there
  int32_t num_waiting = 0;   // of these, not admitted yet: queued or parked
  bool stepped_out = false;  // one of them, since the first of those that wait began
  int32_t rank = 0;
  std::string_view tenant;
  // When one of these requests was admitted last: its place among the queue's events, and what had been paid then.
  uint64_t admitted_in = 0;
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

// Who waits at a rank as if it were owed something: lower than where others have begun there.
struct Unlifted {
  std::string_view tenant;
  int32_t rank = 0;
  double counter = 0, least = 0;
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
  // Shares of which no request is left are remembered; past it the one that loses least by it is forgotten, and its tenant
  // comes back there as a new one. So memory is bound by the requests and by this, however many tenants and ranks there are.
  static constexpr size_t kMaxIdleShares = 1024;

  void enter(SequenceGroup& group);     // once per request: its tenant is present at its rank, and waits
  void end_wait(SequenceGroup& group);  // once: it is admitted, or has ended before that
  void leave(SequenceGroup& group);     // once, at its end, after end_wait
  void push(SequenceGroup& group);      // at its place by arrival
  void admit(SequenceGroup& group);     // while it still stands in line, before it pays
  void erase(SequenceGroup& group);
  void step_out(SequenceGroup& group);  // as erase, of one that waits on, until it is pushed again
  // Those who arrived at or before this time are overdue. O(tenants), and nothing while one priority waits.
  void promote(int64_t arrived_by_us);
  void promote_parked(SequenceGroup& group);  // one that waits and does not stand in line
  SequenceGroup* next() const;                // nullptr when empty
  // Those of the group's rank and tenant, by arrival; the group is queued.
  std::span<SequenceGroup* const> line_of(const SequenceGroup& group) const;
  static void charge_prompt(SequenceGroup& group, int64_t tokens) { charge(group, kPromptWeight, tokens); }
  static void charge_output(SequenceGroup& group, int64_t tokens) { charge(group, kOutputWeight, tokens); }
  // The first breach of fair shares among those who wait now. O(lines x shares): for audits.
  std::optional<Unfairness> find_unfair() const;
  // The first of those who wait now, and have not stepped out, below where others began. O(shares): for audits.
  std::optional<Unlifted> find_unlifted() const;
  // The first of those who wait now that was passed over. O(requests x shares): for audits.
  std::optional<PassedOver> find_passed_over() const;
  // Between the counters of two tenants who wait at the rank that is next; 0 if fewer than two do.
  double widest_gap() const;
  int32_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  size_t num_shares() const;  // present or remembered

 private:
  struct Line {                          // of one tenant
    std::vector<SequenceGroup*> groups;  // by arrival
    uint64_t since = 0;                  // the queue's event that made it: somebody stands in it all the time
  };
  using Lines = std::unordered_map<std::string, Line>;  // tenants with someone in line
  struct Place {                                        // by counter, then name
    double counter = 0;
    const TenantShare* share = nullptr;
    bool operator<(const Place& other) const {
      return std::tie(counter, share->tenant) < std::tie(other.counter, other.share->tenant);
    }
  };
  static void charge(SequenceGroup& group, double weight, int64_t tokens) {
    const double paid = weight * static_cast<double>(tokens);
    group.paid += paid;
    group.share->counter += paid;
  }
  struct Rank {  // at which a tenant is present or remembered
    std::unordered_map<std::string, TenantShare> shares;
    std::unordered_set<const TenantShare*> in_line;  // of whom a request stands in line here
    std::set<Place> idle;                            // of whom no request is left
    const TenantShare* admitted_last = nullptr;      // nullptr: it is forgotten, or nobody has been admitted
    double forgotten_at = 0;                         // where it stood then
    double floor = 0;  // the highest at which one of whom nothing waited has begun
  };
  // Where a tenant of whom nothing waits begins. O(those in line at the rank).
  static double floor_of(const Rank& rank);
  void forget_one();

  std::map<int32_t, Lines> by_rank_;
  std::map<int32_t, Rank> ranks_;
  size_t num_idle_ = 0;  // at all ranks
  int32_t size_ = 0;
  uint64_t num_events_ = 0;  // requests put in line, promotions and admissions
  uint64_t promoted_in_ = 0;
  int64_t promoted_by_us_ = 0;
};

}  // namespace quire
