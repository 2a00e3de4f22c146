// Decides what each step runs, and keeps the sequences in order: plan (reserve blocks, say what to run) and
// commit (take the results in). Engine thread only. Deterministic: no clock, thread, device or randomness
// inside; time comes in as now_us.
//
// Order within a plan: decodes of running sequences, then prompt chunks of running ones, then, rank by rank,
// preempted sequences and new requests. A plan's blocks are reserved all together or not at all. Two steps may be
// under way: a sequence whose last token is still being sampled is planned with kSampledLastStep. What a
// sequence will not need (max_tokens, context limit) is known when planning; what only the host can see (an
// ending id, a stop text, beams) is seen at commit, and the result of the step after it is dropped.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "quire/result.h"
#include "src/cache/kv_cache.h"
#include "src/policy/policy_memory.h"
#include "src/request/admission.h"
#include "src/request/queue_budget.h"
#include "src/request/sequence_group.h"
#include "src/request/waiting_queue.h"
#include "src/schedule/batch_plan.h"
#include "src/schedule/beam_search.h"
#include "src/schedule/outcome.h"
#include "src/schedule/preemption_cost.h"
#include "src/schedule/tier_transfers.h"

namespace quire {

// The share of what running sequences may still generate that admission keeps free for them: how far it
// over-commits. It rises whenever that turns out to be too little and decays with each committed step (as SGLang's
// new_token_ratio does, schedule_policy.py).
struct ReserveRule {
  double least = 0.1, rise = 0.2, decay = 0.001;
};

// Who computes the front of a prefix whose tail comes from a tier below, where that is sooner: the others are for
// comparison and for tests.
enum class BothEnds : uint8_t { kNever, kSpare, kAlways };

struct ScheduleLimits {
  // of one step; at least max_sequences, so that every running sequence gets one
  int32_t max_step_tokens = 2048;
  int32_t max_sequences = 256;              // running at once
  int32_t max_prefill_chunk_tokens = 2048;  // of one sequence in one step
  // The same where each row's log-probabilities are asked for: the host reads those rows one by one, and everybody's step waits.
  int32_t max_logprob_chunk_tokens = 2048;
  ReserveRule reserve;
  bool whole_block_hits = false;  // cut hits to whole blocks, as vLLM does; for comparison
  BothEnds both_ends = BothEnds::kSpare;
  int32_t look_ahead = 256;              // in a tenant's line, for requests with more of their prompt cached
  int64_t max_paused_slot_us = 200'000;  // who reads no more for so long gives its slot to who waits for one
  int64_t max_priority_wait_us = 60'000'000;  // then a request runs as if of the highest priority
  PreemptionMode preemption_mode = PreemptionMode::kAuto;
  PreemptionCosts costs;
  PolicyMemoryLimits policy_memory;  // of 0 layers: not reckoned with
};

inline constexpr int32_t kMaxStepsInFlight = 2;

// The sampled rows and prompt logprobs of one executed step, as the executor gave them.
struct StepView {
  uint64_t step = 0;
  std::span<SampledToken> samples;
  struct Prompt {
    SequenceId sequence{};
    int32_t first_position = 0;
    std::vector<TokenLogprob> tokens;
  };
  std::span<Prompt> prompts;
  struct Dump {
    SequenceId sequence{};
    KvDump positions;
  };
  std::span<Dump> dumps;
  Status status = ok();
  // Sequences that the step could not carry though it ran; samples of theirs may be there or not.
  struct Failure {
    SequenceId sequence{};
    Error error;
  };
  std::span<const Failure> failures = {};
  const Error* failure_of(SequenceId sequence) const;
};

struct SchedulerCounters {     // since start
  int64_t dropped_tokens = 0;  // by KV policies, per list
  int64_t decode_reads = 0;    // slots that decode rows attend to
  int64_t preemptions = 0, steps = 0;
  int64_t tail_drops = 0,
          heads_shortened = 0;  // preemptions that left a head; times that one lost blocks later
  int64_t swap_outs = 0, swap_ins = 0, swap_failures = 0;  // of preempted sequences; failed copies
  int64_t prompt_tokens = 0, output_tokens = 0,
          cached_tokens = 0;          // prompt tokens admitted, committed output, hits
  int64_t prefix_query_tokens = 0;    // prompt tokens admitted that were looked for in the prefix cache
  int64_t failed_without_logits = 0;  // requests to which the model gave nothing but NaN and minus infinity
};

// One sequence's part of a plan.
struct PlannedWork {
  Sequence* sequence = nullptr;
  int32_t first = 0, count = 0;  // positions run
  bool sample = false;           // from the last row
  bool copied = false;           // its tail was copied before the write
  bool forks = false;            // its prompt ends here: the group's other samples begin
  int32_t list_before = 0;       // live slots before the step
  bool overwrites = false;       // see PlannedSequence
  int32_t cut = -1;              // index of the blocks the list had before its cut
};

// A plan that the executor has, until its result is committed.
struct SubmittedStep {
  std::shared_ptr<BatchPlan> plan;
  std::vector<PlannedWork> work;
  std::vector<Sequence*> sampled;      // one per sample of the plan, in its order
  std::vector<Sequence*> named;        // every sequence of the two above, once
  std::vector<BlockId> deferred;       // blocks to give back once it has run
  std::vector<PlannedSequence> spare;  // of the plan, when it has fewer than before: kept for their capacity
  std::vector<PlannedJoin> spare_joins;  // likewise, a few
};

class Scheduler {
 public:
  static constexpr int32_t kMaxOvertakes = 16;  // of one request, by later ones of its tenant
  static constexpr size_t kMaxAside = 64;       // requests at once
  static constexpr int32_t kStepsKeptOut = 8;   // at least, where nothing but the reserve has changed

