// Which way to make a product is taken, on times made up: the rules of plan_choice.h one by one.
#include <gtest/gtest.h>

#include <limits>
#include <map>

#include "kernels/cuda/matmul/plan_choice.h"
#include "src/execute/step_graphs.h"

namespace quire {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

// Candidate i takes times[i][run]; the last for ever after. Run 0 is not timed.
struct Stopwatch {
  std::vector<std::vector<double>> times;
  int most = 1000;  // runs until time is spent
  std::map<int, int> runs = {};

  int choose(const TuningRules& rules = {}) {
    return choose_plan(static_cast<int>(times.size()), rules, [this](int i) -> std::optional<double> {
      if (most-- <= 0) return {};
      const std::vector<double>& mine = times[static_cast<size_t>(i)];
      return mine[std::min(static_cast<size_t>(runs[i]++), mine.size() - 1)];
    });
  }
};

TEST(PlanChoice, TakesTheFastest) {
  EXPECT_EQ((Stopwatch{{{10}, {8}, {6}, {7}}}).choose(), 2);
  EXPECT_EQ((Stopwatch{{{5}, {8}, {6}, {7}}}).choose(), 0);
}

TEST(PlanChoice, StaysWithTheFirstForLittle) {
  EXPECT_EQ((Stopwatch{{{100}, {98}}}).choose(), 0);
  EXPECT_EQ((Stopwatch{{{100}, {96}}}).choose(), 1);
}

TEST(PlanChoice, GoesByTheMedianAndNotByTheFirstRuns) {
  // The first run loads code; one of the others was lucky, one was held up.
  EXPECT_EQ((Stopwatch{{{500, 10, 10, 10}, {1, 9, 2, 9}, {900, 8, 50, 8}}}).choose(), 2);
}

TEST(PlanChoice, TimesTheHopelessOnce) {
  Stopwatch s{{{10}, {20}, {9}}};
  EXPECT_EQ(s.choose(), 2);
  EXPECT_EQ(s.runs[1], 2) << "one to load it, one timed";
  EXPECT_EQ(s.runs[2], 4);
}

TEST(PlanChoice, NeverTakesOneThatDoesNotRun) {
  EXPECT_EQ((Stopwatch{{{10}, {kNever}}}).choose(), 0);
  EXPECT_EQ((Stopwatch{{{kNever}, {kNever}, {30}}}).choose(), 2);
  EXPECT_EQ((Stopwatch{{{kNever}, {kNever}}}).choose(), 0);
}

TEST(PlanChoice, StaysWithTheFirstWhereTimeIsSpent) {
  const int all = 2 + 2 * 3;
  EXPECT_EQ((Stopwatch{.times = {{10}, {8}}, .most = all}).choose(), 1);
  EXPECT_EQ((Stopwatch{.times = {{10}, {8}}, .most = all - 1}).choose(), 0);
  EXPECT_EQ((Stopwatch{.times = {{10}, {8}}, .most = 0}).choose(), 0);
}

TEST(PlanChoice, OneCandidateIsNotTimed) {
  Stopwatch s{{{10}}};
  EXPECT_EQ(s.choose(), 0);
  EXPECT_TRUE(s.runs.empty());
}

TEST(PlanChoice, RowClassesAreTheSizesThatStepsArePaddedTo) {
  for (int32_t rows = 1; rows < 5000; ++rows) ASSERT_EQ(plan_rows(rows), token_bucket(rows)) << rows;
  EXPECT_EQ(plan_row_classes(64, 256), (std::vector<int32_t>{96, 128, 160, 192, 224, 256}));
  EXPECT_EQ(plan_row_classes(64, 700).back(), 768);
  EXPECT_TRUE(plan_row_classes(64, 64).empty());
}

}  // namespace
}  // namespace quire
