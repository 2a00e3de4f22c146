#!/usr/bin/env python3
"""Plants bugs in cache, queue, scheduler and engine, one at a time, and sees that the simulator or the tests catch each in a minute.

A bug is a text replaced in a copy of one source file. The copy alone is compiled and linked before the normal build's libraries. The
programs run in the order of PROGRAMS until one fails; a failure that names no broken rule (a crash, a hang) counts too. A bug that
survives them all fails this script, and so does a text that does not stand in its file exactly once. A program counts as hung when it
takes many times as long as it takes without a bug on this machine, now.

    bookkeeping_bugs.py --build build/release [--quick] [--only TEXT] [--jobs N] [--table FILE.md] [--keep FILE.json]
"""
import argparse
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from caught_before import CaughtBefore  # noqa: E402

LIBRARIES = ["sim", "engine_core", "fake_executor", "traces", "model", "schedule", "request", "policy", "cache", "sample", "movers", "device", "base"]
SECONDS = 60  # for one bug, all programs together, compiling apart
HUNG = 8  # times as long as without a bug
PATIENCE = 20  # seconds that any program may take before it is asked whether it hangs

# Name in the table, test program, which of its cases: those of a second first, so that a minute is enough on a busy machine too, and no
# slow program counts as hung. The cache's tests are only for the cache's files: their model of it has names that the scheduler has too; the
# policies' are only for the policies'.
PROGRAMS = [
    ("cache units", "cache_unit_test", "*"),
    ("policy units", "policy_test", "*"),
    ("queue units", "request_test", "*"),
    ("scheduler units", "schedule_test", "*"),
    ("disk units", "disk_test", "*"),
    ("simulator", "sim_test", "Simulation.FreshSeedsRunClean"),
    ("cache model", "cache_property_test", "*"),
    ("scripts", "sim_test", "SimScript.*:Simulation.Replays*"),
    ("traffic", "engine_traffic_test", "*"),
]

POOL, CACHE, TREE, PUBLISH = "src/cache/block_pool.cc", "src/cache/kv_cache.cc", "src/cache/prefix_tree.cc", "src/cache/publish.cc"
STEP, INDEX = "src/cache/step_transaction.cc", "src/cache/eviction_index.cc"
QUEUE, GROUP, DOOR = "src/request/waiting_queue.cc", "src/request/sequence_group.cc", "src/request/admission.cc"
PLAN, FILL, ADMIT, COMMIT = "src/schedule/plan.cc", "src/schedule/fill_plan.cc", "src/schedule/admit.cc", "src/schedule/commit.cc"
HELD = "src/cache/held.cc"
TIER, RESTORE, BEHIND = "src/cache/tier.cc", "src/cache/restore.cc", "src/schedule/tiers.cc"
TRANSFERS, ROOM = "src/schedule/tier_transfers.cc", "src/schedule/room.cc"
STORE, AHEAD = "src/execute/disk_store.cc", "src/schedule/work_ahead.cc"
BEAMS, RETENTION, ASIDE = "src/schedule/commit_beams.cc", "src/schedule/retention.cc", "src/schedule/aside.cc"
SWAP, LISTS, HOST = "src/schedule/swap.cc", "src/cache/swap.cc", "src/cache/host_pool.cc"
REJECT, SPEC, LISTS_BY_SCORE, LIST_MEMORY = (f"src/policy/{name}.cc" for name in ("reject", "policy_spec", "retention", "policy_memory"))
LIFE, PREEMPT, CORE, EPISODE = "src/schedule/lifecycle.cc", "src/schedule/preempt.cc", "src/engine/engine_core.cc", "benchmarks/sim/episode.cc"

