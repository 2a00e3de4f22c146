// How much room there must be: what each sequence will take still, what is kept free for those that run and those that are
// to follow them, and who is kept out till when because it is too little.
#include <algorithm>

#include "src/schedule/scheduler.h"

namespace quire {
namespace {

// And the next, which is to be sampled.
int32_t known_tokens(const Sequence& s) {
  return std::min(s.goal() + 1, s.group->max_total_tokens);
}

// Of which a share is kept free: under a policy all of its list is, whatever the reserve.
int64_t tokens_to_generate(const Sequence& s) {
  const SequenceGroup& group = *s.group;
  if (group.traits.drops_tokens) return 0;
  return int64_t{group.forked ? 1 : group.num_slots()} * (group.max_total_tokens - known_tokens(s));
}

}  // namespace

// Blocks a sequence will take: for the rest of its known tokens and the next, and reserve_ratio_ of what may
// follow.
int64_t Scheduler::blocks_to_come(const Sequence& s, const BlockTable& table) const {
  if (s.group->traits.drops_tokens) return policy_blocks_to_come(s, table, s.group->max_total_tokens);
  return blocks_to_come(s, table, reserve_ratio_);
}

int64_t Scheduler::blocks_to_come(const Sequence& s, const BlockTable& table, double reserve_ratio) const {
  const SequenceGroup& group = *s.group;
  const int64_t samples = group.forked ? 1 : group.num_slots();
  const int32_t known = known_tokens(s);
  const double kept_free = reserve_ratio * static_cast<double>(group.max_total_tokens - known);
  const auto whole = static_cast<int32_t>(kept_free);
  const int32_t later = whole + (kept_free > static_cast<double>(whole) ? 1 : 0);
  const int64_t prompt = std::max(0, size_.blocks_for(known) - table.num_blocks() - s.tail.num_blocks());
  return prompt + (samples - 1) + samples * size_.blocks_for(later);
}

// Tokens that the reserve keeps a share of free, for those that run and those that come in, and for those of their requests
// that are to follow.
int64_t Scheduler::tokens_reserved_for(std::span<Sequence* const> coming) const {
  const auto tokens_to_follow = [&](const SequenceGroup& group) {
    int64_t tokens = 0;
    for (const auto& s : group.sequences)
      if (s->state == SequenceState::kPreempted && std::ranges::count(coming, s.get()) == 0)
        tokens += tokens_to_generate(*s);
    return tokens;
  };
  const SequenceGroup& group = *coming.front()->group;
  int64_t tokens = tokens_to_follow(group);
  for (const Sequence* s : coming) tokens += tokens_to_generate(*s);
  const SequenceGroup* previous = &group;
  for (const Sequence* r : running_) {
    tokens += tokens_to_generate(*r);
    if (r->group != previous && r->group != &group) tokens += tokens_to_follow(*r->group);
    previous = r->group;
  }
  return tokens;
}

// Nobody could use what is kept free: those who run beside it have stopped, and it gives way when one of them goes on.
bool Scheduler::takes_all_there_is(const SequenceGroup& group) const {
  return group.traits.recompute_safe && !others_run(group);
}

// What must be there for one that comes in: where it may take all that there is, its known tokens and the next.
int64_t Scheduler::blocks_to_start(const Sequence& s, const BlockTable& table) const {
  if (!takes_all_there_is(*s.group)) return blocks_to_come(s, table);
  if (!s.group->traits.drops_tokens) return blocks_to_come(s, table, 0);
  return policy_blocks_to_come(s, table, std::min(s.goal() + 1, s.group->max_total_tokens));
}

// What those of a request that are out, but for those that come in now, will take when they follow, beside the prompt that
// they share: no more than they start with where the request may take all that there is.
int64_t Scheduler::blocks_to_follow(const SequenceGroup& group, std::span<Sequence* const> coming) const {
  int64_t blocks = 0;
  for (const auto& s : group.sequences) {
    if (s->state != SequenceState::kPreempted || std::ranges::count(coming, s.get()) > 0) continue;
    const bool shares = s->table.empty() && !group.traits.drops_tokens;
    const int64_t shared = shares ? s->num_prompt_tokens / block_tokens_ : 0;
    const int64_t taken = coming.empty() ? blocks_to_come(*s, s->table) : blocks_to_start(*s, s->table);
    blocks += std::max<int64_t>(0, taken - shared);
  }
  return blocks;
}

// For sequences of one request that take so many, beside what those who run and those who are to follow them will take.
int64_t Scheduler::blocks_missing(std::span<Sequence* const> coming, int64_t blocks) const {
  const SequenceGroup& group = *coming.front()->group;
  // Beams run together or not at all; samples make room for each other where nobody else could use it.
  int64_t reserved = group.is_beam || others_run(group) ? blocks_to_follow(group, coming) : 0;
  bool alone = true;  // admission made sure that a group fits alone
  const bool takes_all = takes_all_there_is(group);
  const SequenceGroup* previous = &group;
  for (const Sequence* r : running_) {
    if (r->group == &group)
      reserved += blocks_to_start(*r, r->table);
    else if (!takes_all)
      reserved += blocks_to_come(*r, r->table);
    alone = alone && r->group == &group;
    if (r->group != previous && r->group != &group && !r->group->paused)
      reserved += blocks_to_follow(*r->group, {});
    previous = r->group;
  }
  return alone ? 0 : blocks + reserved - cache_.num_available();
}

// How many blocks are missing still; 0 or less: there is room.
int64_t Scheduler::make_room_for(std::span<Sequence* const> coming, int64_t blocks, int64_t now_us) {
  int64_t missing = blocks_missing(coming, blocks);
  if (missing > 0) missing = have_heads_make_room(coming, blocks, missing, now_us);
  if (missing > 0) return missing;
  SequenceGroup& group = *coming.front()->group;
  const auto is_another = [&group](const Sequence* r) { return r->group != &group; };
  group.took_all = takes_all_there_is(group) && std::ranges::any_of(running_, is_another);
  return missing;
}

// Who comes in now stands before all that wait: the heads that they kept are room for it, if they are enough.
int64_t Scheduler::have_heads_make_room(std::span<Sequence* const> coming, int64_t blocks, int64_t missing,
                                        int64_t now_us) {
  std::vector<Sequence*> heads;
  for (Sequence* p : preempted_)
    if (head_is_room_for(*p, *coming.front())) heads.push_back(p);
  if (const int64_t freed = held_by(heads).freed; freed < missing) return missing - freed;
  shorten_heads(*coming.front(), missing, now_us);
  return blocks_missing(coming, blocks);
}

// It is not asked again before room is given back, or the reserve has fallen so far that so much less is kept free; nor more
// often than every few steps, since to ask costs a lookup of its prompt.
void Scheduler::keep_out(std::span<Sequence* const> coming, int64_t missing) {
  blocked_ = coming.front()->id;
  blocked_epoch_ = room_epoch_;
  const ReserveRule& rule = limits_.reserve;
  const auto tokens = static_cast<double>(std::max<int64_t>(1, tokens_reserved_for(coming)));
  const double fall =
      std::max(static_cast<double>(missing * block_tokens_) / tokens, kStepsKeptOut * rule.decay);
  blocked_above_ = reserve_ratio_ > rule.least ? std::max(rule.least, reserve_ratio_ - fall) : -1;
}

// Since it was asked the reserve may have fallen for a few steps, and what each sequence is kept free be rounded otherwise.
// What is cached is left out: with it, it needs less.
const Sequence* Scheduler::find_kept_out() const {
  Sequence* next = first_outside();
  if (next == nullptr || !is_blocked(*next) || !next->swapped.empty()) return nullptr;
  if (slots_used(*next->group) + next->group->num_slots() > limits_.max_sequences) return nullptr;
  const std::span<Sequence* const> coming{&next, 1};
  const double fallen = kStepsKeptOut * limits_.reserve.decay *
                        static_cast<double>(tokens_reserved_for(coming)) / block_tokens_;
  int64_t rounded = next->group->num_slots();
  for (const Sequence* r : running_) rounded += r->group->forked ? 1 : r->group->num_slots();
  const int64_t missing = blocks_missing(coming, blocks_to_start(*next, next->table));
  return missing + static_cast<int64_t>(fallen) + 1 + rounded <= 0 ? next : nullptr;
}

}  // namespace quire
