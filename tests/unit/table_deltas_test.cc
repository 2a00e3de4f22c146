// Block tables kept on a device by what changes. Method: a device played by two arrays that take turns, as bring_step moves
// them (kernels/kernels.h), under plans drawn at random: lists grow, change, shrink, come, go, sit out, and change places.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "src/base/random.h"
#include "src/execute/table_deltas.h"

namespace quire {
namespace {

constexpr int32_t kBlockTokens = 8, kBlocks = 50, kStride = 12, kRows = 16;

PlannedSequence planned(uint64_t id, int32_t length, std::vector<int32_t> blocks, int32_t unchanged) {
  PlannedSequence s{.sequence = SequenceId{id},
                    .first_position = length - 1,
                    .tokens = {1},
                    .list_length_before = length - 1};
  for (const int32_t b : blocks) s.block_table.push_back(BlockId{b});
  s.num_unchanged_blocks = unchanged;
  return s;
}
BatchPlan plan_of(std::vector<PlannedSequence> sequences) {
  BatchPlan plan;
  plan.sequences = std::move(sequences);
  return plan;
}

class Device {
 public:
  void bring(const TableDeltas& tables) {
    turn_ = 1 - turn_;
    const std::vector<int32_t>& before = tables_[1 - turn_];
    std::vector<int32_t>& after = tables_[turn_];
    for (size_t r = 0; r < tables.rows().size(); ++r) {
      const TableRow& row = tables.rows()[r];
      int32_t* to = after.data() + r * kStride;
      std::copy_n(before.data() + row.from * kStride, row.kept, to);
      if (row.added == 1)
        to[row.kept] = row.entries;
      else
        std::copy_n(tables.entries().data() + row.entries, row.added, to + row.kept);
    }
  }
  // Every list of the plan, entry for entry.
  void expect(const BatchPlan& plan) const {
    for (size_t r = 0; r < plan.sequences.size(); ++r) {
      const PlannedSequence& s = plan.sequences[r];
      for (int32_t b = 0; b * kBlockTokens < s.list_length_after(); ++b)
        ASSERT_EQ(tables_[turn_][r * kStride + static_cast<size_t>(b)],
                  value(s.block_table[static_cast<size_t>(b)]))
            << "sequence " << value(s.sequence) << " in row " << r << " block " << b;
    }
  }

 private:
  std::vector<int32_t> tables_[2] = {std::vector<int32_t>(kRows * kStride, -1),
                                     std::vector<int32_t>(kRows* kStride, -1)};
  int turn_ = 0;
};

TEST(TableDeltas, BringsWholeListsOnceThenWhatIsAdded) {
  TableDeltas tables(kBlockTokens, kBlocks);
  Device device;
  BatchPlan plan = plan_of({planned(7, 20, {4, 9, 2}, 0), planned(8, 8, {5}, 0)});
  ASSERT_TRUE(tables.build(plan));
  EXPECT_EQ(tables.entries().size(), 3u);  // the list of one block carries it in its row
  device.bring(tables);
  device.expect(plan);
  plan = plan_of({planned(7, 21, {4, 9, 2}, 3), planned(8, 9, {5, 11}, 1)});
  ASSERT_TRUE(tables.build(plan));
  EXPECT_TRUE(tables.entries().empty());
  EXPECT_EQ(tables.rows()[0].added, 0);
  EXPECT_EQ(tables.rows()[1].added, 1);
  device.bring(tables);
  device.expect(plan);
}

TEST(TableDeltas, RowsMoveWhereOneHasGone) {
  TableDeltas tables(kBlockTokens, kBlocks);
  Device device;
  ASSERT_TRUE(tables.build(
      plan_of({planned(1, 20, {1, 2, 3}, 0), planned(2, 20, {4, 5, 6}, 0), planned(3, 20, {7, 8, 9}, 0)})));
  device.bring(tables);
  const BatchPlan plan = plan_of({planned(3, 21, {7, 8, 9}, 3), planned(1, 21, {1, 2, 3}, 3)});
  ASSERT_TRUE(tables.build(plan));
  EXPECT_TRUE(tables.entries().empty());
  EXPECT_EQ(tables.rows()[0].from, 2);
  EXPECT_EQ(tables.rows()[1].from, 0);
  device.bring(tables);
  device.expect(plan);
}

TEST(TableDeltas, WhatSatOutAStepComesWholeWhateverIsCalledUnchanged) {
  TableDeltas tables(kBlockTokens, kBlocks);
  ASSERT_TRUE(tables.build(plan_of({planned(1, 20, {1, 2, 3}, 0), planned(2, 9, {4, 5}, 0)})));
  ASSERT_TRUE(tables.build(plan_of({planned(2, 10, {4, 5}, 2)})));
  ASSERT_TRUE(tables.build(plan_of({planned(1, 21, {1, 2, 3}, 3), planned(2, 11, {4, 5}, 2)})));
  EXPECT_EQ(tables.rows()[0].kept, 0);
  EXPECT_EQ(tables.rows()[0].added, 3);
  EXPECT_EQ(tables.rows()[1].kept, 2);
}

TEST(TableDeltas, AfterForgettingAndAfterAFaultAllComesWhole) {
  TableDeltas tables(kBlockTokens, kBlocks);
  const BatchPlan good = plan_of({planned(1, 20, {1, 2, 3}, 3), planned(2, 20, {4, 5, 6}, 3)});
  ASSERT_TRUE(tables.build(good));
  tables.forget();
  ASSERT_TRUE(tables.build(good));
  EXPECT_EQ(tables.entries().size(), 6u);
  const Status bad = tables.build(plan_of({planned(1, 21, {1, 2, 3}, 3), planned(9, 12, {4, kBlocks}, 0)}));
  ASSERT_FALSE(bad);
  EXPECT_NE(bad.error().message.find("sequence 9: block 50; the cache has 50"), std::string::npos)
      << bad.error().message;
  ASSERT_TRUE(tables.build(good));
  EXPECT_EQ(tables.entries().size(), 6u);
}

struct List {
  std::vector<int32_t> blocks;
  int32_t length = 0, unchanged = 0;  // unchanged: since the plan that named it last
};

class Lists {
 public:
  explicit Lists(uint64_t seed) : random_(seed) {}