  // Both outlive it. `queue_budget` gets back what a request took when it stops waiting.
  Scheduler(const ScheduleLimits& limits, KvCache& cache, QueueBudget& queue_budget);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  SequenceId next_sequence_id() { return SequenceId{next_sequence_++}; }

  // ---- requests ----
  // Owns it from here on; it waits.
  void add(std::unique_ptr<SequenceGroup> group);
  // Ends what is left of a request. Its blocks are free once no submitted step names them. False if it is not
  // here.
  bool end(RequestId request, FinishReason reason, std::optional<Error> error, int64_t now_us, Outcome& out);
  // Ends one sequence whose text ended (a stop string).
  void stop(RequestId request, int32_t index, int64_t now_us, Outcome& out);
  void set_paused(RequestId request, bool paused, int64_t now_us);

  // ---- steps ----
  // The next step, or nullptr: nothing can run, or not before a submitted step is committed.
  // What it returns counts as submitted.
  // A request that cannot run even alone fails here: progress is guaranteed.
  std::shared_ptr<const BatchPlan> plan(int64_t now_us, Outcome& out);
  // Takes in the oldest submitted step.
  void commit(StepView result, int64_t now_us, Outcome& out);
  // Copies between device and host that planning has begun since it was last asked, in order; to be asked
  // after each plan(), whether it gave one or not. The end of each is told once, in any order.
  std::vector<BlockTransfer> take_transfers();
  void transferred(const TransferEnd& end, int64_t now_us, Outcome& out);

