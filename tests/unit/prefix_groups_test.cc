// Method: random trees of block tables, sequences that come, go, grow and change tables, as plans in a row.
// What PrefixGroups gives is checked against the tables themselves (a node's members hold the same full
// blocks there, nodes cover a sequence from its first slot on), against what it finds when it sees the plan
// for the first time, and, where every shared block is worth a node, against the tree found by comparing all
// pairs.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "src/execute/prefix_groups.h"

namespace quire {
namespace {

constexpr int32_t kBlockTokens = 8;

CascadeRule rule(int32_t member_tokens = 0) {
  return {
      .block_tokens = kBlockTokens, .token_bytes = 1, .least_saved_bytes = 0, .member_tokens = member_tokens};
}

PlannedSequence decode(uint64_t id, const std::vector<int32_t>& blocks, int32_t in_last = 1) {
  PlannedSequence s{.sequence = SequenceId{id}, .tokens = {kSampledLastStep}};
  for (const int32_t b : blocks) s.block_table.push_back(BlockId{b});
  s.first_position = s.list_length_before =
      static_cast<int32_t>(blocks.size() - 1) * kBlockTokens + in_last - 1;
  return s;
}

struct Node {
  int32_t first_slot, end_slot;
  std::set<int32_t> sequences;
  auto operator<=>(const Node&) const = default;
};
void PrintTo(const Node& n, std::ostream* out) {
  *out << "[" << n.first_slot << ", " << n.end_slot << ") of";
  for (const int32_t s : n.sequences) *out << " " << s;
}

std::set<Node> nodes_of(const PrefixGroups& groups) {
  const SharedPrefixes p = groups.arrays();
  std::set<Node> nodes;
  for (int32_t n = 0; n < p.num_nodes; ++n)
    nodes.insert(
        {p.node_slots[2 * n],
         p.node_slots[2 * n + 1],
         {p.node_sequences + p.node_sequence_start[n], p.node_sequences + p.node_sequence_start[n + 1]}});
  return nodes;
}

// The nodes that a plan gets from somebody who sees it first.
std::set<Node> nodes_at_first_sight(const BatchPlan& plan, const CascadeRule& r) {
  PrefixGroups fresh(r);
  fresh.follow(plan);
  return nodes_of(fresh);
}

std::vector<int32_t> full_blocks(const PlannedSequence& s) {
  std::vector<int32_t> blocks;
  for (int32_t i = 0; i < s.list_length_before / kBlockTokens; ++i)
    blocks.push_back(value(s.block_table[static_cast<size_t>(i)]));
  return blocks;
}

// Every run of blocks that the same sequences share, and no longer one: for each pair its common prefix, cut
// where others end.
std::set<Node> tree_of(const BatchPlan& plan) {
  std::map<std::vector<int32_t>, std::set<int32_t>> by_prefix;
  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    const std::vector<int32_t> blocks = full_blocks(plan.sequences[i]);
    for (size_t n = 1; n <= blocks.size(); ++n)
      by_prefix[{blocks.begin(), blocks.begin() + static_cast<std::ptrdiff_t>(n)}].insert(
          static_cast<int32_t>(i));
  }
  std::set<Node> nodes;
  for (const auto& [prefix, sequences] : by_prefix) {
    if (sequences.size() < 2) continue;
    const auto same = [&](const std::vector<int32_t>& other) {
      const auto found = by_prefix.find(other);
      return found != by_prefix.end() && found->second == sequences;
    };
    const bool goes_on = std::any_of(by_prefix.begin(), by_prefix.end(), [&](const auto& e) {
      return e.first.size() == prefix.size() + 1 &&
             std::equal(prefix.begin(), prefix.end(), e.first.begin()) && e.second == sequences;
    });
    if (goes_on) continue;
    size_t first = prefix.size() - 1;
    while (first > 0 && same({prefix.begin(), prefix.begin() + static_cast<std::ptrdiff_t>(first)})) --first;
    nodes.insert({static_cast<int32_t>(first) * kBlockTokens,
                  static_cast<int32_t>(prefix.size()) * kBlockTokens, sequences});
  }
  return nodes;
}

void expect_sound(const PrefixGroups& groups, const BatchPlan& plan) {
  const SharedPrefixes p = groups.arrays();
  const auto sequences = static_cast<int32_t>(plan.sequences.size());
  std::vector<std::vector<std::pair<int32_t, int32_t>>> covered(plan.sequences.size());
  int64_t saved = 0;
  for (const Node& n : nodes_of(groups)) {
    ASSERT_GE(n.sequences.size(), 2u);
    ASSERT_LT(n.first_slot, n.end_slot);
    saved += static_cast<int64_t>(n.sequences.size() - 1) * (n.end_slot - n.first_slot);
    const PlannedSequence& first = plan.sequences[static_cast<size_t>(*n.sequences.begin())];
    for (const int32_t s : n.sequences) {
      const PlannedSequence& member = plan.sequences[static_cast<size_t>(s)];
      ASSERT_EQ(member.tokens.size(), 1u);
      ASSERT_EQ(member.policy.kind, RetentionKind::kKeepAll);
      ASSERT_LE(n.end_slot, member.list_length_before) << "a slot of this step is private";
      for (int32_t b = n.first_slot / kBlockTokens; b < n.end_slot / kBlockTokens; ++b)
        ASSERT_EQ(value(member.block_table[static_cast<size_t>(b)]),
                  value(first.block_table[static_cast<size_t>(b)]));
      covered[static_cast<size_t>(s)].emplace_back(n.first_slot, n.end_slot);
    }
  }
  EXPECT_EQ(groups.saved_tokens(), saved);
  EXPECT_LE(p.num_nodes, prefix_node_room(sequences));
  EXPECT_LE(p.num_members, prefix_member_room(sequences));
  for (int32_t s = 0; s < sequences; ++s) {
    auto& runs = covered[static_cast<size_t>(s)];
    std::sort(runs.begin(), runs.end());
    int32_t at = 0;
    for (const auto& [from, to] : runs) {
      ASSERT_EQ(from, at) << "sequence " << s << ": a gap, or slots twice";
      at = to;
    }
    ASSERT_EQ(p.private_start[s], at);
    const std::span<const int32_t> places(p.sequence_members + p.sequence_member_start[s],
                                          p.sequence_members + p.sequence_member_start[s + 1]);
    ASSERT_EQ(places.size(), runs.size());
    for (const int32_t m : places) ASSERT_EQ(p.node_sequences[m], s);
  }
}

TEST(PrefixGroups, FindsNestedRunsOfEqualBlocksBehindThePrivateOnes) {
  PrefixGroups groups(rule());
  BatchPlan plan;
  plan.sequences = {decode(5, {1, 2, 9}),       decode(6, {1, 2, 3, 4, 8}),     decode(7, {30, 31}),
                    decode(8, {1, 2, 3, 4, 7}), decode(9, {1, 2, 3, 5, 6, 11}), decode(10, {30, 32})};
  groups.follow(plan);
  const std::set<Node> wanted = {
      {0, 16, {0, 1, 3, 4}}, {16, 24, {1, 3, 4}}, {24, 32, {1, 3}}, {0, 8, {2, 5}}};
  EXPECT_EQ(nodes_of(groups), wanted);
  EXPECT_EQ(groups.counts().max_slots, 16);
  EXPECT_EQ(groups.saved_tokens(), 3 * 16 + 2 * 8 + 8 + 8);
  expect_sound(groups, plan);
}

TEST(PrefixGroups, LeavesOutRowsThatDoNotSeeTheWholeListAndBlocksOfThisStep) {
  PrefixGroups groups(rule());
  BatchPlan plan;
  plan.sequences = {decode(1, {1, 2, 3}), decode(2, {1, 2, 4}), decode(3, {1, 2, 5}), decode(4, {1, 2, 6}),
                    decode(5, {1, 2}, 8)};
  plan.sequences[1].policy = {.kind = RetentionKind::kWindow, .window = 100};
  plan.sequences[2].tokens = {3, 4};
  groups.follow(plan);
  EXPECT_EQ(nodes_of(groups), (std::set<Node>{{0, 8, {0, 3, 4}}, {8, 16, {0, 3}}}))
      << "block 2 of the last is written in this step";
}

TEST(PrefixGroups, AsksForEnoughToSave) {
  BatchPlan plan;
  plan.sequences = {decode(1, {1, 2, 3, 4}), decode(2, {1, 2, 3, 5}), decode(3, {1, 7})};
  const auto nodes = [&](const CascadeRule& r) { return nodes_at_first_sight(plan, r); };
  EXPECT_EQ(nodes(rule()), (std::set<Node>{{0, 8, {0, 1, 2}}, {8, 24, {0, 1}}}));
  // Two thirds of 8 tokens a member are below 6, half of 24 above: the first block goes to the children.
  EXPECT_EQ(nodes(rule(6)), (std::set<Node>{{0, 24, {0, 1}}}));
  EXPECT_TRUE(nodes(rule(13)).empty());
  CascadeRule most = rule();
  most.cache_speedup = 1;
  most.token_bytes = 10;
  most.least_saved_bytes = 320;
  EXPECT_EQ(nodes(most).size(), 2u) << "32 tokens of 10 bytes";
  most.least_saved_bytes = 321;
  EXPECT_TRUE(nodes(most).empty());
  most.least_saved_bytes = -1;
  EXPECT_TRUE(nodes(most).empty());
}

// Lists of `prefix` slots together and `tail` of their own each, in blocks of 16.
BatchPlan sharing(int32_t sequences, int32_t prefix, int32_t tail) {
  BatchPlan plan;
  int32_t next = prefix / 16;
  for (int32_t s = 0; s < sequences; ++s) {
    PlannedSequence one{.sequence = SequenceId{static_cast<uint64_t>(s) + 1}, .tokens = {kSampledLastStep}};
    for (int32_t b = 0; b < prefix / 16; ++b) one.block_table.push_back(BlockId{b});
    for (int32_t b = 0; b <= tail / 16; ++b) one.block_table.push_back(BlockId{next++});
    one.first_position = one.list_length_before = prefix + tail;
    plan.sequences.push_back(one);
  }
  return plan;
}

// K and V of Llama-3.1-8B: 4 KiB a token and layer.
bool pays_by_default(const BatchPlan& plan) {
  PrefixGroups groups({.block_tokens = 16, .token_bytes = 4096});
  groups.follow(plan);
  return !groups.empty();
}

// us of a layer's attention on an H100 with nodes and without (kernels/cuda/README.md, "When").
TEST(PrefixGroups, AreThereWhereACardIsFasterWithThem) {
  EXPECT_TRUE(pays_by_default(sharing(64, 4096, 64))) << "35, 102";
  EXPECT_TRUE(pays_by_default(sharing(16, 8192, 512))) << "41, 70";
  EXPECT_TRUE(pays_by_default(sharing(256, 32768, 256))) << "304, 4169";
  EXPECT_FALSE(pays_by_default(sharing(4, 2048, 128))) << "16.0, 12.0";
  EXPECT_FALSE(pays_by_default(sharing(256, 1024, 1024))) << "387, 372";
}

TEST(PrefixGroups, GoWhereWhatListsHaveOfTheirOwnKeepsMemoryBusyAnyway) {
  PrefixGroups groups({.block_tokens = 16, .token_bytes = 4096});
  const auto has_nodes_at = [&](int32_t tail) {
    BatchPlan plan = sharing(64, 1024, 16);
    for (PlannedSequence& s : plan.sequences) {
      s.num_unchanged_blocks = 1024 / 16 + 1;
      s.list_length_before = s.first_position = 1024 + tail;
    }
    groups.follow(plan);
    EXPECT_EQ(groups.arrays().num_nodes, groups.empty() ? 0 : 1);
    return !groups.empty();
  };
  EXPECT_TRUE(has_nodes_at(64));
  EXPECT_FALSE(has_nodes_at(1024)) << "nothing of the tables changed, the lists grew";
  EXPECT_TRUE(has_nodes_at(128));
}

// The traffic of a scheduler, seen from its plans.
class Traffic {
 public:
  explicit Traffic(uint64_t seed) : random_(seed) {}

