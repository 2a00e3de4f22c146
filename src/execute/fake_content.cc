// A FakeExecutor's slots: what plans copy and write there, and whether every list holds its sequence's tokens.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "src/execute/fake_executor.h"

namespace quire {

using fake::chain_after, fake::kUnknownChain, fake::mix;

void FakeExecutor::copy(const BlockCopy& c) {
  if (c.source == c.target)
    violation([&] { return fmt::format("block {} is copied to itself", value(c.source)); });
  for (int32_t i = 0; i < model_.block_tokens; ++i) slot(c.target, i) = slot(c.source, i);
  ++version_[value(c.target)];
}

void FakeExecutor::make_blocks_below(int64_t host, int64_t disk) {
  if (!model_.check_content) return;
  host_slots_.resize(static_cast<size_t>(host) * model_.block_tokens);
  disk_slots_.resize(static_cast<size_t>(disk) * model_.block_tokens);
}

void FakeExecutor::copy(const TierCopy& c, TransferDirection direction) {
  if (!model_.check_content) return;
  const auto at = [&](std::vector<Slot>& slots, int32_t block) {
    return &slots[static_cast<size_t>(block) * model_.block_tokens];
  };
  Slot* device = c.device == kNoBlock ? nullptr : &slot(c.device, 0);
  Slot* host = c.host == kNotOnHost ? nullptr : at(host_slots_, value(c.host));
  Slot* disk = c.disk == kNotOnDisk ? nullptr : at(disk_slots_, value(c.disk));
  const bool up = direction == TransferDirection::kToDevice;
  Slot* target = up ? device : direction == TransferDirection::kToHost ? host : disk;
  const Slot* source =
      target == device ? (host != nullptr ? host : disk) : (device != nullptr ? device : host);
  if (target == nullptr || source == nullptr)
    return violation([] { return "a copy between tiers names one place"; });
  std::copy_n(source, model_.block_tokens, target);
  if (up) ++version_[value(c.device)];
}

// Of the table's blocks those that write() reads or writes; verify() looks at the others when they are new.
bool FakeExecutor::check_shape(const PlannedSequence& s, const Known& known) {
  const int32_t end = s.list_length_after();
  const bool fits = static_cast<int64_t>(s.block_table.size()) >= size_.blocks_for(end);
  if (!fits)
    violation([&] {
      return fmt::format("sequence {}: {} blocks cannot hold {} tokens", value(s.sequence),
                         s.block_table.size(), end);
    });
  const bool misfits =
      keeps_all(s) ? s.list_length_before != s.first_position : s.list_length_before > s.first_position;
  if (misfits)
    violation([&] {
      return fmt::format("sequence {}: list length {} before position {}", value(s.sequence),
                         s.list_length_before, s.first_position);
    });
  const bool reads_all = overwrites_slots(s) || static_cast<int32_t>(known.tokens.size()) < s.first_position;
  const int32_t first = reads_all ? 0 : size_.block_of(std::max(0, s.list_length_before - 1));
  for (auto b = static_cast<size_t>(first); b < s.block_table.size(); ++b)
    if (!is_block(s, s.block_table[b])) return false;
  return fits && !s.tokens.empty();
}

inline bool FakeExecutor::is_block(const PlannedSequence& s, BlockId block) {
  if (is_in_range(block)) return true;
  violation([&] {
    return fmt::format("sequence {}: block {} of {}", value(s.sequence), value(block), model_.num_blocks);
  });
  return false;
}

// A prefix hit: the slots tell what the sequence starts with; its join or its own tokens must agree later.
void FakeExecutor::adopt(const PlannedSequence& s, Known& known) {
  known.adopted = true;
  const int32_t dropped = s.first_position - s.list_length_before, sinks = sink_slots_of(s);
  for (auto p = static_cast<int32_t>(known.tokens.size()); p < s.first_position; ++p) {
    const bool is_here = dropped == 0 || p < sinks || p >= sinks + dropped;
    const Slot found = is_here ? slot_at(s.block_table, p < sinks ? p : p - dropped) : Slot{};
    known.tokens.push_back(found.token);
    known.chain.push_back(found.chain);
  }
}

int32_t FakeExecutor::sink_slots_of(const PlannedSequence& s) const {
  return size_.first_slot(size_.blocks_for(s.policy.sinks));
}

inline bool FakeExecutor::overwrites_slots(const PlannedSequence& s) const {
  return overwrites_[static_cast<size_t>(s.policy.kind)];
}

int32_t FakeExecutor::position_in(const PlannedSequence& s, const Known& known, int32_t list_slot) const {
  if (keeps_all(s)) return list_slot;
  if (overwrites_slots(s)) return known.list[list_slot];
  return list_slot < sink_slots_of(s) ? list_slot : list_slot + s.first_position - s.list_length_before;
}

// What is kept goes by a hash: what matters here is that it is moved from blocks that still hold it.
void FakeExecutor::cut(const PlannedSequence& s, Known& known) {
  if (known.list.empty()) {  // a sample forked at the prompt's end
    known.list.resize(s.num_prompt_tokens);
    std::iota(known.list.begin(), known.list.end(), 0);
  }
  std::vector<int32_t> kept(known.list.size());
  std::iota(kept.begin(), kept.end(), 0);
  const auto hash = [&](int32_t from) { return mix(known.chain[known.list[from]], 7); };
  std::sort(kept.begin(), kept.end(), [&](int32_t a, int32_t b) { return hash(a) < hash(b); });
  if (s.list_length_before > static_cast<int32_t>(kept.size()) ||
      kept.size() > s.cut_source.size() * model_.block_tokens)
    return violation([&] {
      return fmt::format("sequence {}: a cut from {} slots in {} blocks to {}", value(s.sequence),
                         kept.size(), s.cut_source.size(), s.list_length_before);
    });
  kept.resize(s.list_length_before);
  std::sort(kept.begin(), kept.end());
  std::vector<int32_t> list;
  for (const int32_t from : kept) {
    Slot& target = slot_at(s.block_table, static_cast<int32_t>(list.size()));
    target = slot_at(s.cut_source, from);
    list.push_back(known.list[from]);
    ++version_[value(s.block_table[size_.block_of(static_cast<int32_t>(list.size()) - 1)])];
  }
  known.list = std::move(list);
}

// Where token `index` of the step goes. A list keeps its tokens in order until it is full.
int32_t FakeExecutor::take_slot(const PlannedSequence& s, Known& known, int32_t index) {
  const int32_t position = s.first_position + index, next = s.list_length_before + index;
  while (static_cast<int32_t>(known.list.size()) < s.list_length_before &&
         known.list.size() < known.tokens.size())
    known.list.push_back(static_cast<int32_t>(known.list.size()));
  if (!s.overwrites) {
    known.list.resize(next + 1);
    known.list[next] = position;
    return next;
  }
  const auto victim = static_cast<int32_t>(mix(known.chain[position], 11) % known.list.size());
  known.list[victim] = position;
  return victim;
}

inline TokenId FakeExecutor::resolve(const BatchPlan& plan, const PlannedSequence& s, Known& known,
                                     int32_t index) {
  const int32_t position = s.first_position + index;
  const auto num_known = static_cast<int32_t>(known.tokens.size());
  const TokenId token = s.tokens[index];
  if (token == kSampledLastStep) {
    const bool right = s.tokens.size() == 1 && known.sampled_in + 1 == plan.step && num_known == position + 1;
    if (!right)
      violation([&] {
        return fmt::format("sequence {}: no token was sampled one step before for position {}",
                           value(s.sequence), position);
      });
    return num_known > position ? known.tokens[position] : 0;
  }
  if (position == num_known) known.push(token);
  if (known.tokens[position] != token)
    violation([&] {
      return fmt::format("sequence {}: token {} at position {} was {} before", value(s.sequence), token,
                         position, known.tokens[position]);
    });
  return token;
}

// The slots before `end` were found right, and nobody has written to their block since.
inline bool FakeExecutor::has_seen(const PlannedSequence& s, const Known& known, int32_t end) const {
  const auto block = static_cast<size_t>(size_.block_of(end));
  const int32_t slots = size_.offset_of(end);
  if (slots == 0)
    return known.seen.size() == block && (block == 0 || known.num_seen_in_last == size_.tokens());
  if (known.seen.size() != block + 1 || known.num_seen_in_last != slots) return false;
  return is_as_seen(known, block, s.block_table[block]);
}

// It gave way before it was sampled for, of which no plan tells, and has more in its list again than a window had left.
bool FakeExecutor::begins_anew(const PlannedSequence& s, const Known& known) const {
  if (known.joined || keeps_all(s) || overwrites_slots(s)) return false;
  const auto num_dropped = std::ranges::count(known.tokens, -1);
  return num_dropped > s.first_position - s.list_length_before;
}

// A slot that is written behind those seen is seen with them: its block is read again only if another writes it.
void FakeExecutor::write(const BatchPlan& plan, const PlannedSequence& s, Known& known) {
  if (begins_anew(s, known)) known.forget_tokens();
  if (static_cast<int32_t>(known.tokens.size()) < s.first_position) adopt(s, known);
  const bool keeps = keeps_all(s), overwrites = overwrites_slots(s);
  bool seen = !overwrites && has_seen(s, known, s.list_length_before);
  uint64_t before = keeps && s.first_position > 0 ? slot_at(s.block_table, s.first_position - 1).chain : 0;
  for (int32_t i = 0; i < static_cast<int32_t>(s.tokens.size()); ++i) {
    const int32_t position = s.first_position + i;
    const TokenId token = resolve(plan, s, known, i);
    const int32_t list_slot = overwrites ? take_slot(s, known, i) : s.list_length_before + i;
    const BlockId block = s.block_table[size_.block_of(list_slot)];
    const int32_t offset = size_.offset_of(list_slot);
    Slot& target = slot(block, offset);
    if (target.written_in == plan.step)
      violation([&] {
        return fmt::format("step {}: two tokens share slot {} of block {}", plan.step, offset, value(block));
      });
    if (!keeps && position > 0) before = known.chain[position - 1];
    const bool unknown = position > 0 && before == kUnknownChain;
    const bool as_known = position < static_cast<int32_t>(known.tokens.size()) &&
                          token == known.tokens[position] &&
                          (position == 0 || before == known.chain[position - 1]);
    const uint64_t chain = as_known  ? known.chain[position]
                           : unknown ? kUnknownChain
                                     : chain_after(before, token);
    target = {token, position, chain, plan.step};
    before = chain;
    if (i == 0 || offset == 0) ++version_[value(block)];
    seen = seen && as_known;
    if (!seen) continue;
    known.see(offset == 0 ? known.seen.size() : known.seen.size() - 1, block, version_[value(block)]);
    known.num_seen_in_last = offset + 1;
  }
}

// What check_shape() and write() do with one token behind those seen, as most of a step's are: a decode of a list that
// holds all its positions, with a token that is known. False, and nothing done, where it is anything else.
bool FakeExecutor::write_decode(const BatchPlan& plan, const PlannedSequence& s, Known& known) {
  const int32_t position = s.first_position;
  const auto at = static_cast<size_t>(size_.block_of(position));
  const bool is_decode = s.tokens.size() == 1 && keeps_all(s) && position > 0 &&
                         s.list_length_before == position && s.block_table.size() == at + 1 &&
                         static_cast<int32_t>(known.tokens.size()) == position + 1;
  if (!is_decode) return false;
  const int32_t offset = size_.offset_of(position);
  const BlockId block = s.block_table[at], last = offset > 0 ? block : s.block_table[at - 1];
  if (!is_in_range(block) || !is_in_range(last)) return false;
  const TokenId token = known.tokens[static_cast<size_t>(position)];
  const bool is_known =
      s.tokens[0] == kSampledLastStep ? known.sampled_in + 1 == plan.step : s.tokens[0] == token;
  Slot& target = slot(block, offset);
  const uint64_t before = slot(last, size_.offset_of(position - 1)).chain;
  if (!is_known || before != known.chain[static_cast<size_t>(position) - 1] ||
      target.written_in == plan.step || !has_seen(s, known, position))
    return false;
  target = {token, position, known.chain[static_cast<size_t>(position)], plan.step};
  known.see(at, block, ++version_[value(block)]);
  known.num_seen_in_last = offset + 1;
  return true;
}

// Whether a block's slots hold what they should, where their positions follow each other.
bool FakeExecutor::holds(BlockId block, const Known& known, int32_t first, int32_t slots) {
  const Slot* found = &slot(block, 0);
  const TokenId* token = known.tokens.data() + first;
  const uint64_t* chain = known.chain.data() + first;
  for (int32_t i = 0; i < slots; ++i) {
    if (found[i].token != token[i] || found[i].position != first + i) return false;
    if (found[i].chain != chain[i] && found[i].chain != kUnknownChain && chain[i] != kUnknownChain)
      return false;
  }
  return true;
}

bool FakeExecutor::verify_block(const PlannedSequence& s, const Known& known, int32_t index, int32_t slots) {
  const int32_t first_slot = size_.first_slot(index);
  if (keeps_all(s) && holds(s.block_table[index], known, first_slot, slots)) return true;
  // Sinks are whole blocks: but for lists whose slots are overwritten, a block's positions follow each other.
  const int32_t* listed = overwrites_slots(s) ? &known.list[first_slot] : nullptr;
  const int32_t first = position_in(s, known, first_slot);
  const Slot* block = &slot(s.block_table[index], 0);
  for (int32_t i = 0; i < slots; ++i) {
    const int32_t position = listed != nullptr ? listed[i] : first + i;
    const Slot& found = block[i];
    const bool same_chain = found.chain == known.chain[position] || found.chain == kUnknownChain ||
                            known.chain[position] == kUnknownChain;
    if (found.token == known.tokens[position] && found.position == position && same_chain) continue;
    violation([&] {
      return fmt::format(
          "sequence {}: position {} lies in slot {} of block {}, which holds token {} of position {}, not "
          "token {}{}",
          value(s.sequence), position, i, value(s.block_table[index]), found.token, found.position,
          known.tokens[position],
          found.token == known.tokens[position] && found.position == position ? " after this prefix" : "");
    });
    return false;
  }
  return true;
}

// Of the first `count` blocks: in most steps of most sequences they are.
bool FakeExecutor::are_as_seen(const PlannedSequence& s, const Known& known, size_t count) const {
  const BlockId* table = s.block_table.data();
  if (count == 0 || std::memcmp(table, known.seen.data(), count * sizeof(BlockId)) != 0) return count == 0;
  const uint32_t *version = known.seen_version.data(), *now = version_.data();
  for (size_t b = 0; b < count; ++b)
    if (version[b] != now[value(table[b])]) return false;
  return true;
}

void FakeExecutor::verify(const PlannedSequence& s, Known& known) {
  const int32_t end = s.list_length_after();
  if (static_cast<int32_t>(known.tokens.size()) < s.first_position + static_cast<int32_t>(s.tokens.size()))
    return;  // check_shape has spoken
  const int32_t blocks = size_.blocks_for(end);
  const auto num_seen = static_cast<int32_t>(known.seen.size());
  if (num_seen == blocks && known.num_seen_in_last == end - size_.first_slot(blocks - 1) &&
      are_as_seen(s, known, static_cast<size_t>(blocks)))
    return;
  // Both whole: before the last block of the list, and of what was seen.
  const int32_t whole = std::max(0, std::min(blocks, num_seen) - 1);
  const bool as_seen = are_as_seen(s, known, static_cast<size_t>(whole));
  for (int32_t b = 0; !as_seen && b < whole; ++b)
    if (!is_as_seen(known, static_cast<size_t>(b), s.block_table[b]))
      verify_again(s, known, b, size_.tokens());
  const int32_t seen_slots =
      whole < num_seen ? known.num_seen_slots(static_cast<size_t>(whole), size_.tokens()) : 0;
  known.resize_seen(static_cast<size_t>(blocks));
  for (int32_t b = whole; b < blocks; ++b) {
    const int32_t slots = b + 1 < blocks ? size_.tokens() : end - size_.first_slot(b);
    const bool all_seen = b == whole && seen_slots == slots;
    const BlockId block = s.block_table[b];
    if (!all_seen || !is_as_seen(known, static_cast<size_t>(b), block)) verify_again(s, known, b, slots);
    known.num_seen_in_last = slots;
  }
}

void FakeExecutor::verify_again(const PlannedSequence& s, Known& known, int32_t index, int32_t slots) {
  const auto at = static_cast<size_t>(index);
  const BlockId block = s.block_table[at], before = known.seen[at];
  if (index < s.num_unchanged_blocks && before != kNoBlock && before != block)
    violation([&] {
      return fmt::format("sequence {}: block {} of its table is {}, was {} and is called unchanged",
                         value(s.sequence), index, value(block), value(before));
    });
  if (is_block(s, block) && verify_block(s, known, index, slots))
    known.see(at, block, version_[value(block)]);
  else
    known.see(at, kNoBlock, 0);
}

}  // namespace quire
