#include "src/execute/prefix_groups.h"

#include <algorithm>
#include <limits>

namespace quire {
namespace {

constexpr uint64_t kNobody = std::numeric_limits<uint64_t>::max();

// One row, which sees the whole list, and a list that keeps everything.
bool takes_part(const PlannedSequence& s) {
  return s.tokens.size() == 1 && !traits(s.policy).drops_tokens && s.list_length_before == s.first_position;
}

// First blocks that both hold and that were full before this step: nobody writes those any more.
int32_t common_blocks(const PlannedSequence& a, const PlannedSequence& b, int32_t block_tokens) {
  const auto full = static_cast<size_t>(std::min(a.list_length_before, b.list_length_before) / block_tokens);
  const auto end = static_cast<std::ptrdiff_t>(std::min({full, a.block_table.size(), b.block_table.size()}));
  return static_cast<int32_t>(
      std::mismatch(a.block_table.begin(), a.block_table.begin() + end, b.block_table.begin()).first -
      a.block_table.begin());
}

// By the whole table. What decides is the first block behind the common ones, which is there from a
// sequence's first decode on and its own, so that growing lists keep their order.
bool in_order(const PlannedSequence& a, const PlannedSequence& b) {
  return std::lexicographical_compare(a.block_table.begin(), a.block_table.end(), b.block_table.begin(),
                                      b.block_table.end(),
                                      [](BlockId x, BlockId y) { return value(x) < value(y); });
}

}  // namespace

void PrefixGroups::follow(const BatchPlan& plan) {
  if (rule_.least_saved_bytes < 0) return;
  if (!same_as_before(plan)) {
    drop_absent_and_changed(plan);
    place_new(plan);
    note_depths(plan);
    find_nodes(static_cast<int32_t>(plan.sequences.size()));
  }
  pays_ = counts_.num_nodes > 0 && pays(plan);
}

// Asked in every step: lists grow, and what they have of their own decides.
bool PrefixGroups::pays(const BatchPlan& plan) const {
  if (rule_.least_saved_bytes == 0) return true;
  int64_t tokens = 0;
  for (const PlannedSequence& s : plan.sequences)
    if (s.tokens.size() == 1) tokens += s.list_length_before;
  const int64_t from_memory = tokens - saved_tokens_;
  return (tokens / rule_.cache_speedup - from_memory) * rule_.token_bytes >= rule_.least_saved_bytes;
}

// The entry behind the shared ones decides a sequence's place, so it must stand too.
bool PrefixGroups::same_as_before(const BatchPlan& plan) const {
  if (plan.sequences.size() != ids_.size()) return false;
  for (size_t i = 0; i < ids_.size(); ++i) {
    const PlannedSequence& s = plan.sequences[i];
    if (ids_[i] != (takes_part(s) ? value(s.sequence) : kNobody)) return false;
    if (ids_[i] != kNobody && s.num_unchanged_blocks <= depth_[i]) return false;
  }
  return true;
}

void PrefixGroups::drop_absent_and_changed(const BatchPlan& plan) {
  by_id_.clear();
  for (size_t i = 0; i < plan.sequences.size(); ++i)
    if (takes_part(plan.sequences[i]))
      by_id_.emplace_back(value(plan.sequences[i].sequence), static_cast<int32_t>(i));
  std::sort(by_id_.begin(), by_id_.end());
  placed_.assign(plan.sequences.size(), false);
  size_t kept = 0;
  int32_t shared =
      std::numeric_limits<int32_t>::max();  // with the last that was kept, over those dropped since
  for (size_t i = 0; i < order_.size(); ++i) {
    const Entry e = order_[i];
    shared = std::min(shared, e.shared);
    const int32_t after = i + 1 < order_.size() ? order_[i + 1].shared : 0;
    const auto found = std::lower_bound(by_id_.begin(), by_id_.end(), std::pair<uint64_t, int32_t>{e.id, 0});
    if (found == by_id_.end() || found->first != e.id) continue;
    const PlannedSequence& s = plan.sequences[static_cast<size_t>(found->second)];
    if (s.num_unchanged_blocks <= std::max(e.shared, after)) continue;
    order_[kept] = {.id = e.id, .index = found->second, .shared = kept == 0 ? 0 : shared};
    placed_[static_cast<size_t>(found->second)] = true;
    shared = std::numeric_limits<int32_t>::max();
    ++kept;
  }
  order_.resize(kept);
}

void PrefixGroups::place_new(const BatchPlan& plan) {
  for (const auto& [id, index] : by_id_)
    if (!placed_[static_cast<size_t>(index)]) place(plan, index);
}

void PrefixGroups::place(const BatchPlan& plan, int32_t index) {
  const auto sequence = [&](int32_t i) -> const PlannedSequence& {
    return plan.sequences[static_cast<size_t>(i)];
  };
  const PlannedSequence& own = sequence(index);
  const auto next = std::upper_bound(
      order_.begin(), order_.end(), own,
      [&](const PlannedSequence& s, const Entry& e) { return in_order(s, sequence(e.index)); });
  const auto common_with = [&](const Entry& e) {
    return common_blocks(own, sequence(e.index), rule_.block_tokens);
  };
  const int32_t before = next == order_.begin() ? 0 : common_with(*std::prev(next));
  if (next != order_.end()) next->shared = common_with(*next);
  order_.insert(next, {.id = value(own.sequence), .index = index, .shared = before});
}

void PrefixGroups::note_depths(const BatchPlan& plan) {
  ids_.assign(plan.sequences.size(), kNobody);
  depth_.assign(plan.sequences.size(), 0);
  for (size_t i = 0; i < order_.size(); ++i) {
    const auto index = static_cast<size_t>(order_[i].index);
    ids_[index] = order_[i].id;
    depth_[index] = std::max(order_[i].shared, i + 1 < order_.size() ? order_[i + 1].shared : 0);
  }
}

void PrefixGroups::find_nodes(int32_t num_sequences) {
  clear_nodes(num_sequences);
  add_nodes(0, order_.size(), 0);
  if (counts_.num_nodes > 0) index_members();
}

// The tree from its root down. Entries [begin, end) have their first `covered` blocks in nodes already. A
// node that is not worth it leaves its blocks to its children; costs one pass over the entries for each level
// of the tree.
void PrefixGroups::add_nodes(size_t begin, size_t end, int32_t covered) {
  if (end - begin < 2) return;
  int32_t common = std::numeric_limits<int32_t>::max();
  for (size_t i = begin + 1; i < end; ++i) common = std::min(common, order_[i].shared);
  if (common > covered && is_worth(static_cast<int64_t>(end - begin), common - covered)) {
    add_node(begin, end, covered, common);
    covered = common;
  }
  size_t child = begin;
  for (size_t i = begin + 1; i <= end; ++i)
    if (i == end || order_[i].shared == common) {
      add_nodes(child, i, covered);
      child = i;
    }
}

bool PrefixGroups::is_worth(int64_t members, int32_t blocks) const {
  const auto sequences = static_cast<int32_t>(private_start_.size());
  const bool has_room = counts_.num_nodes < prefix_node_room(sequences) &&
                        counts_.num_members + members <= prefix_member_room(sequences);
  return has_room && (members - 1) * blocks * rule_.block_tokens >= members * rule_.member_tokens;
}

void PrefixGroups::add_node(size_t begin, size_t end, int32_t from, int32_t to) {
  const auto members = static_cast<int32_t>(end - begin);
  const int32_t first_slot = from * rule_.block_tokens, end_slot = to * rule_.block_tokens;
  node_slots_.insert(node_slots_.end(), {first_slot, end_slot});
  for (size_t i = begin; i < end; ++i) {
    node_sequences_.push_back(order_[i].index);
    private_start_[static_cast<size_t>(order_[i].index)] = end_slot;
  }
  node_sequence_start_.push_back(static_cast<int32_t>(node_sequences_.size()));
  ++counts_.num_nodes;
  counts_.num_members += members;
  counts_.max_slots = std::max(counts_.max_slots, end_slot - first_slot);
  saved_tokens_ += int64_t{members - 1} * (end_slot - first_slot);
}

// Places in node_sequences by sequence, by counting.
void PrefixGroups::index_members() {
  for (const int32_t s : node_sequences_) ++sequence_member_start_[static_cast<size_t>(s) + 1];
  for (size_t s = 1; s < sequence_member_start_.size(); ++s)
    sequence_member_start_[s] += sequence_member_start_[s - 1];
  sequence_members_.resize(node_sequences_.size());
  std::vector<int32_t>& next = next_place_;
  next.assign(sequence_member_start_.begin(), sequence_member_start_.end() - 1);
  for (size_t m = 0; m < node_sequences_.size(); ++m)
    sequence_members_[static_cast<size_t>(next[static_cast<size_t>(node_sequences_[m])]++)] =
        static_cast<int32_t>(m);
}

void PrefixGroups::clear_nodes(int32_t num_sequences) {
  counts_ = {};
  saved_tokens_ = 0;
  for (std::vector<int32_t>* list : {&node_slots_, &node_sequences_, &sequence_members_}) list->clear();
  node_sequence_start_.assign(1, 0);
  sequence_member_start_.assign(static_cast<size_t>(num_sequences) + 1, 0);
  private_start_.assign(static_cast<size_t>(num_sequences), 0);
}

SharedPrefixes PrefixGroups::arrays() const {
  return {.num_nodes = empty() ? 0 : counts_.num_nodes,
          .num_members = empty() ? 0 : counts_.num_members,
          .num_splits = 0,
          .node_slots = node_slots_.data(),
          .node_sequence_start = node_sequence_start_.data(),
          .node_sequences = node_sequences_.data(),
          .sequence_member_start = sequence_member_start_.data(),
          .sequence_members = sequence_members_.data(),
          .private_start = private_start_.data()};
}

}  // namespace quire