  BatchPlan next() {
    for (int i = below(4); i > 0; --i) come();
    for (int i = below(3); i > 0 && !live_.empty(); --i)
      live_.erase(live_.begin() + below(static_cast<int>(live_.size())));
    for (Live& l : live_)
      if (below(12) == 0) merge_duplicate(l);
    BatchPlan plan;
    for (Live& l : live_) {
      if (below(15) == 0) continue;  // waits for once
      plan.sequences.push_back(planned(l));
    }
    if (below(6) == 0) std::shuffle(plan.sequences.begin(), plan.sequences.end(), random_);
    return plan;
  }

 private:
  struct Live {
    uint64_t id;
    std::vector<int32_t> blocks;
    int32_t length, unchanged = 0;
  };
  int below(int n) { return static_cast<int>(random_() % static_cast<uint64_t>(n)); }

  // A new sequence starts with a part of another's full blocks, or with blocks of its own.
  void come() {
    Live l{.id = next_id_++, .blocks = {}, .length = 0};
    if (!live_.empty() && below(4) > 0) {
      const Live& from = live_[static_cast<size_t>(below(static_cast<int>(live_.size())))];
      l.blocks.assign(from.blocks.begin(), from.blocks.begin() + below(from.length / kBlockTokens + 1));
    }
    for (int i = below(4); i > 0; --i) l.blocks.push_back(next_block_++);
    l.length = static_cast<int32_t>(l.blocks.size()) * kBlockTokens;
    live_.push_back(std::move(l));
  }
  // As publishing does: an entry changes over to the block that another sequence has there.
  void merge_duplicate(Live& l) {
    const Live& other = live_[static_cast<size_t>(below(static_cast<int>(live_.size())))];
    const int32_t most = std::min(l.length, other.length) / kBlockTokens;
    if (most == 0) return;
    const int32_t entry = below(most);
    l.blocks[static_cast<size_t>(entry)] = other.blocks[static_cast<size_t>(entry)];
    l.unchanged = std::min(l.unchanged, entry);
  }
  PlannedSequence planned(Live& l) {
    if (l.length % kBlockTokens == 0) l.blocks.push_back(next_block_++);
    PlannedSequence s = decode(l.id, l.blocks, l.length % kBlockTokens + 1);
    s.num_unchanged_blocks = l.unchanged;
    if (below(20) == 0) s.tokens = {1, 2};
    l.unchanged = static_cast<int32_t>(l.blocks.size());
    ++l.length;
    return s;
  }

