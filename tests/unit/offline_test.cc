// `quire bench offline` as a library: the form of its report, that its counts are those of the work asked
// for, and what it refuses. No figure is compared with a clock.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "benchmarks/offline/offline.h"
#include "src/model/config.h"

namespace quire {
namespace {

namespace fs = std::filesystem;

fs::path source_root() {
  const char* root = std::getenv("QUIRE_ROOT");
  return root != nullptr ? root : ".";
}

// A directory that holds a config.json and nothing else.
std::string bare_model() {
  const fs::path dir = fs::path(testing::TempDir()) / "quire_offline_model";
  fs::create_directories(dir);
  fs::copy_file(source_root() / "tests/golden/families/qwen2/config.json", dir / "config.json",
                fs::copy_options::overwrite_existing);
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
  // All three enter one step, so each decodes its remaining 99 tokens beside the others.
  EXPECT_EQ(report->rounds[0].decode_steps, 99);
  // 20 + 100 tokens, the last of which is never run: eight blocks of 16 each; 2 layers x K, V x 2 heads x 16
  // x 4 bytes a token.
  EXPECT_EQ(report->kv_bytes_peak, 3 * 8 * 16 * (2 * 2 * 2 * 16 * 4));
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

TEST(Offline, CountsEverySequenceOfARequest) {
  OfflineOptions o = options();
  o.n = 2;
  const Result<OfflineReport> report = run_offline(o);
  ASSERT_TRUE(report) << report.error().message;
  const OfflineRound& r = report->rounds[0];
  EXPECT_LE(r.decode_steps, 99);
  EXPECT_NEAR(r.output_tokens_per_s * r.total_ms / 1e3, 3 * 2 * 100, 1e-6);
  EXPECT_GE(r.total_ms, r.prefill_ms + r.decode_ms);
  EXPECT_EQ(nlohmann::json::parse(to_json(*report))["n"], 2);
}

TEST(Offline, TakesTheSharedPrefixFromTheCacheInEveryTimedRound) {
  OfflineOptions o = options();
  o.shared_prefix_tokens = 40;
  const Result<OfflineReport> report = run_offline(o);
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_GE(report->cached_tokens, 3 * 40);  // a private part may begin with the token of another by chance
  EXPECT_LE(report->cached_tokens, 3 * 42);
  o.shared_prefix_tokens = 0;
  EXPECT_EQ(run_offline(o)->cached_tokens, 0);
}

TEST(Offline, SetsTheWeightsBesideWhatTheMachineReadsWhereAsked) {
  OfflineOptions o = options();
  const OfflineReport without = run_offline(o).value();
  EXPECT_EQ(to_json(without).find("read_gb_s"), std::string::npos);
  EXPECT_EQ(to_text(without).find("by the machine"), std::string::npos);
  o.probe_read = true;
  const Result<OfflineReport> report = run_offline(o);
  ASSERT_TRUE(report) << report.error().message;
  for (const OfflineRound& round : report->rounds) EXPECT_GT(round.read_gb_s, 0.1);
  const auto json = nlohmann::json::parse(to_json(*report));
  EXPECT_GT(json.at("weight_share_of_read"), 0.0);
  EXPECT_GT(json.at("rounds").at(0).at("read_gb_s"), 0.0);
  const std::string told =
      fmt::format("{:.1f} GB/s by the machine; the weights took {:.0f} % of it\n", report->median.read_gb_s,
                  100 * json.at("weight_share_of_read").get<double>());
  EXPECT_NE(to_text(*report).find(told), std::string::npos) << to_text(*report);
}

class RequestList : public ::testing::Test {
 protected:
  std::string write(const std::string& text) {
    std::ofstream(path_) << text;
    return path_;
  }
  std::string path_ = testing::TempDir() + "/quire_requests.csv";
};

TEST_F(RequestList, RunsRequestsOfTheirOwnLengths) {
  OfflineOptions o = options();
  const auto list = read_request_list(write("prompt_tokens,output_tokens\n30,5\n4,1\r\n\n17,9\n"));
  ASSERT_TRUE(list) << list.error().message;
  o.requests = *list;
  const Result<OfflineReport> report = run_offline(o);
  ASSERT_TRUE(report) << report.error().message;
  const OfflineRound& r = report->rounds[1];
  EXPECT_NEAR(r.output_tokens_per_s * r.total_ms / 1e3, 5 + 1 + 9, 1e-6);
  EXPECT_EQ(nlohmann::json::parse(to_json(*report))["batch"], 3);
  EXPECT_NE(to_text(*report).find("3 requests of a list"), std::string::npos);
}

TEST_F(RequestList, NamesTheLineItCannotRead) {
  const auto said = [&](const std::string& text) { return read_request_list(write(text)).error().message; };
  EXPECT_NE(said("1,2\n3\n").find("line 2 is `3`"), std::string::npos);
  EXPECT_NE(said("1,0\n").find("line 1 is `1,0`"), std::string::npos);
  EXPECT_NE(said("1,2,3\n").find("line 1"), std::string::npos);
  EXPECT_NE(said("16777217,2\n").find("from 1 to 16777216"), std::string::npos);
  EXPECT_NE(said("").find("holds no requests"), std::string::npos);
  EXPECT_NE(read_request_list("/no/such").error().message.find("/no/such: cannot be read"),
            std::string::npos);
  std::string many;
  for (int i = 0; i < 4097; ++i) many += "1,1\n";
  EXPECT_NE(said(many).find("more than 4096"), std::string::npos);
}

TEST_F(RequestList, RunsSeveralWorkloadsOnOneEngine) {
  const std::string csv = write("8,4\n");
  const std::string path = testing::TempDir() + "/quire_workloads.json";
  std::ofstream(path)
      << R"([{"name":"two","batch":2,"prompt_tokens":5},{"requests":"quire_requests.csv","rounds":1}])";
  const auto workloads = read_workloads(path, options());
  ASSERT_TRUE(workloads) << workloads.error().message;
  const auto reports = run_offline_all(*workloads);
  ASSERT_TRUE(reports) << reports.error().message;
  ASSERT_EQ(reports->size(), 2u);
  EXPECT_EQ(nlohmann::json::parse(to_json((*reports)[0]))["name"], "two");
  EXPECT_NEAR((*reports)[0].rounds[1].output_tokens_per_s * (*reports)[0].rounds[1].total_ms / 1e3, 2 * 100,
              1e-6);
  EXPECT_EQ((*reports)[1].rounds.size(), 1u);
  EXPECT_EQ((*reports)[0].start_to_first_token_ms, (*reports)[1].start_to_first_token_ms);
  EXPECT_GT((*reports)[0].start_to_first_token_ms, (*reports)[0].open_ms);
}

TEST_F(RequestList, NamesWhatIsWrongInAWorkload) {
  const auto said = [&](const std::string& text) {
    return read_workloads(write(text), options()).error().message;
  };
  EXPECT_NE(said(R"([{"bacth":2}])").find("unknown key `bacth`"), std::string::npos);
  EXPECT_NE(said(R"([{"batch":2.5}])").find("`batch` is 2.5"), std::string::npos);
  EXPECT_NE(said(R"([{"requests":"none.csv"}])").find("none.csv: cannot be read"), std::string::npos);
  EXPECT_NE(said("[]").find("at least one workload"), std::string::npos);
  EXPECT_NE(said("[3]").find("3 is not an object"), std::string::npos);
}

// The shapes that the benchmarks are quoted in, by their public parameter counts.
TEST(Shapes, HaveTheParametersOfTheModelsTheyAreNamedAfter) {
  const std::pair<const char*, int64_t> shapes[] = {
      {"llama-3.1-8b", 8030261248}, {"qwen3-0.6b", 596049920}, {"llama-2-13b", 13015864320}};
  for (const auto& [name, parameters] : shapes) {
    const Result<ModelSpec> spec = read_model_config((source_root() / "benchmarks/shapes" / name).string());
    ASSERT_TRUE(spec) << spec.error().message;
    EXPECT_EQ(spec->num_parameters(), parameters) << name;
    EXPECT_EQ(spec->head_dim, 128) << name;
  }
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
  EXPECT_TRUE(field([](OfflineOptions& o) { o.n = 9; }).starts_with("n: n is 9; it must be from 1 to 8"));
  EXPECT_TRUE(
      field([](OfflineOptions& o) { o.shared_prefix_tokens = -1; }).starts_with("shared_prefix_tokens: "));
  EXPECT_TRUE(field([](OfflineOptions& o) { o.rounds = 0; }).starts_with("rounds: "));
  EXPECT_NE(field([](OfflineOptions& o) { o.engine.model_dir = "/no/such"; }).find("/no/such/config.json"),
            std::string::npos);
  EXPECT_NE(field([](OfflineOptions& o) { o.prompt_tokens = 1000; }),
            "ran");  // longer than the model's context
}

}  // namespace
}  // namespace quire
