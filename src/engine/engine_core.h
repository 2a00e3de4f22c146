// The engine without threads and text: requests in, one step at a time, outcomes out. The engine thread
// drives it in production; tests and the simulator drive it by hand with a fake executor and a moved clock,
// and get the same on every run.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "quire/config.h"
#include "quire/engine.h"
#include "quire/request.h"
#include "src/base/clock.h"
#include "src/cache/kv_cache.h"
#include "src/engine/invariants.h"
#include "src/engine/step_timer.h"
#include "src/execute/block_mover.h"
#include "src/execute/executor.h"
#include "src/request/admission.h"
#include "src/request/queue_budget.h"
#include "src/schedule/scheduler.h"

namespace quire {

struct CoreOptions {
  EngineConfig config;  // resolved
  CacheSpec cache;
  EvictionOrder eviction = EvictionOrder::kLru;
  ReserveRule reserve;
  PreemptionCosts preemption_costs;
  PolicyMemoryLimits policy_memory;
  std::vector<StoredBlock> stored_blocks;  // of the disk tier, from a process before this one
  int64_t damaged_records = 0;             // found there in place of such a block's
  std::string disk_kv_state;               // for the figures; "" = there is no disk tier
  bool whole_block_hits =
      false;  // hits are cut to whole blocks, as engines that hash blocks do; for comparison
  BothEnds both_ends = BothEnds::kSpare;
  int32_t look_ahead = ScheduleLimits().look_ahead;
  int32_t audit_every = 1;  // steps between full audits where config.check_invariants is set
  NamespaceKey identity;    // of the model; salt and policy are each request's
  int32_t vocab_size = 0;
  std::vector<TokenId> eos_token_ids;
};

// A request that has passed the door (admission.h, QueueBudget): prompt as ids, everything resolved.
struct CoreRequest {
  RequestId request = 0;
  std::vector<TokenId> prompt;
  std::shared_ptr<const SamplingParams> sampling;
  std::string cache_salt, tenant;
  bool bypass_prefix_cache = false;
  PolicySpec policy;
  bool dump_kv = false;
  KvRetention retention;
  int32_t priority = 0;
  int64_t arrival_us = 0;
  int64_t deadline_us = kNoDeadline;
  uint64_t seed = 0;
};

// Requests that came in and how they left. accepted = waiting + admitted + finished + refused + cancelled + failed
// (invariant 1).
struct RequestCounts {
  int64_t accepted = 0, finished = 0, refused = 0, cancelled = 0, failed = 0;
};

class EngineCore {
 public:
  // kInvalidArgument where config values exclude each other, with both.
  // The mover is needed where options.cache.swap_bytes is not 0.
  static Result<std::unique_ptr<EngineCore>> create(CoreOptions options, Executor& executor,
                                                    const Clock& clock, BlockMover* mover = nullptr);
  ~EngineCore();

  // ---- the door; any thread ----
  // What is asked and taken before a request is handed to the engine thread.
  const AdmissionLimits& limits() const { return limits_; }
  RetentionLimits retention_limits() const {
    return {options_.config.max_kv_retention_class, options_.config.max_kv_retention_cost};
  }
  QueueBudget& queue_budget() { return queue_budget_; }
  double tokens_per_s() const { return timer_.tokens_per_s(); }

  // ---- engine thread ----
  double most_tokens_per_s() const;  // of prompts, as steps have run; 0: none has yet
  // The request has taken its part of the queue budget.
  void submit(CoreRequest request);
  void abort(RequestId request);
  void stop(RequestId request, int32_t index);  // its text has met a stop string
  void set_paused(RequestId request, bool paused);
  // Plans and submits a step if one can be, then commits the oldest if two are under way or none could be
  // planned. False: there was nothing to do, or nothing before a copy under way ends.
  bool step();
  // Waits until a copy between device and host has ended; the next step takes it in. False: none is under
  // way.
  bool wait_for_copy();
  // Requests are there, and a copy holds blocks of the device that they may be waiting for.
  bool waits_for_copy() const { return num_unfinished() > 0 && scheduler_.transfers().num_of_device() > 0; }
  // A copy between the tiers has not returned for as long as any may take.
  bool copies_hang() const { return scheduler_.transfers().some_hang(); }
  Outcome take_outcome();
  void take_outcome(Outcome& into);  // the same, and `into` gives its memory for the next
  bool idle() const {
    return num_unfinished() == 0 && scheduler_.num_in_flight() == 0 &&
           scheduler_.transfers().size() == scheduler_.transfers().num_overdue();
  }  // a copy that does not return is waited for by whoever owns its memory
  int64_t num_unfinished() const {
    return scheduler_.num_waiting_groups() + scheduler_.num_admitted_groups();
  }
  // When something is due though nothing ends: a request's deadline, or the end of a wait for a tier.
  int64_t next_deadline_us() const {
    const int64_t request_us = deadlines_.empty() ? kNoDeadline : deadlines_.begin()->first;
    return std::min(request_us, scheduler_.transfers().next_overdue_us());
  }

  void fill_stats(EngineStats& stats) const;
  const RequestCounts& counts() const { return counts_; }
  const Scheduler& scheduler() const { return scheduler_; }
  const KvCache& cache() const { return *cache_; }
  void set_next_use(std::function<double(uint64_t)> next_use) { cache_->set_next_use(std::move(next_use)); }
  void set_allocation_fault(std::function<bool()> fault) { cache_->set_allocation_fault(std::move(fault)); }
  const StepTimer& timer() const { return timer_; }
  // Called when a step is about to wait for the device: what was planned is told before a wait that may be long.
  // Before the end: what is under way ends, and no more begins of what waits to be written to the tiers below.
  void forget_owed_writes() { cache_->forget_owed(); }
  void set_before_wait(std::function<void()> before_wait) { before_wait_ = std::move(before_wait); }
  // Where a broken invariant goes; by default it ends the process with its number and the values.
  using OnViolation = std::function<void(const std::string&)>;
  void set_on_violation(OnViolation on_violation) { on_violation_ = std::move(on_violation); }

 private:
  EngineCore(CoreOptions options, std::unique_ptr<KvCache> cache, Executor& executor, const Clock& clock,
             BlockMover* mover);
  void expire(int64_t now_us);
  void forget_deadline(RequestId request);
  std::string disk_kv_state() const;
  void take_transfer_ends();
  bool plan_step();
  void commit_step();
  void count_ends();  // of outcome_, those that are not counted yet
  void fill_policy_stats(EngineStats& stats) const;
  void take_deadline(RequestId request, int64_t deadline_us);
  void watch();

  CoreOptions options_;
  std::unique_ptr<KvCache> cache_;
  Executor& executor_;
  BlockMover* mover_;
  const Clock& clock_;
  AdmissionLimits limits_;
  QueueBudget queue_budget_;
  Scheduler scheduler_;
  using Deadlines = std::multimap<int64_t, RequestId>;
  Deadlines deadlines_;  // of requests that have not ended
  std::unordered_map<RequestId, Deadlines::iterator> deadline_of_;
  uint64_t next_order_ = 0;
  RequestCounts counts_;
  int64_t shared_read_tokens_ = 0, host_sampled_steps_ = 0, uploaded_bytes_ = 0;
  Outcome outcome_;
  size_t counted_ends_ = 0;  // of outcome_
  int64_t step_started_us_ = 0;
  StepTimer timer_;
  OnViolation on_violation_;
  std::function<void()> before_wait_;
  std::vector<SlotsWritten> slots_written_;  // scratch of check_plan
  std::vector<TransferEnd> transfer_ends_;   // scratch
};

}  // namespace quire
