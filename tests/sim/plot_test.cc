// What `quire bench sim --plot` draws: moments that stay few and lose nothing, and a file that shows them.
#include "benchmarks/sim/plot.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "benchmarks/sim/sim.h"
#include "benchmarks/sim/timeline.h"

namespace quire {
namespace {

EngineStats stats_after(int64_t looks) {
  EngineStats stats;
  stats.sequences_running = 3;
  stats.blocks_total = 8;
  stats.blocks_held = 2;
  stats.prefix_queries_tokens_total = 10 * looks;
  stats.cached_tokens_total = 4 * looks;
  return stats;
}

TEST(Timeline, KeepsFewMomentsWhoseSumsAreThoseOfAllLooks) {
  Timeline timeline;
  const int64_t looks = 5 * static_cast<int64_t>(Timeline::kMostMoments) + 3;
  timeline.begin_episode();
  for (int64_t i = 1; i <= looks; ++i) timeline.look(static_cast<double>(i), stats_after(i));
  EXPECT_LE(timeline.moments().size(), Timeline::kMostMoments);
  SimMoment sum;
  double before = 0;
  for (const SimMoment& moment : timeline.moments()) {
    const double at = moment.seconds / static_cast<double>(moment.looks);
    EXPECT_GT(at, before);
    before = at;
    sum += moment;
  }
  EXPECT_EQ(sum.looks, looks);
  EXPECT_EQ(sum.asked_tokens, 10 * looks);
  EXPECT_EQ(sum.found_tokens, 4 * looks);
  EXPECT_DOUBLE_EQ(sum.running, 3.0 * static_cast<double>(looks));
  EXPECT_DOUBLE_EQ(sum.held_share, 0.25 * static_cast<double>(looks));
}

TEST(Timeline, GoesOnWhereTheLastEpisodeEnded) {
  Timeline timeline;
  timeline.begin_episode();
  timeline.look(2, stats_after(7));
  timeline.begin_episode();
  timeline.look(1, stats_after(1));
  ASSERT_EQ(timeline.moments().size(), 2u);
  EXPECT_DOUBLE_EQ(timeline.moments()[1].seconds, 3);
  EXPECT_EQ(timeline.moments()[1].asked_tokens, 10) << "the new engine counts from 0";
}

TEST(Plot, PutsValuesWhereTheAxesSay) {
  const std::string svg =
      to_svg("a < b", {{.title = "t", .y_max = 10, .series = {{"line", {{0, 0}, {4, 10}}}}}});
  EXPECT_NE(svg.find("a &lt; b"), std::string::npos);
  EXPECT_NE(svg.find("points=\"62.0,306.0 464.0,102.0 \""), std::string::npos)
      << "from the lower left of the panel to its upper right: " << svg;
}

TEST(Plot, LeavesOutWhatALogarithmCannotShow) {
  const std::string svg = to_svg("", {{.log_x = true, .series = {{"line", {{0, 1}, {1, 1}, {100, 1}}}}}});
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
  EXPECT_NE(to_svg("", {{.series = {{"line", {}}}}}).find("no data"), std::string::npos);
}

TEST(Plot, CumulativeShareEndsWithTheLargestAtOne) {
  std::vector<float> values(1000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(values.size() - i);
  const PlotSeries series = cumulative_share("all", values);
  EXPECT_EQ(series.points.size(), 200u);
  EXPECT_EQ(series.points.back(), std::make_pair(1000.0, 1.0));
  EXPECT_EQ(series.points.front(), std::make_pair(5.0, 0.005));
}

std::string text_of(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

TEST(Plot, OfARunIsTheSameForTheSameSeed) {
  const std::string path = testing::TempDir() + "/quire_plot.svg";
  const SimOptions options{.seed = 5, .steps = 3000, .plot = path};
  ASSERT_TRUE(run_sim(options));
  const std::string first = text_of(path);
  ASSERT_TRUE(run_sim(options));
  EXPECT_EQ(text_of(path), first);
  for (const char* shown : {"seed 5", "sequences running", "cached, held by nobody", "first token"})
    EXPECT_NE(first.find(shown), std::string::npos) << shown;
  EXPECT_EQ(first.find("no data"), std::string::npos);
  EXPECT_EQ(first.find("nan"), std::string::npos);
}

TEST(Plot, ThatCannotBeWrittenIsToldBeforeTheRun) {
  const Result<SimReport> report = run_sim({.steps = int64_t{1} << 60, .plot = "/nonexistent/plot.svg"});
  ASSERT_FALSE(report);
  EXPECT_EQ(report.error().message, "plot: /nonexistent/plot.svg cannot be written");
}

}  // namespace
}  // namespace quire
