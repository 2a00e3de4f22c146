// The simulator itself: it runs clean over seeds, gives the same on every run, and notices what it is there
// to notice. Seeds are printed with a failure; replay one with quire bench sim --seed N.
#include "benchmarks/sim/sim.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "benchmarks/sim/episode.h"

namespace quire {
namespace {

uint64_t first_seed() {
  const char* text = std::getenv("QUIRE_SEED");
  return text == nullptr ? 1 : std::strtoull(text, nullptr, 10);
}

SimReport run(SimOptions options) {
  Result<SimReport> report = run_sim(options);
  EXPECT_TRUE(report.has_value()) << report.error().message;
  return *report;
}

void expect_clean(const SimReport& r) {
  for (const std::string& v : r.violations) ADD_FAILURE() << "QUIRE_SEED=" << r.seed << " " << v;
  EXPECT_EQ(r.blocks_leaked, 0);
  EXPECT_EQ(r.submitted, r.finished + r.refused + r.cancelled + r.failed);
}

TEST(Simulation, SeedsRunCleanWithFaults) {
  SimOptions o;
  o.steps = 6000;
  o.sequences = 24;
  o.audit_every = 1;
  int64_t preemptions = 0, faults = 0, copies = 0;
  for (int i = 0; i < 12; ++i) {
    o.seed = first_seed() + static_cast<uint64_t>(i);
    const SimReport r = run(o);
    expect_clean(r);
    preemptions += r.preemptions;
    faults += r.faults;
    copies += r.copies_on_write;
  }
  EXPECT_GT(preemptions, 100);
  EXPECT_GT(faults, 1000);
  EXPECT_GT(copies, 1000);
}

TEST(Simulation, SeedsRunCleanWithoutFaultsAndNothingFails) {
  SimOptions o;
  o.steps = 6000;
  o.sequences = 32;
  o.faults = false;
  for (int i = 0; i < 4; ++i) {
    o.seed = first_seed() + 100 + static_cast<uint64_t>(i);
    const SimReport r = run(o);
    expect_clean(r);
    EXPECT_EQ(r.cancelled, 0);
    EXPECT_EQ(r.failed, 0);
    EXPECT_GT(r.hit_rate, 0);
  }
}

TEST(Simulation, ASeedReplaysExactly) {
  SimOptions o;
  o.steps = 8000;
  o.seed = first_seed() + 7;
  SimReport a = run(o), b = run(o);
  a.steps_per_s = b.steps_per_s = 0;  // of real time
  EXPECT_EQ(to_json(a), to_json(b));
  o.seed += 1;
  SimReport c = run(o);
  c.steps_per_s = 0;
  EXPECT_NE(to_json(a), to_json(c));
}

TEST(Simulation, OptionsOutOfRangeAreNamed) {
  const auto field = [](SimOptions o) {
    const Result<SimReport> r = run_sim(o);
    return r ? "" : r.error().field;
  };
  EXPECT_EQ(field({.sequences = 0}), "sequences");
  EXPECT_EQ(field({.speed = 0}), "speed");
  EXPECT_EQ(field({.card = "abacus"}), "card");
  EXPECT_EQ(field({.prefix_rule = "guess"}), "prefix_rule");
  EXPECT_EQ(field({.eviction = "whim"}), "eviction");
  EXPECT_EQ(field({.kv_bytes = 1}), "kv_bytes");
  EXPECT_EQ(field({.model_shape = "nowhere/config.json"}), "model_shape");
}

TEST(Simulation, ReplaysATraceAndWholeBlocksHitNoMoreThanTokens) {
  const std::string path = std::filesystem::temp_directory_path() / "quire_sim_trace.jsonl";
  {
    std::ofstream file(path);
    for (int i = 0; i < 60; ++i)
      file << R"({"timestamp": )" << i * 200
           << R"(, "input_length": 700, "output_length": 20, "hash_ids": [0, )" << i % 5 + 1 << "]}\n";
  }
  SimOptions o;
  o.trace = path;
  o.trace_format = "mooncake";
  o.faults = false;
  const SimReport token = run(o);
  o.prefix_rule = "block";
  const SimReport block = run(o);
  std::filesystem::remove(path);
  for (const SimReport& r : {token, block}) {
    expect_clean(r);
    EXPECT_EQ(r.finished, 60);
  }
  EXPECT_GT(block.hit_rate, 0.5);
  EXPECT_GE(token.hit_rate, block.hit_rate);
}

}  // namespace
}  // namespace quire