  // ---- figures ----
  // Submitted steps that are not committed yet.
  int32_t num_in_flight() const { return static_cast<int32_t>(in_flight_.size()); }
  const TierTransfers& transfers() const { return transfers_; }
  int32_t num_running() const { return static_cast<int32_t>(running_.size()); }
  int32_t num_preempted() const { return static_cast<int32_t>(preempted_.size()); }
  int32_t num_waiting_groups() const { return num_waiting_; }
  double widest_fairness_gap() const { return queue_.widest_gap(); }
  std::optional<Unfairness> find_unfair() const { return queue_.find_unfair(); }
  std::optional<Unlifted> find_unlifted() const { return queue_.find_unlifted(); }
  std::optional<PassedOver> find_passed_over() const { return queue_.find_passed_over(); }
  // The next in order, if it is kept out though there is room. O(sequences): for audits.
  const Sequence* find_kept_out() const;
  int32_t num_admitted_groups() const {
    return static_cast<int32_t>(groups_.size() - ended_.size()) - num_waiting_;
  }
  const SchedulerCounters& counters() const { return counters_; }
  double reserve_ratio() const { return reserve_ratio_; }  // see ReserveRule
  const KvCache& cache() const { return cache_; }
  const ScheduleLimits& limits() const { return limits_; }
  const SequenceGroup* find(RequestId request) const;
  WorkAhead work_ahead(const SequenceGroup& group) const;  // of one that waits

  // For the invariants: everything that holds blocks.
  std::vector<const BlockTable*> tables() const;
  std::vector<BlockId> deferred() const;
  std::vector<const SwappedList*> swapped() const;
  const std::vector<SubmittedStep>& in_flight() const { return in_flight_; }
  std::span<Sequence* const> running() const { return running_; }
  std::vector<const SequenceGroup*> groups() const;
  const PolicyMemory& policy_memory() const { return policy_memory_; }
  int64_t policy_memory_of(const SequenceGroup& group) const;  // bytes that it needs of it

 private:
  // lifecycle.cc
  SequenceGroup* find_group(RequestId request);
  void finish(Sequence& sequence, FinishReason reason, int64_t now_us, Outcome& out,
              std::optional<TokenId> stop_token = {});
  void end_group(SequenceGroup& group, FinishReason reason, const std::optional<Error>& error, int64_t now_us,
                 Outcome& out);
  void close_group(SequenceGroup& group, FinishReason reason, int64_t now_us, Outcome& out);
  void drop(Sequence& sequence, int64_t now_us);    // out of every list; retired once nothing names it
  void retire(Sequence& sequence, int64_t now_us);  // its blocks go back
  void sweep();  // ended groups that nothing names any more; deferred blocks likewise
  void give_back(std::span<const BlockId> deferred);
  void insert_running(Sequence& sequence);
  void leave_waiting(SequenceGroup& group);
  void unpark_waiters(Sequence& sequence, bool all);
  void publish(Sequence& sequence, int32_t num_tokens, int64_t now_us);
  Sequence& fork(Sequence& source);
  Sequence& fork_beam(Sequence& source, int32_t place);
  std::vector<BlockId>& deferred_now();

  // plan.cc: what runs
  enum class Attempt { kPlanned, kNothing, kAgain };  // kAgain: someone came in whom the draft missed
  Attempt attempt(int64_t now_us);
  bool plan_decodes(StepTransaction& step);
  bool decodes_may_wait() const;
  bool beams_have_room(const SequenceGroup& group) const;
  int64_t blocks_for_beams(const Sequence& s, std::span<const BlockTable* const> tables) const;
  bool plan_beams(StepTransaction& step, SequenceGroup& group);
  void plan_chunks(StepTransaction& step);
  void plan_chunk(StepTransaction& step, Sequence& sequence);
  bool wants_decode(const Sequence& sequence) const;
  int32_t prefill_goal(const Sequence& sequence) const;
  int32_t tokens_with_room(const Sequence& sequence, int32_t want) const;
  bool add_work(StepTransaction& step, Sequence& sequence, int32_t count, bool sample);
  bool reserve(StepTransaction& step, PlannedWork& work);

