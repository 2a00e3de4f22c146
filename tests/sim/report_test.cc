// A simulation's report as a table: what stands above what.
#include <gtest/gtest.h>

#include <sstream>

#include "benchmarks/sim/sim.h"

namespace quire {
namespace {

std::vector<std::string> lines_of(const SimReport& report) {
  std::istringstream in(to_table(report));
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// What stands under a name in a group's line of names: it ends where the name ends.
std::string under(const std::vector<std::string>& lines, const std::string& group, const std::string& name) {
  for (size_t i = 0; i + 1 < lines.size(); ++i) {
    const size_t at = lines[i].find(" " + name);
    if (!lines[i].starts_with(group) || at == std::string::npos) continue;
    const std::string value = lines[i + 1].substr(0, at + 1 + name.size());
    return value.substr(value.find_last_of(' ') + 1);
  }
  return "nothing";
}

TEST(SimTable, FiguresStandUnderTheirNames) {
  SimReport r;
  r.seed = 18446744073709551615u;
  r.steps = 123'456'789'012;
  r.submitted = 7;
  r.refused = 2;
  r.ttft_ms = {.p50 = 1.25, .p90 = 2.5, .p99 = 123456.75, .count = 9, .sampled = 8};
  r.hit_rate = 0.5;
  r.host_hit_rate = 0.125;
  r.disk_hit_rate = 0.25;
  r.goodput_per_s = 1.2345;
  r.blocks_leaked = 3;
  const std::vector<std::string> lines = lines_of(r);
  EXPECT_EQ(under(lines, "simulated", "seed"), "18446744073709551615");
  EXPECT_EQ(under(lines, "simulated", "steps"), "123456789012");
  EXPECT_EQ(under(lines, "requests", "submitted"), "7");
  EXPECT_EQ(under(lines, "requests", "refused"), "2");
  EXPECT_EQ(under(lines, "first token", "p99"), "123456.8");
  EXPECT_EQ(under(lines, "first token", "drawn evenly"), "8");
  EXPECT_EQ(under(lines, "prefix hit rate", "device"), "0.1250");
  EXPECT_EQ(under(lines, "prefix hit rate", "disk"), "0.2500");
  EXPECT_EQ(under(lines, "a second", "goodput"), "1.234");
  EXPECT_EQ(under(lines, "cache", "leaked"), "3");
}

TEST(SimTable, ViolationsAndTheScriptComeLast) {
  SimReport r;
  r.violations = {"one", "two"};
  r.script = "quire-sim-5.jsonl";
  r.script_events = 4;
  const std::vector<std::string> lines = lines_of(r);
  ASSERT_GE(lines.size(), 3u);
  EXPECT_EQ(lines[lines.size() - 3], "VIOLATION one");
  EXPECT_EQ(lines[lines.size() - 2], "VIOLATION two");
  EXPECT_EQ(lines.back(), "shrunk to 4 events; play it again: quire bench sim --script quire-sim-5.jsonl");
}

}  // namespace
}  // namespace quire
