#include "src/engine/invariants.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "src/base/blocks_for.h"
#include "src/engine/engine_core.h"

namespace quire {
namespace {

using Broken = std::optional<std::string>;

Broken requests_add_up(const EngineCore& core) {
  const RequestCounts& c = core.counts();
  const int64_t waiting = core.scheduler().num_waiting_groups(),
                admitted = core.scheduler().num_admitted_groups();
  if (c.accepted == waiting + admitted + c.finished + c.refused + c.cancelled + c.failed) return {};
  return fmt::format(
      "invariant 1: {} accepted, but {} waiting + {} admitted + {} finished + {} refused + {} cancelled + {} "
      "failed",
      c.accepted, waiting, admitted, c.finished, c.refused, c.cancelled, c.failed);
}

Broken blocks_add_up(const KvCache& cache, int64_t all) {
  if (cache.num_free() + cache.num_held() + cache.num_cached() == all) return {};
  return fmt::format("invariant 2: {} free + {} held + {} cached blocks, not {}", cache.num_free(),
                     cache.num_held(), cache.num_cached(), all);
}

Broken host_blocks_add_up(const HostPool& pool) {
  if (pool.num_free() + pool.num_held() == pool.num_blocks()) return {};
  return fmt::format("invariant 2: {} free + {} held blocks for swap, not {}", pool.num_free(),
                     pool.num_held(), pool.num_blocks());
}

uint64_t slot_bits(int32_t first, int32_t end) {
  const uint64_t below_end = end >= 64 ? ~0ull : (1ull << end) - 1;
  return below_end & ~((1ull << first) - 1);
}

// Invariants 8 and 3, of one row: its list has the blocks that it writes, and no other row of the step their slots.
Broken slots_are_distinct(const BatchPlan& plan, const PlannedSequence& s, const BlockSize& size,
                          std::vector<SlotsWritten>& written) {
  const int32_t end = s.list_length_after();
  if (static_cast<int64_t>(s.block_table.size()) < size.blocks_for(end))
    return fmt::format("invariant 8: sequence {} writes up to slot {}; its list has {} blocks of {}",
                       value(s.sequence), end - 1, s.block_table.size(), size.tokens());
  for (int32_t b = size.block_of(s.list_length_before); size.first_slot(b) < end; ++b) {
    const uint64_t slots = slot_bits(std::max(0, s.list_length_before - size.first_slot(b)),
                                     std::min(size.tokens(), end - size.first_slot(b)));
    SlotsWritten& block = written[value(s.block_table[b])];
    if (block.step != plan.step) block = {plan.step, 0};
    if ((block.slots & slots) != 0)
      return fmt::format("invariant 3: two tokens of step {} share slot {} of block {}", plan.step,
                         std::countr_zero(block.slots & slots), value(s.block_table[b]));
    block.slots |= slots;
  }
  return {};
}

// Invariant 7. Once a prompt has ended in this step its samples share the tail that it writes: they are its holders
// then, and no other.
Broken writes_are_private(const PlannedSequence& s, const KvCache& cache) {
  const BlockSize& size = cache.block_size();
  // A row that overwrites may write any block; so does a cut, up to the list's end.
  const bool anywhere = s.overwrites || !s.cut_source.empty();
  const int32_t end = s.list_length_after();
  for (int32_t b = anywhere ? 0 : size.block_of(s.list_length_before); size.first_slot(b) < end; ++b) {
    const BlockId block = s.block_table[b];
    if (cache.may_write(block)) continue;
    const bool forked =
        s.samples.size() > 1 && cache.num_holders(block) == static_cast<int32_t>(s.samples.size());
    if (!forked)
      return fmt::format("invariant 7: sequence {} writes block {}, which has {} holders or is published",
                         value(s.sequence), value(block), cache.num_holders(block));
  }
  return {};
}

// Both of one row that appends one token to a block of its own, as most rows do. False: nothing is noted, and the row is
// to be looked at again for what is wrong with it, or different.
bool appends_one_token(const BatchPlan& plan, const PlannedSequence& s, const KvCache& cache,
                       std::vector<SlotsWritten>& written) {
  if (s.overwrites || !s.cut_source.empty() || s.tokens.size() != 1) return false;
  const BlockSize& size = cache.block_size();
  const auto at = static_cast<size_t>(size.block_of(s.list_length_before));
  if (at >= s.block_table.size() || !cache.may_write(s.block_table[at])) return false;
  SlotsWritten& block = written[value(s.block_table[at])];
  const uint64_t slot = 1ull << size.offset_of(s.list_length_before);
  const uint64_t before = block.step == plan.step ? block.slots : 0;
  if ((before & slot) != 0) return false;
  block = {plan.step, before | slot};
  return true;
}

Broken submitted_blocks_are_held(const EngineCore& core) {
  std::unordered_set<int32_t> deferred;
  for (const BlockId b : core.scheduler().deferred()) deferred.insert(value(b));
  const auto held = [&](BlockId b) { return core.cache().num_holders(b) > 0 || deferred.contains(value(b)); };
  for (const SubmittedStep& step : core.scheduler().in_flight()) {
    for (const BlockCopy& c : step.plan->copies)
      if (!held(c.source) || !held(c.target))
        return fmt::format("invariant 6: step {} copies block {} to {}, and one is free", step.plan->step,
                           value(c.source), value(c.target));
    for (const PlannedSequence& s : step.plan->sequences)
      for (const std::vector<BlockId>* blocks : {&s.block_table, &s.cut_source})
        for (const BlockId b : *blocks)
          if (!held(b))
            return fmt::format("invariant 6: step {} names block {}, which nobody holds", step.plan->step,
                               value(b));
  }
  return {};
}

Broken list_within_bound(const EngineCore& core, const Sequence& s) {
  const int32_t block_tokens = core.cache().block_tokens();
  const PolicySpec& policy = s.group->policy;
  if (s.table.num_blocks() != blocks_for(s.table.length(), block_tokens))
    return fmt::format("invariant 8: a list of {} slots has {} blocks of {}", s.table.length(),
                       s.table.num_blocks(), block_tokens);
  const int64_t chunk = most_chunk_tokens(policy, s.num_prompt_tokens, core.limits().max_chunk_tokens);
  const int64_t total = s.group->max_total_tokens;
  const PolicyBound slots = bound(policy, s.num_prompt_tokens, total - s.num_prompt_tokens, chunk);
  const int64_t most = s.group->traits.cuts_after_prompt
                           ? core.cache().block_size().blocks_for(
                                 static_cast<int32_t>(s.list_cut ? slots.steady_slots : slots.peak_slots))
                           : list_blocks(policy, total, chunk, block_tokens);
  if (!s.group->traits.drops_tokens || s.table.num_blocks() <= most) return {};
  return fmt::format("invariant 8: sequence {} holds {} blocks; {} may hold {}", value(s.id),
                     s.table.num_blocks(), to_string(policy), most);
}

Broken lists_within_bound(const EngineCore& core) {
  for (const SequenceGroup* group : core.scheduler().groups())
    for (const auto& s : group->sequences)
      if (Broken b = list_within_bound(core, *s)) return b;
  return {};
}

// Of one request: each beam's lists lie in a place of their own.
Broken beams_lie_apart(const SequenceGroup& group) {
  std::vector<bool> taken(static_cast<size_t>(group.num_slots()), false);
  for (const auto& s : group.sequences) {
    if (s->finished()) continue;
    const bool fits = s->list_place >= 0 && s->list_place < group.num_slots();
    if (!fits || taken[static_cast<size_t>(s->list_place)])
      return fmt::format(
          "invariant 10: the lists of beam {} of request {} lie in place {} of {}, which is {}", value(s->id),
          group.request, s->list_place, group.num_slots(), fits ? "another's" : "none");
    taken[static_cast<size_t>(s->list_place)] = true;
  }
  return {};
}

// Its parts: of whoever was admitted, until the group is gone.
Broken policy_memory_adds_up(const EngineCore& core) {
  const Scheduler& scheduler = core.scheduler();
  std::map<int64_t, int64_t> parts;
  int64_t used = 0;
  for (const SequenceGroup* group : scheduler.groups()) {
    const int64_t bytes = scheduler.policy_memory_of(*group);
    if (group->state == GroupState::kAdmitted && bytes > 0 && group->policy_memory < 0)
      return fmt::format("invariant 10: request {} runs under {} and has no memory for its lists",
                         group->request, to_string(group->policy));
    if (group->is_beam && group->traits.overwrites_slots)
      if (Broken b = beams_lie_apart(*group)) return b;
    if (group->policy_memory < 0) continue;
    parts.emplace(group->policy_memory, bytes);
    used += bytes;
  }
  int64_t end = 0;
  for (const auto& [offset, bytes] : parts) {
    if (offset < end)
      return fmt::format("invariant 10: lists at byte {} lie within others up to {}", offset, end);
    end = offset + bytes;
  }
  if (used != scheduler.policy_memory().used() || end > scheduler.limits().policy_memory.bytes)
    return fmt::format("invariant 10: lists take {} bytes up to {}; {} of {} are given out", used, end,
                       scheduler.policy_memory().used(), scheduler.limits().policy_memory.bytes);
  return {};
}

// Whoever waits for such memory finds too little, or stands behind another that does, of its own rank or a better one.
Broken policy_memory_is_not_idle(const EngineCore& core) {
  const Scheduler& scheduler = core.scheduler();
  const auto finds_too_little = [&](const SequenceGroup& group) {
    return !scheduler.policy_memory().has_room(scheduler.policy_memory_of(group));
  };
  std::vector<const SequenceGroup*> waiters = scheduler.groups();
  std::erase_if(waiters, [](const SequenceGroup* group) { return !group->waits_for_memory; });
  for (const SequenceGroup* group : waiters) {
    const auto holds_it_up = [&](const SequenceGroup* other) {
      return other->rank() <= group->rank() && finds_too_little(*other);
    };
    if (!group->paused && std::ranges::any_of(waiters, holds_it_up)) continue;
    return fmt::format(
        "invariant 10: request {} waits for {} bytes of the policies' memory, which are free, and for nobody "
        "before it, or its reader has stopped",
        group->request, scheduler.policy_memory_of(*group));
  }
  return {};
}

Broken nobody_is_kept_out(const EngineCore& core) {
  const Sequence* next = core.scheduler().find_kept_out();
  if (next == nullptr) return {};
  return fmt::format("invariant 14: request {} is next and kept out, and there is room for it",
                     next->group->request);
}

Broken positions_are_ordered(const EngineCore& core) {
  for (const SequenceGroup* group : core.scheduler().groups())
    for (const auto& s : group->sequences) {
      const bool ordered =
          s->num_computed <= s->num_planned && s->num_planned <= s->goal() + (s->finished() ? 1 : 0) &&
          s->num_pending <= kMaxStepsInFlight && s->num_pending >= 0 && s->num_in_flight >= 0;
      const bool bounded = s->num_tokens() <= group->max_total_tokens;
      const bool in_table = s->copying || s->table.empty() || s->num_planned == s->table.next_position();
      if (!ordered || !bounded || !in_table)
        return fmt::format(
            "sequence {}: computed {} planned {} next position {} tokens {} pending {} in flight {} limit {}",
            value(s->id), s->num_computed, s->num_planned, s->table.next_position(), s->num_tokens(),
            s->num_pending, s->num_in_flight, group->max_total_tokens);
    }
  return {};
}

// Who was preempted holds what it need not compute again, whole blocks of it, or nothing.
Broken heads_are_whole(const EngineCore& core) {
  const int32_t block_tokens = core.cache().block_tokens();
  for (const SequenceGroup* group : core.scheduler().groups())
    for (const auto& s : group->sequences)
      if (s->state == SequenceState::kPreempted &&
          (s->table.length() % block_tokens != 0 || s->num_computed != s->table.length() ||
           s->table.next_position() != s->table.length()))
        return fmt::format("invariant 8: preempted sequence {} kept {} slots up to position {}, {} computed",
                           value(s->id), s->table.length(), s->table.next_position(), s->num_computed);
  return {};
}

// Of a prefix that comes from both ends: the list stops where the tail begins, which is nobody's until it has come.
Broken tails_are_apart(const EngineCore& core) {
  for (const SequenceGroup* group : core.scheduler().groups())
    for (const auto& s : group->sequences) {
      const bool has_tail = s->tail_from > 0;
      const bool apart = s->num_planned <= s->tail_from && s->table.length() == s->num_planned;
      const bool lives = s->running() || (s->finished() && s->num_in_flight > 0);
      if (has_tail == !s->tail.empty() && (has_tail ? apart && lives && !s->copying : !s->tail_comes))
        continue;
      return fmt::format(
          "invariant 6: sequence {} has a tail of {} tokens from {} on, coming {}, behind {} of its own",
          value(s->id), s->tail.length(), s->tail_from, s->tail_comes, s->table.length());
    }
  return {};
}

// What a copy reads or writes belongs to its sequence until the copy has ended.
Broken swapped_lists_are_at_rest(const EngineCore& core) {
  for (const SequenceGroup* group : core.scheduler().groups())
    for (const auto& s : group->sequences) {
      const bool rests = s->state == SequenceState::kPreempted && s->table.empty();
      const bool fetches = s->copying && s->swapped.empty();  // from the tiers below
      if (fetches              ? s->num_in_flight == 1
          : s->swapped.empty() ? !s->copying
                               : (rests || s->copying) && (!s->copying || s->num_in_flight == 1))
        continue;
      return fmt::format(
          "invariant 6: sequence {} has {} blocks on the host and {} on the device, copying {}, in flight {}",
          value(s->id), s->swapped.num_blocks(), s->table.num_blocks(), s->copying, s->num_in_flight);
    }
  return {};
}

// What a request has paid of what it costs: at least its output, of which beams tell only a part, at most all that it may cost.
Broken has_paid_its_share(const SequenceGroup& group) {
  const auto output = static_cast<double>(group.num_output_tokens);
  const double prompt = group.num_prompt_tokens(), rest = group.max_total_tokens - prompt;
  const double least = group.is_beam ? 0 : WaitingQueue::kOutputWeight * output;
  const double most =
      WaitingQueue::kPromptWeight * prompt + WaitingQueue::kOutputWeight * group.num_slots() * rest;
  if (group.paid >= least && group.paid <= most) return {};
  return fmt::format("invariant 11: request {} has paid {}; with {} tokens put out it pays from {} to {}",
                     group.request, group.paid, group.num_output_tokens, least, most);
}

// Nobody who waits is passed by more often, or by others, than the order says.
Broken nobody_is_starved(const EngineCore& core) {
  for (const SequenceGroup* group : core.scheduler().groups()) {
    if (Broken b = has_paid_its_share(*group)) return b;
    if (group->times_overtaken > Scheduler::kMaxOvertakes)
      return fmt::format("invariant 11: request {} was overtaken {} times; at most {}", group->request,
                         group->times_overtaken, Scheduler::kMaxOvertakes);
  }
  if (const std::optional<Unfairness> u = core.scheduler().find_unfair())
    return fmt::format(
        "invariant 11: tenant '{}' was let in at {} tokens while '{}' waited, which has paid {}", u->served,
        u->served_at, u->waiting, u->waiting_at);
  if (const std::optional<Unlifted> u = core.scheduler().find_unlifted())
    return fmt::format(
        "invariant 11: tenant '{}' waits at rank {} at {} tokens; who begins there begins at {} or more",
        u->tenant, u->rank, u->counter, u->least);
  if (const std::optional<PassedOver> p = core.scheduler().find_passed_over())
    return fmt::format("invariant 11: tenant '{}' was let in while request {} waited, which {}", p->served,
                       p->waiting,
                       p->overdue ? "had waited longer than max_priority_wait_ms and was not promoted"
                                  : "has a better rank");
  return {};
}

Broken slots_of_running(const EngineCore& core) {
  const auto n = static_cast<int32_t>(core.scheduler().running().size());
  if (n <= core.scheduler().limits().max_sequences) return {};
  return fmt::format("{} sequences run; at most {} may (max_sequences)", n,
                     core.scheduler().limits().max_sequences);
}

}  // namespace

Broken check_cheap(const EngineCore& core) {
  if (Broken b = requests_add_up(core)) return b;
  if (Broken b = blocks_add_up(core.cache(), core.limits().num_blocks)) return b;
  for (const KvCache* tier = core.cache().below(); tier != nullptr; tier = tier->below())
    if (Broken b = blocks_add_up(*tier, tier->num_block_ids()))
      return fmt::format("{} tier: {}", name_of(tier->kind()), *b);
  return host_blocks_add_up(core.cache().swap_pool());
}

Broken check_all(const EngineCore& core) {
  if (Broken b = check_cheap(core)) return b;
  if (Broken b = submitted_blocks_are_held(core)) return b;
  if (Broken b = lists_within_bound(core)) return b;
  if (Broken b = positions_are_ordered(core)) return b;
  if (Broken b = slots_of_running(core)) return b;
  if (Broken b = policy_memory_adds_up(core)) return b;
  if (Broken b = policy_memory_is_not_idle(core)) return b;
  if (Broken b = nobody_is_kept_out(core)) return b;
  if (Broken b = swapped_lists_are_at_rest(core)) return b;
  if (Broken b = tails_are_apart(core)) return b;
  if (Broken b = heads_are_whole(core)) return b;
  if (Broken b = nobody_is_starved(core)) return b;
  if (Broken b = core.cache().audit(core.scheduler().tables(), core.scheduler().deferred(),
                                    core.scheduler().swapped(), core.scheduler().transfers().traffic()))
    return "cache: " + *b;
  return {};
}

Broken check_plan(const BatchPlan& plan, const KvCache& cache, std::vector<SlotsWritten>& written) {
  written.resize(cache.num_block_ids());
  for (const PlannedSequence& s : plan.sequences) {
    if (appends_one_token(plan, s, cache, written)) continue;
    // Which slot is overwritten is the executor's choice; its blocks are its own.
    if (!s.overwrites)
      if (Broken b = slots_are_distinct(plan, s, cache.block_size(), written)) return b;
    if (Broken b = writes_are_private(s, cache)) return b;
  }
  return {};
}

Broken check_held(const BatchPlan& plan, const KvCache& cache) {
  const auto lost = [&](BlockId b) {
    return fmt::format("invariant 6: step {} has run with block {}, which nobody holds", plan.step, value(b));
  };
  for (const BlockCopy& c : plan.copies)
    for (const BlockId b : {c.source, c.target})
      if (!cache.is_held(b)) return lost(b);
  for (const PlannedSequence& s : plan.sequences) {
    if (cache.are_held(s.block_table) && cache.are_held(s.cut_source)) continue;
    for (const std::vector<BlockId>* blocks : {&s.block_table, &s.cut_source})
      for (const BlockId b : *blocks)
        if (!cache.is_held(b)) return lost(b);
  }
  return {};
}

// Where a step before it failed, its requests have ended whole.
Broken check_follows(const SubmittedStep& step) {
  for (const PlannedWork& work : step.work) {
    const Sequence& s = *work.sequence;
    if (s.finished() || s.num_computed == work.first) continue;
    return fmt::format("step {} computes sequence {} from position {} on, and {} are computed before it",
                       step.plan->step, value(s.id), work.first, s.num_computed);
  }
  return {};
}

}  // namespace quire