  // retention.cc: what KV policies change
  void slide(Sequence& sequence);
  bool add_adaptive_work(StepTransaction& step, Sequence& sequence, PlannedWork& work);
  bool waits_for_prompt(const Sequence& sequence) const;
  int32_t publishable(const Sequence& sequence, int32_t num_tokens) const;
  int32_t most_shared_tokens(const SequenceGroup& group) const;
  int64_t policy_blocks_to_come(const Sequence& sequence, const BlockTable& table, int32_t tokens) const;
  int64_t scored_blocks_to_come(const Sequence& sequence, const BlockTable& table) const;
  int32_t max_chunk(const Sequence& sequence) const;
  bool waits_for_policy_memory(const SequenceGroup& group) const;
  bool park_for_policy_memory(SequenceGroup& group);
  void promote_memory_waiters(int64_t arrived_by_us);
  void wake_memory_waiters();
  void leave_memory_waiters(SequenceGroup& group);
  void take_policy_memory(SequenceGroup& group);
  void give_back_policy_memory(SequenceGroup& group);
  bool has_score_room(const Sequence& sequence, int32_t count) const;
  void commit_dumps(SubmittedStep& step, StepView& result);

  // fill_plan.cc: the plan as a value
  std::shared_ptr<const BatchPlan> submit();
  void fill_sequence(const PlannedWork& work, PlannedSequence& planned, SubmittedStep& step);
  void fill_samples(PlannedWork& work, PlannedSequence& planned, SubmittedStep& step);
  void add_sample(Sequence& sequence, PlannedSequence& planned, SubmittedStep& step);
  void join(Sequence& sequence, SubmittedStep& step);
  void name(Sequence& sequence, SubmittedStep& step);
  SubmittedStep take_step();
  void recycle(SubmittedStep step);

  // admit.cc
  void promote_overdue(int64_t now_us);
  SequenceGroup* next_waiting() const;
  std::span<SequenceGroup* const> first_in_line() const;
  void look_up(SequenceGroup& group, int64_t now_us);
  void look_again(int64_t now_us);
  void admit(StepTransaction& step, int64_t now_us);
  bool admit_preempted(StepTransaction& step, Sequence& sequence, int64_t now_us);
  std::vector<Sequence*> come_in(Sequence& sequence, int64_t now_us);
  bool admit_waiting(StepTransaction& step, SequenceGroup& group, int64_t now_us);
  // Tokens of its prefix that it has now; nothing where there is no room for it.
  std::optional<int32_t> start(Sequence& sequence, int64_t now_us);
  bool park_on_prefix(SequenceGroup& group);
  BlockTable take_prefix(const Sequence& sequence, int64_t now_us);
  int32_t slots_used(const SequenceGroup& but) const;
  bool make_slots(const SequenceGroup& group, int32_t wanted, int64_t now_us);
  void take_sibling_prefix(int64_t now_us);
  Sequence* first_preempted() const;

  // room.cc
  int64_t blocks_to_come(const Sequence& sequence, const BlockTable& table) const;
  int64_t blocks_to_come(const Sequence& sequence, const BlockTable& table, double reserve_ratio) const;
  bool takes_all_there_is(const SequenceGroup& group) const;
  int64_t blocks_to_start(const Sequence& sequence, const BlockTable& table) const;
  int64_t blocks_to_follow(const SequenceGroup& group, std::span<Sequence* const> coming) const;
  int64_t blocks_missing(std::span<Sequence* const> coming, int64_t blocks) const;
  int64_t make_room_for(std::span<Sequence* const> coming, int64_t blocks, int64_t now_us);
  int64_t have_heads_make_room(std::span<Sequence* const> coming, int64_t blocks, int64_t missing,
                               int64_t now_us);
  void keep_out(std::span<Sequence* const> coming, int64_t missing);
  int64_t tokens_reserved_for(std::span<Sequence* const> coming) const;
  bool is_blocked(const Sequence& sequence) const {
    return !running_.empty() && blocked_ == sequence.id && blocked_epoch_ == room_epoch_ &&
           reserve_ratio_ > blocked_above_;
  }

  // aside.cc
  Sequence* first_outside() const;
  bool only_stopped_run(const SequenceGroup* outside = nullptr) const;
  bool must_not_pass(const SequenceGroup& group) const;
  bool step_aside();
  void come_back();