# quick (run with every test run), name, file, old text, new text
BUGS = [
    (True, "a holder too few", POOL, "became_held(block);\n  ++blocks_[value(block)].holders;", "became_held(block);"),
    (True, "a released block is not freed", POOL, "--blocks_[value(block)].holders;\n  if (!is_held(block)) no_longer_held(block);",
     "--blocks_[value(block)].holders;"),
    (False, "a read block is not freed", POOL, "--blocks_[value(block)].readers;\n  if (!is_held(block)) no_longer_held(block);",
     "--blocks_[value(block)].readers;"),
    (False, "a copy's source has no reader", POOL, "--blocks_[value(block)].holders;\n  ++blocks_[value(block)].readers;",
     "--blocks_[value(block)].holders;"),
    (False, "an evicted block is not freed", POOL, "    --num_cached_;\n    put_free(block);", "    --num_cached_;"),
    (False, "a taken block stays marked free", POOL, "  words[w] &= words[w] - 1;\n", ""),
    (False, "filled slots of a block that goes are kept", POOL, "  filled_slots_held_ -= blocks_[value(block)].filled;\n", ""),
    (True, "a hit may take the whole prompt", CACHE, "tokens.first(std::min<size_t>(tokens.size(), max_tokens))", "tokens"),
    (False, "a hit counts where there is no room for the rest", CACHE, "    retain(block);\n    index_.left(block, now_us);", "    retain(block);\n    index_.used(block, now_us);"),
    (False, "a hit with which a request runs does not count", ADMIT, "  cache_.count_use(table, now_us);\n", ""),
    (False, "a parent forgets no pinned child", CACHE, "    --tree_.num_pinned_children(parent);\n", ""),
    (False, "a parent is evicted before its children", CACHE, "index_.insert(block, tree_.num_children(node_of(block)) == 0);",
     "index_.insert(block, true);"),
    (False, "a cut tail is freed while a step reads it", CACHE,
     "    pool_.holder_to_reader(table.blocks_.back());\n    deferred.push_back(table.blocks_.back());", "    pool_.release(table.blocks_.back());"),
    (False, "a dropped block is freed while a step reads it", CACHE,
     "    pool_.holder_to_reader(*block);\n    deferred.push_back(*block);", "    pool_.release(*block);"),
    (False, "an evicted block's hash stays", TREE, "  if (node.num_tokens == block_tokens_) unindex_full(value(leaf));\n", ""),
    (False, "the hash forgets what came before", TREE, "mix(node_at(parent).prefix_hash, hash_tokens(tokens))", "hash_tokens(tokens)"),
    (False, "a hit inside a block is a token too long", TREE, "  return matched + best.shared;", "  return matched + best.shared + (best.shared > 1);"),
    (False, "a similar block is adopted for an equal one", PUBLISH, "nearest.shared == static_cast<int32_t>(tokens.size())", "nearest.shared > 0"),
    (False, "a published block does not pin its parent", PUBLISH, "  pinned(own);\n", ""),
    (False, "a merged duplicate is never given back", PUBLISH, "  deferred.push_back(entry);\n", ""),
    (True, "a published tail is written", STEP, "!pool_.may_write(table.blocks_.back());", "pool_.num_holders(table.blocks_.back()) > 1;"),
    (False, "a rollback forgets the copied tail", STEP, "      pool.reader_to_holder(undo->copied);\n", ""),
    (False, "a copy's source is never given back", STEP, "  for (const BlockCopy& copy : cache_->copies_) deferred.push_back(copy.source);\n", ""),
    (False, "a list is a slot too short", STEP, "  table.lengthen(new_length);\n}", "  table.lengthen(new_length - 1);\n}"),
    (False, "the latest used goes first", INDEX, "a.last_use_us, a.block) <\n         std::tie(b.retention_class, b.expiry_us, b.worth, b.last_use_us,",
     "b.last_use_us, a.block) <\n         std::tie(b.retention_class, b.expiry_us, b.worth, a.last_use_us,"),
    (False, "an expired block moves PGDSF's clock", INDEX, " && key.expiry_us > now_us)", ")"),
    (False, "what replaces a block loses what was said of it", PUBLISH, "    index_.strengthen(own, index_.retention_of(nearest.block));\n", ""),
    (False, "an expiry outlives its class", INDEX, "  } else if (retention.retention_class == entry.retention_class) {\n", "  } else {\n"),
    (False, "the evictable count never falls", INDEX, "  entries_[value(block)].inside = false;\n  --size_;", "  entries_[value(block)].inside = false;"),
    (False, "who gives way keeps a tail that came", SWAP, "  lose_tail(s);\n  s.num_planned", "  s.num_planned"),
    (False, "who is swapped keeps a tail that came", SWAP, "    lose_tail(*s);\n", ""),
    (False, "who ends keeps a tail that came", LIFE, "  lose_tail(sequence);\n", ""),
    (False, "a tail that failed is taken for one that came", SWAP, "    if (ended.is_tail) return lose_tail(s);\n", "    if (ended.is_tail) return;\n"),
    (False, "a tail is joined before its front is computed", BEHIND, " || s.num_computed < s.tail_from) return;", " || s.num_planned < s.tail_from) return;"),
    (False, "a tail is joined before it has come", BEHIND, "s.tail_from == 0 || s.tail_comes ||", "s.tail_from == 0 ||"),
    (False, "a tail that hangs is free", TRANSFERS, "      t.sources.push_back(std::move(s.tail));  // what is being written stays held\n", "      cache_.release(std::move(s.tail), now_us);\n"),
    (False, "the front is copied too, into blocks that were given back", TRANSFERS, "fetch.copies.begin() + (at / cache_.block_tokens() - had));", "fetch.copies.begin());"),
    (False, "there is always time to compute a front", BEHIND, "  return queue_.size() == 1 &&", "  return true ||"),
    (False, "a front is computed where the link is far faster", TRANSFERS, "constexpr double kWorthwhile = 0.75;", "constexpr double kWorthwhile = 1.5;"),
    (False, "a tenant who comes back has saved up", QUEUE, "    share.counter = std::max(share.counter, floor);\n", ""),
    (False, "a tenant who only runs has saved up", QUEUE, "    share.counter = std::max(share.counter, floor);\n", "    if (share.num_present == 1) share.counter = std::max(share.counter, floor);\n"),
    (False, "a tenant who waits at one rank has saved up at another", QUEUE, "    share.counter = std::max(share.counter, floor);\n",
     "    bool waits = false;\n    for (const auto& [r, of] : ranks_) waits = waits || (of.shares.contains(group.tenant) && of.shares.at(group.tenant).num_waiting > (r == share.rank));\n"
     "    if (!waits) share.counter = std::max(share.counter, floor);\n"),
    (False, "newcomers are measured by whoever waits anywhere", QUEUE, "const double floor = floor_of(rank);", "const double floor = floor_of(ranks_.begin()->second);"),
    (False, "where nobody waits newcomers begin anew", QUEUE, "return std::max(rank.floor, last == nullptr ? rank.forgotten_at : last->counter);", "return rank.floor;"),
    (False, "who is forgotten is no measure", QUEUE, "    rank->second.forgotten_at = least.counter;\n", ""),
    (False, "a tenant never leaves", QUEUE, "  if (--share.num_present > 0) return;\n", "  if (share.num_present > 0) return;\n"),
    (False, "an idle tenant is never forgotten", QUEUE, "  if (++num_idle_ > kMaxIdleShares) forget_one();\n", "  ++num_idle_;\n"),
    (False, "a sample draws as the next seed's does", GROUP, "Random(Random(seed).next() + static_cast<uint64_t>(index))", "Random(seed + static_cast<uint64_t>(index))"),
    (False, "samples draw alike", GROUP, "index == 0 ? seed : Random(Random(seed).next() + static_cast<uint64_t>(index)).next()", "index >= 0 ? seed : Random(seed).next()"),
    (False, "a prompt may fill the whole context", DOOR, "max_context_tokens - (sampling.max_tokens > 0 ? 1 : 0)", "max_context_tokens"),
    (False, "a step has no token budget", PLAN, "  budget_ -= count;\n", ""),
    (True, "a slow reader's sequence goes on", PLAN, "s.goal() < s.group->max_total_tokens && !s.group->paused && !s.planned_now",
     "s.goal() < s.group->max_total_tokens && !s.planned_now"),
    (False, "a decode takes the token before the last", FILL, "planned.tokens.front() = s.tokens[work.first];",
     "planned.tokens.front() = s.tokens[work.first - (work.first > 0)];"),
    (False, "a sample is taken a position late", FILL,
     "sample.position = planned.first_position + static_cast<int32_t>(planned.tokens.size());",
     "sample.position = planned.first_position + static_cast<int32_t>(planned.tokens.size()) + 1;"),
    (False, "a position too many counts as computed", COMMIT, "  s.num_computed += work.count;", "  s.num_computed += work.count + 1;"),
    (False, "a committed sample stays pending", COMMIT, "      --s.num_pending;\n", ""),
    (False, "a request goes on where a sample fails after its last token", COMMIT, "  if (s.group->state != GroupState::kEnded) end_group", "  if (!s.finished()) end_group"),
    (False, "beams of which some are outside let nobody pass", ASIDE, "!only_stopped_run(blocked->group)", "!only_stopped_run()"),
    (True, "a failed copy is trusted", COMMIT, "  if (!work.copied) return;", "  if (work.copied || !work.copied) return;"),
    (False, "an output may be a token too long", COMMIT, "s.num_tokens() >= group.max_total_tokens", "s.num_tokens() > group.max_total_tokens"),
    (True, "who waits for a prefix is not woken when its leader ends", LIFE, "  unpark_waiters(sequence, true);\n", ""),
    (False, "who waits for a prefix is not woken when its leader is preempted", PREEMPT, "    unpark_waiters(*s, true);\n", ""),
    (False, "a cancelled leader keeps pointers to who waits", LIFE,
     "    std::erase_if(leader->waiters, [&](const PrefixWaiter& w) { return w.group == &group; });\n", ""),
    (False, "nobody in the queue is ever overdue", ADMIT, "  queue_.promote(arrived_by_us);\n", ""),
    (False, "the overdue of the first rank are passed by others", QUEUE, "  for (const auto& [rank, lines] : by_rank_)\n    for (const auto& [tenant, line] : lines)\n      for (SequenceGroup* group",
     "  for (const auto& [rank, lines] : by_rank_)\n    for (const auto& [tenant, line] : rank == by_rank_.begin()->first ? Lines{} : lines)\n      for (SequenceGroup* group"),
    (False, "one of the overdue is forgotten", QUEUE, "  for (SequenceGroup* group : overdue) {\n    erase", "  if (overdue.size() > 1) overdue.pop_back();\n  for (SequenceGroup* group : overdue) {\n    erase"),
    (False, "a preempted sequence is never overdue", ADMIT, "    group.overdue = changed = true;\n", ""),
    (False, "preempted sequences that are overdue keep their places", ADMIT, "  if (changed) std::sort(preempted_.begin(), preempted_.end(), before);\n", ""),
    (False, "a retention class is forgotten", BEHIND, "{.retention_class = asked.retention_class,", "{.retention_class = 0,"),
    (False, "a time to live never ends", BEHIND, "now_us + *asked.ttl_ms * 1000", "kNoExpiry"),
    (True, "the queue's budget is not given back", LIFE, "  queue_budget_.give_back(group.num_prompt_tokens());\n", ""),
    (False, "a retired sequence keeps its blocks", LIFE, "  cache_.release(std::move(sequence.table), now_us);\n", ""),
    (False, "blocks go while a submitted step names them", LIFE, "  if (sequence.num_in_flight == 0) retire(sequence, now_us);", "  retire(sequence, now_us);"),
    (False, "a preempted sequence stays in the executor", SWAP, "  if (s.joined) leaves_.push_back(s.id);\n", ""),
    (False, "a shortened head counts a block too many", PREEMPT, "  s.num_planned = s.num_computed = kept_tokens;\n",
     "  s.num_planned = s.num_computed = kept_tokens + block_tokens_;\n"),
    (False, "heads that wait are never shortened", PREEMPT,
     "  if (shorten_heads(*blocked, blocks_needed(*blocked, {}), now_us)) return true;\n", ""),
    (False, "a head is lost where its sequence finds no room", ADMIT, "      s.table = std::move(table);\n    else\n", "      ;\n    else\n"),
    (False, "a shorter head is kept beside the prefix that is found", ADMIT,
     "  cache_.release(std::move(s.table), now_us);  // a shorter head: the prefix holds its blocks too\n", ""),
    (False, "shared blocks of a tail count as room", PREEMPT, "offer.freed < needed && comes_free(blocks[kept - 1]); --kept)",
     "offer.freed < needed; --kept)"),
    (False, "a tail that is given back stays counted", CACHE, "  table.length_ = at;\n", ""),
    (False, "a request's salt is forgotten", CORE, "  key.salt = std::move(request.cache_salt);\n", ""),
    (False, "a passed deadline is not looked at", CORE, "  expire(clock_.now_us());\n", ""),
    (True, "a merged duplicate is called unchanged", PUBLISH, "  table.changed_from(index);\n", ""),
    (False, "a copied tail is called unchanged", STEP, "  table.changed_from(table.num_blocks() - 1);\n", ""),
    (False, "an overwritten entry is called unchanged", STEP, "    table.changed_from(i);\n", ""),
    (False, "a cut list is called unchanged", STEP, "  table.changed_from(0);\n", ""),
    (False, "a list without its dropped blocks is called unchanged", CACHE, "  table.changed_from(first);\n", ""),
    (False, "a shortened list is called unchanged", CACHE, "  table.changed_from(table.num_blocks());\n", ""),
    (False, "a copy under way does not hold its sequence", TRANSFERS, "    ++sequence->num_in_flight;\n", ""),
    (False, "a sequence runs before its blocks are back", PLAN, " && !s.copying &&\n", " &&\n"),
    (True, "an ended request keeps its host blocks", LIFE, "  cache_.discard(std::move(sequence.swapped));\n", ""),
    (False, "a host block is given back twice", LISTS, "  list = SwappedList();\n}", "}"),
    (False, "a taken host block stays free", HOST, "    free_.pop_back();\n", ""),
    (False, "a list comes back with another's block", LISTS, "pool_.is_published(block.device) &&\n         pool_.publication(block.device) == block.publication;",
     "pool_.is_published(block.device);"),
    (False, "a failed copy back is trusted", SWAP, "  if (!end.status) {\n    // Without", "  if (!end.status && !s.running()) {\n    // Without"),
    (False, "a failed copy out is trusted", SWAP, "  if (!end.status) {\n    // Without", "  if (!end.status && s.running()) {\n    // Without"),
    (False, "what did not arrive is published", SWAP,
     "    if (!end.status && ended.direction == TransferDirection::kToDevice && !ended.is_tail) s->num_computed = 0;\n", ""),
    (False, "a block on its way to the host may be written", TRANSFERS,
     "transfer.sources.push_back(std::move(s->table));", "cache_.release(std::move(s->table), 0);\n  (void)transfer;"),
    (False, "a swapped sequence forgets how far it was", SWAP, "    s->num_planned = s->num_computed = s->swapped_computed;",
     "    s->num_planned = s->num_computed = s->swapped_computed - 1;"),
    (False, "a swapped list comes back in another order", LISTS, "        copies.push_back({at->second, host});",
     "        copies.push_back({at->second, list.blocks_[list.num_blocks() - 1].host});"),
    (False, "what lists share comes back for one of them", LISTS, "        retain(at->second);\n", ""),
    (False, "a block that beams share on the host has one holder", LISTS,
     "    swap_pool_.retain(host_of(block));\n", "    if (swap_pool_.num_held() < 0) swap_pool_.retain(host_of(block));\n"),
    (False, "beams give way to themselves for ever", PREEMPT, "  if (gives_way_to_itself(*victim, *blocked)) return false;\n", ""),
    (False, "whoever waits for a reader keeps its room from a higher priority", PREEMPT,
     "  return next == nullptr || victim.group().rank() <= next->rank();", "  return true;"),
    (False, "samples keep the duplicates that their first gave up", LIFE, "forks_.push_back(&s->table);", ";"),
    (False, "a fork's longer tail is taken for the cached one", PUBLISH, "  if (p.of_block(index, block_tokens_).size() < static_cast<size_t>(block_tokens_)) return;\n", ""),
    (False, "a fork takes over a block that it does not hold", PUBLISH, "fork->blocks_[index] == own)", "own == own)"),
    (False, "samples that share all they have give way for ever", PREEMPT, " ||\n      shares_all_it_has(*victim, *blocked)) {", ") {"),
    (False, "progress: who could not give way again passes who stands aside", ADMIT, " || must_not_pass(group) ||", " ||"),
    (False, "progress: a beam that waits for its sibling counts as blocked", PREEMPT, "(wants_decode(*s) && !waits_for_beams(*s))", "wants_decode(*s)"),
    (False, "progress: who was preempted counts as blocked before a better request", PREEMPT,
     "(back != nullptr && back->group->rank() <= next->rank())", "back != nullptr"),
    (False, "progress: a late copy fails whoever needs its room", PREEMPT, "    if (transfers_.may_give_room()) return false;\n", ""),
    (False, "progress: a prompt that came from a tier is its reader's alone", SWAP, "    if ((ended.is_fetch && !ended.is_tail) || s.group->is_beam) publish_computed(s, now_us);\n",
     "    if (s.group->is_beam && !ended.is_fetch) publish_computed(s, now_us);\n"),
    (False, "progress: a copy that hangs is waited for for ever", TRANSFERS, "t.is_slow) && !t.hangs && holds", "t.is_slow) && holds"),
    (False, "more blocks leave than were counted", HELD, "  for (Given& g : all)\n", "  holding.blocks = static_cast<int64_t>(all.size());\n  for (Given& g : all)\n"),
    (False, "what a copy reads counts as room", HELD, "    if (pool_.num_readers(block) > 0) return false;\n", ""),
    (False, "what stands before a block that is read counts as room", HELD, "return pinned == 0 || going[value(block)] == pinned;", "return pinned >= 0;"),
    (False, "a head gives blocks that a copy reads", PREEMPT, "    if (cache_.is_read(block, std::exchange(behind, block))) break;\n    freed", "    behind = block;\n    if (behind == kNoBlock) break;\n    freed"),
    (False, "what stands before a block that another list holds counts as room", HELD, " && pool_.num_holders(behind) <= 1 &&", " &&"),
    (False, "a write that may not begin evicts what is below", TIER, "allowed.from(kind_) ? blocks_to_read_down() : 0", "blocks_to_read_down()"),
    (False, "a prefix whose write cannot begin at once is lost", TIER, "  if (most <= 0 && allowed.from(kind_)", "  if (false && allowed.from(kind_)"),
    (False, "what is owed last is written first", TIER, "std::move(owed_.front());\n  owed_.pop_front();", "std::move(owed_.back());\n  owed_.pop_back();"),
    (False, "a prefix is owed as often as it is asked for", TIER, "  if (own == 0) return;\n", ""),
    (False, "what may not be read is owed", TIER, "most <= 0 && allowed.from(kind_) && allowed.to(to.cache->kind_)) owe(", "most <= 0) owe("),
    (False, "more is owed than the tier holds", TIER, "  while (num_owed_tokens_ > num_blocks() * block_tokens_ &&", "  while (num_owed_tokens_ < 0 &&"),
    (False, "what was owed keeps its namespace open", TIER, "    close_namespace(owed.ns);\n", ""),
    (False, "what is forgotten of what is owed keeps its namespace open", TIER, "  while (!owed_.empty()) close_namespace(take_owed().ns);\n", "  while (!owed_.empty()) take_owed();\n"),
    (False, "what is owed is not forgotten", TIER, "  while (!owed_.empty()) close_namespace(take_owed().ns);\n", ""),
    (False, "two policies share a namespace", "src/cache/namespaces.cc", "&key.codec, &key.policy}", "&key.codec}"),
    (False, "a write to a tier that takes none evicts there", TIER, "!allowed.to(to.cache->kind_) || ", ""),
    (False, "what is said of a prefix ends at a host without room", TIER, "    if (has_all(to, wanted, retention, allowed, now_us, writes)) return;\n", ""),
    (False, "a beam is left behind by those it runs with", SWAP, "    if (sibling->state == s.state && sibling->swapped.empty() == s.swapped.empty() &&",
     "    if ((!s.group->is_beam || sibling.get() == &s || !s.running()) && sibling->state == s.state && sibling->swapped.empty() == s.swapped.empty() &&"),
    (False, "samples give way one by one where others run", PREEMPT, "s.group == blocked.group && !others_run(*s.group);", "s.group == blocked.group;"),
    (False, "samples of a stopped reader give way one by one", PREEMPT, "!s.group->is_beam && s.group == blocked.group && ", "!s.group->is_beam && "),
    (False, "samples that are alone give way as one", PREEMPT, "const bool in_turn = !s.group->is_beam && ", "const bool in_turn = false && "),
    (False, "samples that stopped give their slots one by one", PREEMPT, "    const std::vector<Sequence*> victims = together_with(**s);\n", "    const std::vector<Sequence*> victims{*s};\n"),
    (False, "samples come back from the host one by one", ADMIT, " && bring_back(all, now_us))\n    return all;", " && (in_turn && bring_back(all, now_us)))\n    return all;\n  if (!in_turn) return bring_back(coming, now_us) ? coming : std::vector<Sequence*>();"),
    (False, "beside readers that stopped samples wait for room for all", ADMIT, "  return in_turn && bring_back(coming, now_us) ? coming", "  return false ? coming"),
    (False, "beams come in by halves beside readers that stopped", ROOM, "group.is_beam || others_run(group) ? blocks_to_follow", "others_run(group) ? blocks_to_follow"),
    (False, "who could not give way again takes all there is", ROOM, "  return group.traits.recompute_safe && !others_run(group);", "  return !others_run(group);"),
    (False, "who ends while it stands aside is remembered", LIFE, "  if (group.aside) std::erase(aside_, &group);\n", ""),
    (False, "the reserve rises for whoever gives way", PREEMPT, "  if (was_short(*blocked, *victim)) reserve_ratio_", "  reserve_ratio_"),
    (False, "samples come in where there is room for one", ROOM, "others_run(group) ? blocks_to_follow(group, coming) : 0;", "0;"),
    (False, "the room of samples that are to follow is given away", ROOM, "      reserved += blocks_to_follow(*r->group, {});\n", "      reserved += 0;\n"),
    (False, "the slots of samples that are to follow are given away", ADMIT, "used += group.paused ? group.slots_in_use() : group.slots_wanted();", "used += group.slots_in_use();"),
    (False, "samples come in where there is a slot for one", ADMIT, "in_turn ? group.slots_in_use() + 1 : group.slots_wanted(), now_us", "group.slots_in_use() + 1, now_us"),
    (False, "room is kept free beside readers that stopped", ROOM, "  return group.traits.recompute_safe && !others_run(group);", "  return group.traits.recompute_safe && running_.empty();"),
    (False, "nobody steps aside beside readers that stopped", ASIDE, "  if (blocked == nullptr || !only", "  if (blocked == nullptr || !blocked->group->aside || !only"),
    (False, "who stepped aside does not stand in line again", PLAN, "  if (aside_epoch_ != room_epoch_ || in_flight_.empty()) come_back();\n", ""),
    (False, "who waits for room does not hear of a reader that stopped", LIFE, "    ++room_epoch_;  // who runs", "    // who runs"),
    (False, "samples lose their heads to each other for nothing", PREEMPT, "  return owner.group != whom.group || whom.running() || !others_run(*whom.group);", "  return true;"),
    (False, "dropped tails keep a block that is not whole", PREEMPT, "    offer.kept_tokens[i] = kept * block_tokens_;\n", "    offer.kept_tokens[i] = s.num_computed;\n"),
    (False, "each of several samples drops the tail that one should", PREEMPT, "kept > 0 && offer.freed < needed && comes_free", "kept > 0 && offer.freed < needed * static_cast<int64_t>(victims.size() - i) && comes_free"),
    (False, "a block that lists fill unlike counts as the first has it", LISTS, "std::max(used, pool_.filled(at->second))", "pool_.filled(at->second)"),
    (False, "of beams that lost their blocks one runs again", SWAP, "    if (!s->finished()) take_in(*s, ended, end, now_us, out);\n",
     "    if (!s->finished() && s == ended.sequences.front()) take_in(*s, ended, end, now_us, out);\n"),
    (True, "a salt is forgotten in a tier below", CACHE, "names_below_[value(ns)] = below_->open_namespace(key);",
     "{ NamespaceKey bare = key; bare.salt.clear(); names_below_[value(ns)] = below_->open_namespace(bare); }"),
    (False, "a copy to a tier below does not hold its blocks", TIER, "    retain(blocks[i]);\n    pool_.holder_to_reader(blocks[i]);\n", ""),
    (False, "a failed copy to a tier below is found there", TIER, "  if (arrived) {\n    std::vector<BlockId> merged;\n", "  {\n    std::vector<BlockId> merged;\n"),
    (False, "a tier without room for a prompt keeps it from the next", TIER, "    if (to.cache->below_ == nullptr) return;\n    to = ", "    return;\n    to = "),
    (False, "a write to a tier below reads more than a sixteenth", TIER, "std::max<int64_t>(1, most) - num_read_down_", "num_blocks()"),
    (False, "what follows a part is not written below", TIER, "lookup(write.ns, write.tokens) >= there + block_tokens_", "false"),
    (False, "time behind other copies counts as a copy's own", TRANSFERS, "  return std::max(t.started_us, last_end_us_[static_cast<size_t>(queue_of(t))]);\n", "  return t.started_us;\n"),
    (False, "the card's other prompts are forgotten beside the disk", TRANSFERS, "      others_us + computed_us(here, below.anywhere))\n", "      computed_us(here, below.anywhere))\n"),
    (False, "a prompt goes on before its prefix is there", PLAN, "  if (s.copying) return;  // its prefix is on the way\n", ""),
    (False, "a read from a tier below holds nothing there", TRANSFERS, "  if (transfer.read) end_read(transfer, end, now_us, ended);\n", ""),
    (False, "a block that is read from the disk is not held there", TIER, "    found.read.parts.push_back({at->kind_, std::move(table)});\n",
     "    if (at->kind_ == CacheTier::kDisk)\n      at->release(std::move(table), now_us);\n    else\n"
     "      found.read.parts.push_back({at->kind_, std::move(table)});\n"),
    (False, "a block is given back while it is written to the disk", TIER, "  num_read_down_ += static_cast<int64_t>(write.read.size());",
     "  if (below_->kind_ == CacheTier::kDisk) {\n    release_deferred(write.read);\n    write.read.clear();\n  }\n"
     "  num_read_down_ += static_cast<int64_t>(write.read.size());"),
    (False, "the disk's prefix is taken where the host's ends a block late", TIER, "    found.blocks.resize(found.length / block_tokens_);  // a tail",
     "    found.blocks.resize((found.length + block_tokens_ - 1) / block_tokens_);  // a tail"),
    (False, "a corrupt block is found again", TIER, "    for (const BlockId block : bad) lost += tier.forget(block);\n", "    lost += static_cast<int64_t>(bad.size());\n"),
    (False, "what a copy's failure left is trusted", SWAP, "  if (!end.status) {\n    // Without", "  if (!end.status && !ended.is_fetch) {\n    // Without"),
    (False, "beams pay for nothing", BEAMS, "  WaitingQueue::charge_output(group, static_cast<int64_t>(beams.size()));\n", ""),
    (False, "output is not paid for", COMMIT, "  WaitingQueue::charge_output(group, 1);\n", ""),
    (False, "a prompt is not paid for", ADMIT, "  WaitingQueue::charge_prompt(group, s.num_prompt_tokens - s.num_planned - s.tail.length());\n", ""),
    (False, "a sliding list takes of the tree what does not fit beside its bound", RETENTION, "most = 1 + std::max<int64_t>(0, cache_.num_blocks() - bound);", "most = 1 + cache_.num_blocks();"),
    (False, "a sliding list that fits whole finds less than it could", RETENTION, " || samples * size_.blocks_for(all) <= cache_.num_blocks()) return all;", ") return all;"),
    (False, "samples that slide have their prompt's blocks once each", RETENTION, "most <= shared ? most : shared + (most - shared) / samples;", "1 + (most - 1) / samples;"),
    (False, "a window's list on the host counts as one to be run again", RETENTION, "std::max(swapped, table.next_position())", "table.next_position() + 0 * swapped"),
    (False, "who waits for policy memory stays first in the queue", RETENTION, "  queue_.step_out(group);\n  group.parked", "  return false;\n  group.parked"),
    (False, "policy memory: who leaves its waiters wakes nobody", RETENTION, "  group.waits_for_memory = false;\n  wake_memory_waiters();\n", "  group.waits_for_memory = false;\n"),
    (False, "policy memory: a better rank waits behind a worse one", RETENTION, "{ return waiter->rank() <= group.rank(); }", "{ return waiter != nullptr; }"),
    (False, "policy memory: a worse rank is passed for ever", ADMIT, "  promote_memory_waiters(arrived_by_us);\n", ""),
    (False, "policy memory: who comes later passes who waits", RETENTION, " && std::ranges::none_of(memory_waiters_, stands_before)) return", ") return"),
    (False, "policy memory: who stops reading stays among its waiters", LIFE, "  } else if (paused) {\n    leave_memory_waiters(*group);\n", "  } else if (paused) {\n"),
    (False, "who the reserve keeps out is not asked when it has fallen", ROOM, "  blocked_above_ = reserve_ratio_ > rule.least ? std::max(rule.least, reserve_ratio_ - fall) : -1;", "  blocked_above_ = reserve_ratio_ < 0 ? fall : -1;"),
    (False, "a read that is given up frees what it writes", TRANSFERS,
     "      t.sources.push_back(std::exchange(s.table, std::move(had)));\n",
     "      cache_.release(std::exchange(s.table, std::move(had)), now_us);\n"),
    (False, "a request that waits no more counts as computed", SWAP, "    s->num_planned = s->num_computed = s->table.length();\n", ""),
    (False, "a copy that hangs is waited for", TRANSFERS, "    if (now_us < t.overdue_us) continue;\n", "    continue;\n"),
    (False, "a copy of a request that has ended goes on to its end", LIFE, "  if (sequence.copying || sequence.tail_comes) transfers_.stop_unwanted();\n", ""),
    (False, "a copy is stopped though one of its requests waits", TRANSFERS, "std::ranges::all_of(t.sequences, is_unwanted))", "std::ranges::any_of(t.sequences, is_unwanted))"),
    (False, "a copy is stopped though others wait for its prefix", TRANSFERS, "return s->finished() && s->waiters.empty();", "return s->finished();"),
    (False, "a copy goes on though who waited for its prefix has gone too", LIFE, "    if (leader->finished()) transfers_.stop_unwanted();\n", ""),
    (False, "who waits for the prefix of a cancelled reader computes it", LIFE, "  if (!sequence.copying) unpark_waiters(sequence, true);\n", "  unpark_waiters(sequence, true);\n"),
    (False, "who waited for a cancelled reader waits for ever", LIFE, "  unpark_waiters(sequence, true);\n  cache_.release(std::move(sequence.table), now_us);\n", "  cache_.release(std::move(sequence.table), now_us);\n"),
    (False, "a read that is given up goes on to its end", TRANSFERS, "    t.unwanted.request_stop();\n    t.was_given_up", "    t.was_given_up"),
    (False, "a copy that was stopped says nothing of the disk", TRANSFERS, "    if (transfer.was_given_up) learn_disk_rate(*end.stopped_after, now_us - begun_us(transfer));\n", ""),
    (False, "a slow moment of a read that was cancelled tells how fast the disk is", TRANSFERS, "    if (transfer.was_given_up) learn_disk_rate(", "    learn_disk_rate("),
    (False, "what owed prompts have in common counts once each", TIER, "size()) - common;", "size());"),
    (False, "a copy that was stopped behind another is a sign that that one goes on", TRANSFERS, "  if (had_begun) queue_goes_on(", "  queue_goes_on("),
    (False, "a copy that is not begun waits for the one before it though nobody wants it", "src/execute/threaded_mover.cc", "      if (worker != nullptr) worker->end_unwanted();\n", "      (void)worker;\n"),
    (False, "a request that is refused for its deadline counts as failed", CORE, "  forget_deadline(request);\n  ++counts_.refused;\n  counted_ends_ = outcome_.request_ends.size();\n", "  count_ends();\n"),
    (False, "what expired takes those behind it along at a restart", RESTORE, "block->retention.expiry_us > 0 || parents.contains(block->serial)", "block->retention.expiry_us > 0"),
    (False, "a disk that hangs is asked again", TRANSFERS, " || stalls(Queue::kFromDisk)) return deepest;", ") return deepest;"),
    (False, "what did not arrive counts as a hit", TRANSFERS, "  if (end.status) {\n    ended.hit_tokens = count_hits(transfer);\n",
     "  ended.hit_tokens = count_hits(transfer);\n  if (end.status) {\n"),
    (False, "a restored block lies in another place", RESTORE, "  places_.restore(block, stored.block, stored.serial);\n", ""),
    (False, "a restored child is put under another tenant's parent", RESTORE, " || found->second.ns != ns) return false;", ") return false;"),
    (False, "serials begin anew after a restart", RESTORE, "  for (const StoredBlock& block : stored) places_.seen(block.serial);\n", ""),
    (False, "a disk's checksum is not looked at", STORE, "  if (record->data_checksum != checksum_of(data, setup_.block_bytes))\n", "  if (record->data_checksum == 0)\n"),
    (False, "a model's identity is not compared", STORE, "  if (*identity != setup_.identity)\n", "  if (identity->empty())\n"),
    (False, "another block's serial is taken for the one asked for", STORE, "  if (record->block.serial != serial)", "  if (record->block.serial == 0)"),
    (False, "a directory is used by two at a time", STORE, "flock(index_, LOCK_EX | LOCK_NB) != 0", "flock(index_, LOCK_SH | LOCK_NB) != 0"),
    (False, "files that were removed are written on", STORE, "    if (!is_file_at(fd, path_of(name))) {\n", "    if (false) {\n"),
    (False, "a record that cannot be erased is called gone", STORE, "  if (!erase(place)) told", "  erase(place);\n  if (false) told"),
    (False, "damaged records that cannot be erased are forgotten", STORE, "records[i] != kNoRecord && !erase_damaged(first + i))", "records[i] != kNoRecord && !erase_damaged(first + i) && false)"),
    (False, "who has stepped out of line holds newcomers down", QUEUE, "  ranks_.at(group.rank()).in_line.erase(group.share);\n", ""),
    (False, "who is back in line holds newcomers down", QUEUE, "  return std::max(rank.floor, least);", "  return least;"),
    (False, "idle counters of all ranks are compared", QUEUE, " - floor_of(at->second);", ";"),
    (False, "tenants are served first come first", QUEUE,
     "head->share->counter < best->share->counter ||\n                       "
     "(head->share->counter == best->share->counter && head->order < best->order);", "head->order < best->order;"),
    (False, "output is paid for twice", COMMIT, "  WaitingQueue::charge_output(group, 1);\n", "  WaitingQueue::charge_output(group, 2);\n"),
    (False, "a request may be overtaken for ever", ADMIT, " && ahead[i - 1]->times_overtaken < kMaxOvertakes", ""),
    (False, "running prompts stand before nobody", AHEAD, "    if (!r->group->paused && !r->copying", "    if (r->group->paused && !r->copying"),
    (False, "what is cached counts as work ahead", AHEAD, "own.num_prompt_tokens - cached)", "own.num_prompt_tokens - 0 * cached)"),
    (False, "who has stepped aside stands before others", AHEAD, " && !other.parked && &other", " && &other"),
    (False, "what several prompts begin with is work for each", AHEAD, "        shares ? paths", "        shares && a.runs ? paths"),
    (False, "who has less cached stands before who has more", AHEAD, " && !is_overtaken;", ";"),
    (False, "a running prompt takes whole steps", AHEAD, "  std::for_each(all.begin(), longest, [](Ahead& a) { a.tokens = 0; });\n", ""),
    (False, "a slow step is held against all who come", CORE, "timer_.prompt_step_us(clock_.now_us());", "timer_.prompt_step_us(0);"),
    (False, "beams without room hold up others", PLAN, "  if (decodes_may_wait() && !beams_have_room(group)) {", "  if (group.next_index < 0) {"),
    (False, "what is cached inside a block keeps its block from others", ADMIT,
     "    cache_.release_tail(table, table.length() - in_tail, now_us);\n", "    cache_.truncate(table, table.length() - in_tail, deferred_now());\n"),
    (False, "who full lists or ended windows keep out is not asked", FILL, "    if (will_take_less(work, plan.sequences[i])) ++room_epoch_;\n", "    (void)will_take_less(work, plan.sequences[i]);\n"),
    (False, "samples that are to follow do not weigh in the reserve", ROOM, "  int64_t tokens = tokens_to_follow(group);\n", "  int64_t tokens = 0;\n"),
    (False, "what a waiting request will find is evicted first", CACHE, "  for (const BlockId block : path_) index_.awaited(block, now_us);\n", ""),
    (False, "beams that share a tail or a list are reckoned a copy each", STEP, " && !pool_.is_published(*block) ? 1 : 0;", " && !pool_.is_published(*block) ? 0 : 0;"),
    (False, "the lists of all beams lie in one place", BEAMS, "  return static_cast<int32_t>(free - taken.begin());\n", "  return 1;\n"),
    (False, "who gives its slot gives a block too", PREEMPT, "cheapest_offer(victims, 0)) return", "cheapest_offer(victims, 1)) return"),
    (False, "beams that overwrite need no room", PLAN, "return cache_.blocks_for_overwrites(tables);", "return 0;"),
    (False, "of who gives way for room something is written ahead", PREEMPT, "  transfers_.set_room_is_short(true);  // what is given is room, and no write's\n", ""),
    (False, "a beam's lists are not forked", BEAMS, "  if (source.group->traits.overwrites_slots)\n", "  if (false)\n"),
    (False, "what is asked for of a cached prefix is forgotten", ADMIT, "    cache_.strengthen(s.table, retention_of(s, now_us));\n", "    s.planned_now = false;\n"),
    (False, "a deadline that cannot be met is waited for", CORE, "  if (!hopeless) return;\n", "  if (hopeless || !hopeless) return;\n"),
    (False, "an end is counted twice", CORE, "  }\n  counted_ends_ = outcome_.request_ends.size();\n", "  }\n"),
    (False, "a policy that the model's rope rules out is taken", REJECT, "      {Kind::kStream, &Setting::dynamic_ntk_rope,\n", "      {Kind::kKeepAll, &Setting::dynamic_ntk_rope,\n"),
    (False, "a policy is refused in a setting that suits it", REJECT, "row.kind == spec.kind && setting", "setting"),
    (False, "a window's first row of a chunk sees a slot less than it holds", SPEC, "kept - 1 + std::max", "kept - 2 + std::max"),
    (False, "sinks are no slots", SPEC, "      return spec.sinks + spec.recent;", "      return spec.recent;"),
    (False, "a list is overwritten a token early", SPEC, "tokens - 1 > capacity(spec);", "tokens > capacity(spec);"),
    (False, "a window begins at a block", SPEC, "block_tokens) + 1);", "block_tokens));"),
    (False, "samples that slide have no prompt beside their lists", SPEC, "return sequences == 1 ? lists : lists +", "return sequences >= 1 ? lists : lists +"),
    (False, "a short prompt's window is computed in the server's chunks", SPEC, "std::min(chunk_tokens, std::max(kLeastWindowChunk, prompt_tokens))", "chunk_tokens"),
    (False, "a policy's window is wider than the model's", SPEC, "window > 0 ? std::min(window, own) : own", "own"),
    (False, "a prompt that is as long as its list is cut", SPEC, "prompt_tokens > capacity(spec);\n}", "prompt_tokens >= capacity(spec);\n}"),
    (False, "of equal scores the older wins", LISTS_BY_SCORE, "positions[i] < positions[j];\n}", "positions[i] > positions[j];\n}"),
    (False, "h2o gives up a recent token", LISTS_BY_SCORE, "    candidates.resize(candidates.size() - static_cast<size_t>(spec.recent));\n", "    candidates.resize(candidates.size());\n"),
    (False, "a token has the score of the one that it overwrites", LISTS_BY_SCORE, "    scores_[static_cast<size_t>(slot)] = 0.0f;\n", ""),
    (False, "a cut forgets what the prompt's rows gave", LISTS_BY_SCORE, "spec.kind == RetentionKind::kH2o ? scores[static_cast<size_t>(slot)] : 0.0f", "0.0f"),
    (False, "a dead slot is live", LISTS_BY_SCORE, "    if (slot != free_slot_) live", "    live"),
    (False, "lists' scores need no memory", LIST_MEMORY, " + (t.column_sums ? slots : 0)", ""),
    (False, "policy memory that comes free stays in parts", LIST_MEMORY, "if (before->first + before->second == offset) {", "if (before->first + before->second == offset && false) {"),
    (False, "policy memory that is given back stays used", LIST_MEMORY, "  used_ -= bytes;\n", ""),
]


