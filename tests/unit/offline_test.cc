// `quire bench offline` as a library: the form of its report, that its counts are those of the work asked
// for, and what it refuses. No figure is compared with a clock.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "benchmarks/offline/offline.h"

namespace quire {
namespace {

namespace fs = std::filesystem;

// A directory that holds a config.json and nothing else.
std::string bare_model() {
  const char* root = std::getenv("QUIRE_ROOT");
  const fs::path dir = fs::path(testing::TempDir()) / "quire_offline_model";
  fs::create_directories(dir);
  fs::copy_file(fs::path(root != nullptr ? root : ".") / "tests/golden/families/qwen2/config.json",
                dir / "config.json", fs::copy_options::overwrite_existing);
  return dir.string();
}

OfflineOptions options() {
  OfflineOptions o;
  o.engine.model_dir = bare_model();
  o.engine.weights = "random:1";
  o.engine.device = "cpu";
  o.batch = 3;
  o.prompt_tokens = 20;
  o.new_tokens = 100;
  o.rounds = 2;
  return o;
}

TEST(Offline, ReportsTheContractsKeysAndTheWorkAskedFor) {
  const Result<OfflineReport> report = run_offline(options());
  ASSERT_TRUE(report) << report.error().message;
  const nlohmann::json j = nlohmann::json::parse(to_json(*report));
  for (const char* key : {"prefill_tokens_per_s", "decode_tokens_per_s", "ms_per_decode_step"})
    EXPECT_GT(j[key].get<double>(), 0) << key;
  EXPECT_TRUE(j["device"].is_string());
  ASSERT_EQ(j["rounds"].size(), 2u);
  // At most 99 steps run all three; fewer when the first request starts before the last is submitted.
  EXPECT_GE(report->rounds[0].decode_steps, 1);
  EXPECT_LE(report->rounds[0].decode_steps, 99);
  // 20 + 100 tokens, the last of which is never run: eight blocks of 16 each; 2 layers x K, V x 2 heads x 16 x 4
  // bytes a token. All are held at once unless one request ends before another has grown to its last block.
  EXPECT_LE(report->kv_bytes_peak, 3 * 8 * 16 * (2 * 2 * 2 * 16 * 4));
  EXPECT_GT(report->kv_bytes_peak, 2 * 8 * 16 * (2 * 2 * 2 * 16 * 4));
  EXPECT_NE(to_text(*report).find("batch 3, 20 prompt + 100 new tokens"), std::string::npos);
}

TEST(Offline, TakesTheMedianOfEachFigure) {
  OfflineOptions o = options();
  o.rounds = 3;
  const Result<OfflineReport> report = run_offline(o);
  ASSERT_TRUE(report);
  std::vector<double> ms;
  for (const OfflineRound& r : report->rounds) ms.push_back(r.ms_per_decode_step);
  std::sort(ms.begin(), ms.end());
  EXPECT_EQ(report->median.ms_per_decode_step, ms[1]);
}

TEST(Offline, NamesWhatItRefuses) {
  const auto field = [](auto change) {
    OfflineOptions o = options();
    change(o);
    const Result<OfflineReport> report = run_offline(o);
    return report ? std::string("ran") : report.error().field + ": " + report.error().message;
  };
  EXPECT_TRUE(field([](OfflineOptions& o) { o.batch = 0; }).starts_with("batch: batch is 0"));
  EXPECT_TRUE(field([](OfflineOptions& o) { o.new_tokens = 1; }).starts_with("new_tokens: new_tokens is 1"));
  EXPECT_TRUE(field([](OfflineOptions& o) { o.rounds = 0; }).starts_with("rounds: "));
  EXPECT_NE(field([](OfflineOptions& o) { o.engine.model_dir = "/no/such"; }).find("/no/such/config.json"),
            std::string::npos);
  EXPECT_NE(field([](OfflineOptions& o) { o.prompt_tokens = 1000; }),
            "ran");  // longer than the model's context
}

}  // namespace
}  // namespace quire