  // preempt.cc
  bool make_progress(int64_t now_us, Outcome& out);
  Error cannot_run_alone() const;
  Sequence* someone_blocked() const;
  enum class Means { kSwap, kDropTail, kRecompute };
  struct Offer {  // what a victim can give, and by which means
    Means means = Means::kRecompute;
    double cost_us = 0;
    int64_t freed = 0;                 // blocks that can be had at once
    std::vector<int32_t> kept_tokens;  // of each list, where tails are dropped
    double cost_per_block() const;
  };
  KvCache::Holding held_by(std::span<Sequence* const> victims) const;
  double recompute_us(std::span<Sequence* const> victims) const;
  std::optional<Offer> cheapest_offer(std::span<Sequence* const> victims, int64_t needed) const;
  std::optional<Offer> offer_tails(std::span<Sequence* const> victims, int64_t needed) const;
  int32_t head_that_frees(const BlockTable& table, int64_t needed, int64_t& freed) const;
  int64_t blocks_needed(const Sequence& blocked, std::span<Sequence* const> victims) const;
  struct Victim {
    std::vector<Sequence*> sequences;  // of one request
    Offer offer;
    const SequenceGroup& group() const { return *sequences.front()->group; }
  };
  bool others_run(const SequenceGroup& group) const;
  std::vector<Sequence*> gives_way_with(Sequence& sequence, const Sequence& blocked) const;
  std::optional<Victim> choose_victim(const Sequence& blocked) const;
  std::optional<Victim> idle_in_slot(int64_t now_us) const;
  bool are_alone(std::span<Sequence* const> victims) const;
  bool gives_way_to_itself(const Victim& victim, const Sequence& blocked) const;
  bool shares_all_it_has(const Victim& victim, const Sequence& blocked) const;
  bool was_short(const Sequence& blocked, const Victim& victim) const;
  void preempt(std::span<Sequence* const> victims, const Offer& offer, int64_t now_us);
  void drop_tail(Sequence& sequence, int32_t kept_tokens, int64_t now_us);
  void shorten_head(Sequence& sequence, int32_t kept_tokens, int64_t now_us);
  bool head_is_room_for(const Sequence& owner, const Sequence& whom) const;
  bool shorten_heads(const Sequence& for_whom, int64_t needed, int64_t now_us);
  void leave_running(Sequence& sequence);

  // swap.cc
  std::vector<Sequence*> together_with(Sequence& sequence) const;
  bool can_swap(std::span<Sequence* const> victims, int64_t num_blocks) const;
  void swap_out(std::span<Sequence* const> victims);
  bool bring_back(std::span<Sequence* const> all, int64_t now_us);
  int64_t blocks_to_bring_back(std::span<Sequence* const> all, std::span<const SwappedList* const> lists,
                               std::span<const BlockTable> tables) const;
  void give_up_overdue(int64_t now_us);
  void take_in(Sequence& sequence, const TierTransfers::Ended& ended, const TransferEnd& end, int64_t now_us,
               Outcome& out);
  void lose_swapped(Sequence& sequence, const Error& error, int64_t now_us, Outcome& out);
  void forget_computed(Sequence& sequence);

  // tiers.cc
  void write_behind(Sequence& sequence, int64_t now_us);
  std::optional<TierTransfers::Fetch> fetch_prefix(const Sequence& sequence, BlockTable& table,
                                                   int64_t now_us);
  bool has_time_to_spare(const Sequence& sequence) const;
  void join_tail(Sequence& sequence);
  void lose_tail(Sequence& sequence);
  Retention retention_of(const Sequence& sequence, int64_t now_us) const;

  // commit.cc
  void commit_work(const PlannedWork& work, int64_t now_us);
  void publish_computed(Sequence& sequence, int64_t now_us);
  void commit_samples(SubmittedStep& step, StepView& result, int64_t now_us, Outcome& out);
  void commit_token(Sequence& sequence, SampledToken& sample, int64_t now_us, Outcome& out);
  void fail_without_token(SequenceGroup& group, TokenId why, int32_t num_output_tokens, int64_t now_us,
                          Outcome& out);
  void fail_without_logits(SequenceGroup& group, const Error& error, int64_t now_us, Outcome& out);
  void commit_prompts(SubmittedStep& step, StepView& result, int64_t now_us, Outcome& out);
  void distrust_copy(const PlannedWork& work);
  void let_go(SubmittedStep& step, int64_t now_us);
  void fail_step(SubmittedStep& step, const Error& error, int64_t now_us, Outcome& out);
  void fail_sequences(SubmittedStep& step, const StepView& result, int64_t now_us, Outcome& out);
  void fail_request_of(const Sequence& s, const Error& error, int64_t now_us, Outcome& out);