def misplaced() -> list[str]:
    """The bugs that cannot be planted: asked of all of them, also where few are planted, so that none grows stale."""
    found = []
    for _, name, file, old, _ in BUGS:
        places = (ROOT / file).read_text().count(old)
        if places != 1:
            found.append(f"{name}: {file} has {places} places of {old!r}")
    return found


def plant(tree: pathlib.Path, file: str, old: str, new: str) -> pathlib.Path:
    source = tree / file
    source.parent.mkdir(parents=True)
    source.write_text((ROOT / file).read_text().replace(old, new))
    return source


def compile_mutant(source: pathlib.Path) -> pathlib.Path:
    target = source.with_suffix(".o")
    subprocess.run(["g++", "-std=c++20", "-O1", "-w", "-ffp-contract=off", "-fPIC", "-DFMT_HEADER_ONLY=1", f"-I{ROOT}", f"-I{ROOT}/include", "-c", str(source),
                    "-o", str(target)], check=True)
    return target


def objects_of(build: pathlib.Path, program: str) -> list[pathlib.Path]:
    return list((build / "tests/CMakeFiles" / f"{program}.dir").rglob("*.o"))


def libraries_of(build: pathlib.Path) -> list[pathlib.Path]:
    return [path for name in LIBRARIES for path in build.rglob(f"libquire_{name}.a")]