  BatchPlan next() {
    while (lists_.size() < kRows && random_.below(3) == 0)
      lists_[next_id_++] = whole(1 + below(kStride * kBlockTokens));
    std::vector<PlannedSequence> named;
    for (auto at = lists_.begin(); at != lists_.end();) {
      if (random_.below(20) == 0 || at->second.length >= kStride * kBlockTokens) {
        at = lists_.erase(at);
        continue;
      }
      change(at->second);
      if (random_.below(8) != 0) {  // or it sits out
        named.push_back(planned(at->first, at->second.length, at->second.blocks, at->second.unchanged));
        at->second.unchanged = static_cast<int32_t>(at->second.blocks.size());
      }
      ++at;
    }
    if (random_.below(4) == 0)
      for (size_t i = named.size(); i > 1; --i) std::swap(named[i - 1], named[random_.below(i)]);
    return plan_of(std::move(named));
  }

 private:
  int32_t below(int32_t n) { return static_cast<int32_t>(random_.below(static_cast<uint64_t>(n))); }
  List whole(int32_t length) {
    List l{.length = length};
    for (int32_t i = 0; i * kBlockTokens < length; ++i) l.blocks.push_back(below(kBlocks));
    return l;
  }
  void change(List& l) {
    const int32_t kind = below(12);
    if (kind == 0) l = whole(1 + below(l.length));  // swapped in elsewhere, cut, or computed again
    if (kind == 1) {                                // copied on write
      const int32_t at = below(static_cast<int32_t>(l.blocks.size()));
      l.blocks[static_cast<size_t>(at)] = below(kBlocks);
      l.unchanged = std::min(l.unchanged, at);
    }
    l.length += 1 + (kind == 2 ? below(3 * kBlockTokens) : 0);
    l.length = std::min(l.length, kStride * kBlockTokens);
    while (static_cast<int32_t>(l.blocks.size()) * kBlockTokens < l.length)
      l.blocks.push_back(below(kBlocks));
  }

  Random random_;
  std::map<uint64_t, List> lists_;
  uint64_t next_id_ = 1;
};

TEST(TableDeltas, TheDeviceHoldsEveryListUnderRandomPlans) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    TableDeltas tables(kBlockTokens, kBlocks);
    Device device;
    Lists lists(seed);
    for (int step = 0; step < 300 && !testing::Test::HasFatalFailure(); ++step) {
      const BatchPlan plan = lists.next();
      if (step % 50 == 49) {  // a step that failed: nothing of it reaches the device
        ASSERT_TRUE(tables.build(plan));
        tables.forget();
        continue;
      }
      ASSERT_TRUE(tables.build(plan));
      device.bring(tables);
      device.expect(plan);
    }
  }
}

}  // namespace
}  // namespace quire