  std::mt19937_64 random_;
  std::vector<Live> live_;
  uint64_t next_id_ = 1;
  int32_t next_block_ = 0;
};

TEST(PrefixGroups, AreRightOverRandomTrafficAndWhatAFirstLookGives) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(seed);
    Traffic traffic(seed);
    const CascadeRule r = rule(static_cast<int32_t>(seed % 3) * 5);
    PrefixGroups groups(r);
    for (int step = 0; step < 60; ++step) {
      const BatchPlan plan = traffic.next();
      groups.follow(plan);
      expect_sound(groups, plan);
      if (::testing::Test::HasFatalFailure()) return;
      ASSERT_EQ(nodes_of(groups), nodes_at_first_sight(plan, r)) << "step " << step;
    }
  }
}

TEST(PrefixGroups, AreTheWholeTreeWhereThereIsRoom) {
  int compared = 0;
  for (uint64_t seed = 100; seed < 140; ++seed) {
    Traffic traffic(seed);
    PrefixGroups groups(rule());
    for (int step = 0; step < 30; ++step) {
      BatchPlan plan = traffic.next();
      std::erase_if(plan.sequences, [](const PlannedSequence& s) { return s.tokens.size() > 1; });
      groups.follow(plan);
      const std::set<Node> tree = tree_of(plan);
      size_t members = 0;
      for (const Node& n : tree) members += n.sequences.size();
      const auto sequences = static_cast<int32_t>(plan.sequences.size());
      if (static_cast<int32_t>(tree.size()) > prefix_node_room(sequences) ||
          static_cast<int32_t>(members) > prefix_member_room(sequences))
        continue;
      ASSERT_EQ(nodes_of(groups), tree) << "seed " << seed << " step " << step;
      ++compared;
    }
  }
  EXPECT_GT(compared, 300);
}

}  // namespace
}  // namespace quire