def inputs_of(build: pathlib.Path) -> list[pathlib.Path]:
    """All that decides whether a bug is caught."""
    tests = [path for program in {program for _, program, _ in PROGRAMS} for path in objects_of(build, program)]
    return [pathlib.Path(__file__), *(ROOT / file for file in {bug[2] for bug in BUGS}), *tests, *libraries_of(build)]


def link(build: pathlib.Path, program: str, mutant: pathlib.Path, target: pathlib.Path) -> None:
    objects = [str(path) for path in objects_of(build, program)]
    libraries = [str(path) for path in libraries_of(build)]
    if not objects:
        sys.exit(f"{build} has no {program}: build it first")
    subprocess.run(["g++", "-fno-lto", "-o", str(target), str(mutant), *objects, "-Wl,--start-group", *libraries, "-Wl,--end-group", "-lgtest", "-lgtest_main",
                    "-lfmt", "-lz", "-lpthread"], check=True)


def evidence(output: str) -> str:
    """The line that says what broke."""
    for pattern in (r"check failed[^\n]*", r"invariant \d[^\n]*", r"executor: [^\n]*", r"(?:pool|holders|tree|eviction): [^\n]*",
                    r"are held by nobody[^\n]*", r"stuck[^\n]*", r"[^\n]*Failure\n[^\n]*"):
        found = re.search(pattern, output)
        if found:
            return " ".join(re.sub(rf"{ROOT}/|{tempfile.gettempdir()}/tmp[^/]*/|(\.\./)+", "", found.group(0)).split())[:140]
    return "ended by a signal"