  // commit_beams.cc
  void commit_beams(std::span<Sequence* const> beams, std::span<SampledToken> rows, int64_t now_us,
                    Outcome& out);
  void advance_beams(std::span<Sequence* const> beams, std::span<SampledToken> rows,
                     std::span<const BeamPick> next, int64_t now_us);
  void end_beams(SequenceGroup& group, int64_t now_us, Outcome& out);

  // kv_usage.cc
  void measure(SequenceGroup& group);
  void count_policy_work(const PlannedWork& work);

  static constexpr size_t kSparePlans = 4, kSpareBeams = 16;

  const ScheduleLimits limits_;
  KvCache& cache_;
  QueueBudget& queue_budget_;
  const int32_t block_tokens_;
  const BlockSize size_;  // of block_tokens_
  WaitingQueue queue_;
  std::unordered_map<RequestId, std::unique_ptr<SequenceGroup>> groups_;
  std::vector<Sequence*> running_;              // in running order: priority, arrival, index
  std::vector<Sequence*> preempted_;            // in the same order
  std::vector<SequenceGroup*> ended_;           // that a submitted step still names
  std::vector<SequenceGroup*> memory_waiters_;  // parked for policy memory; none of them is paused
  std::vector<SequenceGroup*> aside_;           // beside readers that have stopped
  uint64_t aside_epoch_ = 0;                    // of room, when the last of them stepped aside
  std::vector<SubmittedStep> in_flight_;        // oldest first
  TierTransfers transfers_;
  PolicyMemory policy_memory_;
  int64_t score_slots_ = 0;           // left in the draft for lists under policies that go by scores
  std::vector<SubmittedStep> spare_;  // committed plans, kept for their capacity
  std::vector<std::unique_ptr<Sequence>> spare_beams_;  // that were dropped, likewise
  std::vector<SequenceId> leaves_;                      // sampler states to forget with the next plan
  std::vector<PolicyFork> policy_forks_;                // for the next plan, likewise
  std::vector<BlockId> idle_deferred_;  // deferred while nothing was submitted; given back by sweep
  std::vector<BlockTable*> forks_;      // while publishing: of the sequence's siblings
  std::vector<PlannedWork> draft_;
  std::vector<std::vector<BlockId>> draft_cuts_;  // of the draft: what lists had before their cut
  BlockTable sibling_prefix_;                     // while planning: for the sequence below, should it come in
  SequenceId sibling_prefix_of_{};
  struct Measured {  // of a block: the last measure() that met it, and slots filled
    uint32_t in = 0;
    int32_t filled = 0;
  };
  std::vector<Measured> measured_;  // by block
  uint32_t measure_ = 0;
  int32_t budget_ = 0;  // tokens left in the draft
  int32_t num_waiting_ = 0;
  // The candidate that found no room, and what had been given back by then: it is not tried again before more
  // is, or the reserve is no longer above what may let it in (-1: it falls no further).
  SequenceId blocked_{};
  uint64_t blocked_epoch_ = 0, room_epoch_ = 1;
  double blocked_above_ = -1;
  bool admission_blocked_ = false;  // the draft left someone outside
  bool decodes_wait_ = false;       // the draft left a decode out, since others bring room
  bool decodes_may_wait_ = false;   // even with no copy under way
  double reserve_ratio_;            // see ReserveRule
  uint64_t next_step_ = 1, next_sequence_ = 1;
  SchedulerCounters counters_;
};

}  // namespace quire
