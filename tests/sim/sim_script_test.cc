// Scripts: what an episode is recorded as, shrunk to, read from and played again.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <system_error>

#include "benchmarks/sim/play.h"
#include "benchmarks/sim/setup.h"
#include "benchmarks/sim/shrink.h"
#include "src/base/check.h"
#include "tests/sim/sim_runs.h"

namespace quire {
namespace {

struct Recorded {
  SimScript script;
  int64_t preemptions = 0;
};

int64_t preemptions_of(const SimScript& script) {
  Episode episode(script);
  while (episode.step()) {
  }
  SimReport report;
  Samples samples;
  episode.add_to(report, samples);
  return report.preemptions;
}

// An episode of a drawn load that preempts for want of blocks, as a script. Whoever does not read may lose its slot for want of slots.
Recorded record_one_that_preempts() {
  SimOptions o;
  o.sequences = 16;
  const SimSetup base = *make_setup(o);
  for (uint64_t seed = first_seed() + 900;; ++seed) {
    const SimSetup setup = draw_episode(base, o, seed);
    FaultRates faults = kAllFaults;
    faults.pause = 0;
    Episode episode(setup, make_random_workload(seed, 16, setup.core.vocab_size, true, setup.mix), faults,
                    seed);
    episode.record();
    while (episode.num_ticks() < 600) episode.step();
    SimReport report;
    Samples samples;
    episode.add_to(report, samples);
    if (report.preemptions > 0)
      return {{setup, episode.num_ticks(), episode.take_events()}, report.preemptions};
  }
}

TEST(SimScript, PlaysTheSameAsTheEpisodeItWasRecordedFrom) {
  const Recorded recorded = record_one_that_preempts();
  EXPECT_EQ(preemptions_of(recorded.script), recorded.preemptions);
  const std::string path = std::filesystem::temp_directory_path() / "quire_sim_script.jsonl";
  ASSERT_TRUE(write_script(recorded.script, path).has_value());
  const Result<SimScript> read = read_script(path);
  std::filesystem::remove(path);
  ASSERT_TRUE(read.has_value()) << read.error().message;
  EXPECT_EQ(to_json_lines(*read), to_json_lines(recorded.script));
  EXPECT_EQ(preemptions_of(*read), recorded.preemptions);
}

TEST(SimScript, ReportsTheSeedItCameFrom) {
  SimScript script = record_one_that_preempts().script;
  const std::string path = std::filesystem::temp_directory_path() / "quire_sim_seed_script.jsonl";
  for (const std::optional<uint64_t> seed : {std::optional<uint64_t>(77), std::optional<uint64_t>()}) {
    script.seed = seed;
    ASSERT_TRUE(write_script(script, path).has_value());
    const Result<SimReport> report = run_sim({.script = path});
    ASSERT_TRUE(report.has_value()) << report.error().message;
    EXPECT_EQ(report->seed, seed);
    const std::string shown = fmt::format("\"seed\":{},", seed ? "77" : "null");
    EXPECT_NE(to_json(*report).find(shown), std::string::npos) << to_json(*report);
    EXPECT_EQ(to_table(*report).find("unknown") != std::string::npos, !seed) << to_table(*report);
  }
  EXPECT_EQ(run_sim({.seed = 5, .script = path}).error().field, "seed");
  std::filesystem::remove(path);
}

// Whatever a trial looks for, the script gets short and still shows it: how short depends on how many requests it takes to fill the
// cache that the seed has drawn. From 1,500 seeds on, what was left were 2 to 25 events, a fifth of all at most.
TEST(SimScript, ShrinksToWhatMatters) {
  const Recorded recorded = record_one_that_preempts();
  const size_t before = recorded.script.events.size();
  const SimScript small = shrink(recorded.script, [](const SimScript& s) { return preemptions_of(s) > 0; });
  EXPECT_GT(preemptions_of(small), 0);
  EXPECT_LE(4 * small.events.size(), before) << to_json_lines(small);
  for (size_t i = 0; i < small.events.size(); ++i) {  // nothing is left that could go
    SimScript without = small;
    without.events.erase(without.events.begin() + static_cast<std::ptrdiff_t>(i));
    EXPECT_EQ(preemptions_of(without), 0) << "event " << i;
  }
}

TEST(SimScript, ACheckThatFailsIsAViolation) {
  const std::optional<std::string> said = until_check_fails([] { check(1 + 1 == 3, "sums are right"); });
  ASSERT_TRUE(said.has_value());
  EXPECT_NE(said->find("check failed: sums are right"), std::string::npos);
  EXPECT_EQ(kind_of_violation(*said), "check failed");
  EXPECT_EQ(kind_of_violation("step 12: invariant 5: request 7 got other tokens than alone"), "invariant 5");
  EXPECT_EQ(kind_of_violation("step 3: executor: sequence 9: 3 blocks"), "executor");
}

// What failing seeds were shrunk to before the bug they found was mended.
TEST(SimScript, ScriptsOfMendedBugsRunClean) {
  int count = 0;
  for (const auto& file : std::filesystem::directory_iterator("tests/sim/scripts")) {
    SimOptions o;
    o.script = file.path();
    const SimReport r = run(o);
    for (const std::string& v : r.violations) ADD_FAILURE() << file.path() << ": " << v;
    ++count;
  }
  EXPECT_GT(count, 0);
}

// What failing seeds were shrunk to and nobody has mended yet. One that runs clean belongs to the others.
TEST(SimScript, OpenFaultsAreStillThere) {
  std::string open;
  std::error_code none;  // no folder while there is no fault
  for (const auto& file : std::filesystem::directory_iterator("tests/sim/open", none)) {
    SimOptions o;
    o.script = file.path();
    const SimReport r = run(o);
    if (r.violations.empty()) ADD_FAILURE() << file.path() << " runs clean: move it to tests/sim/scripts";
    open += fmt::format("{}{}", open.empty() ? "" : ", ", file.path().stem().string());
  }
  if (!open.empty() && !HasFailure()) GTEST_SKIP() << "known faults, not mended: " << open;
}

TEST(SimScript, ErrorsNameFileAndLine) {
  const std::string path = std::filesystem::temp_directory_path() / "quire_sim_bad_script.jsonl";
  Recorded recorded = record_one_that_preempts();
  recorded.script.events.resize(2);
  const auto message_with = [&](const std::string& line) {
    std::ofstream(path) << to_json_lines(recorded.script) << line << "\n";
    SimOptions o;
    o.script = path;
    const Result<SimReport> r = run_sim(o);
    return r ? std::string() : r.error().message;
  };
  EXPECT_NE(message_with(R"({"tick": 3, "event": "sneeze"})").find(":4: unknown event `sneeze`"),
            std::string::npos);
  EXPECT_NE(message_with(R"({"event": "cancel"})").find(":4:"), std::string::npos);
  for (const char* request : {"0", "-1", "18446744073709551615", "1000000000000000", "1.5"})
    EXPECT_NE(message_with(fmt::format(R"({{"tick": 3, "event": "cancel", "request": {}}})", request))
                  .find(fmt::format(":4: request is {}; it must be a whole number from 1", request)),
              std::string::npos)
        << request;
  const std::string submit =
      R"({"tick": 3, "event": "submit", "request": 700, "prompt": [1], "max_tokens": 1, "seed": 1})";
  EXPECT_NE(message_with(submit + "\n" + submit).find(":5: request 700 is submitted twice"),
            std::string::npos);
  EXPECT_NE(message_with("{").find(":4:"), std::string::npos);
  std::filesystem::remove(path);
  EXPECT_NE(message_with("").find(":4:"), std::string::npos);
  for (const char* name : {"audit_every", "blocks", "block_tokens", "max_context_tokens",
                           "max_queued_requests", "max_sequences", "vocab"}) {
    std::string text = to_json_lines(recorded.script);
    const size_t at = text.find(fmt::format("\"{}\":", name));
    ASSERT_NE(at, std::string::npos);
    text.replace(at, text.find(',', at) - at, fmt::format("\"{}\":0", name));
    std::ofstream(path) << text;
    const std::string said = run_sim({.script = path}).error().message;
    EXPECT_NE(said.find(fmt::format(":1: {} is 0; it must be a whole number from", name)), std::string::npos)
        << said;
  }
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace quire