def run(path: pathlib.Path, cases: str, limit: float) -> tuple[bool, str] | None:
    """Whether it failed, and what it said; None if it had not ended at the limit."""
    environment = os.environ | {"QUIRE_SEED": "1", "QUIRE_SIM_SECONDS": "10"}
    try:
        done = subprocess.run([str(path), f"--gtest_filter={cases}"], capture_output=True, text=True, errors="replace", timeout=limit, cwd=ROOT,
                              env=environment)
    except subprocess.TimeoutExpired:
        return None
    return done.returncode != 0, evidence(done.stdout + done.stderr)


def run_until_hung(path: pathlib.Path, unharmed: pathlib.Path, cases: str) -> tuple[bool, str]:
    """As run(); a program that is slow because the machine is gets the time it needs."""
    result = run(path, cases, PATIENCE)
    if result is None:
        start = time.monotonic()
        if run(unharmed, cases, 600) != (False, evidence("")):
            sys.exit(f"{unharmed} fails without a bug, or does not end")
        limit = HUNG * (time.monotonic() - start)
        if limit > PATIENCE:
            result = run(path, cases, limit)
        result = result or (True, f"does not end within {max(limit, PATIENCE):.0f} s")
    return result


def try_bug(build: pathlib.Path, file: str, old: str, new: str) -> tuple[str, str, float]:
    with tempfile.TemporaryDirectory() as folder:
        tree = pathlib.Path(folder)
        mutant = compile_mutant(plant(tree, file, old, new))
        spent = 0.0
        for name, program, cases in PROGRAMS:
            if name.startswith("cache") and not file.startswith("src/cache"):
                continue
            if name.startswith("disk") != file.startswith("src/execute"):  # the others do not link it
                continue
            if name.startswith("policy") and not file.startswith("src/policy"):
                continue
            path = tree / program
            if not path.exists():
                link(build, program, mutant, path)
            start = time.monotonic()
            if spent > SECONDS:
                return "", "", spent
            caught, said = run_until_hung(path, build / "tests" / program, cases)
            spent += time.monotonic() - start
            if caught:
                return name, said, spent
    return "", "", spent


def write_table(path: str, rows: list[tuple]) -> None:
    lines = ["# Planted bugs and what caught them", "",
             f"`{' '.join(['tests/mutation/bookkeeping_bugs.py', '--build BUILD', '--table', path])}`: {sum(bool(r[2]) for r in rows)} of "
             f"{len(rows)} caught, the slowest after {max(r[4] for r in rows):.0f} s.", "",
             "| bug | file | caught by | what it said | s |", "|---|---|---|---|---|"]
    lines += [f"| {name} | {pathlib.Path(file).name} | {by or 'SURVIVED'} | {said.replace('|', '/')} | {spent:.1f} |" for name, file, by, said, spent in rows]
    pathlib.Path(path).write_text("\n".join(lines) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, required=True, help="a finished build with the tests")
    parser.add_argument("--quick", action="store_true", help="only the few that run with every test run")
    parser.add_argument("--only", default="", help="plant only bugs whose name contains this")
    parser.add_argument("--jobs", type=int, default=1, help="bugs at a time; times are of a machine that has a core for each")
    parser.add_argument("--table", help="write what caught each to this file")
    parser.add_argument("--keep", type=pathlib.Path, help="leave out what was caught before with the same sources and tests, and keep that in this file")
    args = parser.parse_args()
    if stale := misplaced():
        sys.exit("\n".join(stale))
    before = CaughtBefore(args.keep, inputs_of(args.build))

    def result_of(bug: tuple) -> tuple:
        _, name, file, old, new = bug
        known = before.of(bug)
        by, said, spent = known or try_bug(args.build, file, old, new)
        verdict = "before  " if known else "caught  " if by else "SURVIVED"
        print(f"{verdict} {name} ({pathlib.Path(file).name}) {spent:.1f} s, {by}: {said}", flush=True)
        if by and not known:
            before.keep(bug, [by, said, spent])
        return name, file, by, said, spent

    with concurrent.futures.ThreadPoolExecutor(args.jobs) as at_once:
        rows = list(at_once.map(result_of, [bug for bug in BUGS if args.only in bug[1] and (bug[0] or not args.quick)]))
    survivors = sum(not row[2] for row in rows)
    print(f"{survivors} of {len(rows)} planted bugs survived")
    if args.table:
        write_table(args.table, rows)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
