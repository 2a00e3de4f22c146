// Method: small files written by the test for what must be refused, and the facts stated about the shared traces for what is read.
#include <gtest/gtest.h>
#include <zlib.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <numeric>

#include "benchmarks/traces/servegen.h"
#include "benchmarks/traces/trace.h"

namespace quire {
namespace {

std::string write_temporary(const std::string& name, const std::string& content) {
  const std::string path = testing::TempDir() + "/" + name;
  std::ofstream(path, std::ios::binary) << content;
  return path;
}

std::string shared_trace(const std::string& name) {
  const char* shared = std::getenv("QUIRE_SHARED");
  const char* root = std::getenv("QUIRE_ROOT");
  const std::string folder = shared ? shared : std::string(root ? root : ".") + "/../shared";
  const std::string path = folder + "/traces/" + name;
  return std::filesystem::exists(path) ? path : "";
}

TEST(Traces, ReadsAzureLinesRelativeToTheFirstArrival) {
  const std::string path = write_temporary("azure.csv",
                                           "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 "
                                           "18:15:46.5,374,44\n2023-11-16 18:15:47.75,396,109\n");
  const Result<Trace> trace = read_trace(path, TraceFormat::kAzure, {});
  ASSERT_TRUE(trace) << trace.error().message;
  ASSERT_EQ(trace->requests.size(), 2u);
  EXPECT_EQ(trace->requests[0].arrival_us, 0);
  EXPECT_EQ(trace->requests[1].arrival_us, 1250000);
  EXPECT_EQ(trace->requests[1].prompt_tokens, 396);
}

TEST(Traces, AMistakeIsNamedWithFileAndLine) {
  const std::string azure =
      write_temporary("bad.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.5,374,x\n");
  EXPECT_NE(read_trace(azure, TraceFormat::kAzure, {}).error().message.find("bad.csv:2:"), std::string::npos);
  const std::string mooncake = write_temporary(
      "bad.jsonl",
      "{\"timestamp\":0,\"input_length\":3,\"output_length\":1,\"hash_ids\":[0]}\n{\"timestamp\":0}\n");
  EXPECT_NE(read_trace(mooncake, TraceFormat::kMooncake, {}).error().message.find("bad.jsonl:2:"),
            std::string::npos);
  EXPECT_EQ(read_trace("/nonexistent", TraceFormat::kAzure, {}).error().code, Code::kNotFound);
  EXPECT_FALSE(read_trace(write_temporary("bad.tar", std::string(2000, 'x')), TraceFormat::kServeGen, {}));
  EXPECT_FALSE(parse_trace_format("sharegpt"));
}

// Real traces have one for each 512 tokens begun.
TEST(Traces, HashIdsThatDoNotCoverTheirPromptAreNamedWithFileAndLine) {
  const auto read = [](int tokens, const char* ids) {
    const std::string path = write_temporary(
        "ids.jsonl", R"({"timestamp":0,"input_length":0,"output_length":1,"hash_ids":[]})"
                     "\n"
                     R"({"timestamp":0,"input_length":)" +
                         std::to_string(tokens) + R"(,"output_length":1,"hash_ids":)" + ids + "}\n");
    const Result<Trace> trace = read_trace(path, TraceFormat::kMooncake, {});
    return trace ? "accepted" : trace.error().message;
  };
  EXPECT_EQ(read(512, "[5]"), "accepted");
  EXPECT_EQ(read(513, "[5,6]"), "accepted");
  const std::string few = read(1025, "[5,6]");
  EXPECT_NE(few.find("ids.jsonl:2: input_length 1025 takes 3 hash_ids"), std::string::npos) << few;
  EXPECT_NE(few.find("there are 2"), std::string::npos) << few;
  EXPECT_NE(read(1, "[]").find("ids.jsonl:2: "), std::string::npos);
  EXPECT_NE(read(512, "[5,6]").find("ids.jsonl:2: "), std::string::npos) << "of blocks of another size";
}

TEST(Traces, AMomentOutOfRangeIsNamedWithFileAndLine) {
  for (const char* when : {"-1", "9223372036854775807"}) {
    const std::string path =
        write_temporary("when.jsonl", R"({"timestamp":)" + std::string(when) +
                                          R"(,"input_length":1,"output_length":1,"hash_ids":[1]})");
    const Result<Trace> trace = read_trace(path, TraceFormat::kMooncake, {});
    ASSERT_FALSE(trace) << when;
    EXPECT_NE(trace.error().message.find("when.jsonl:1: timestamp is "), std::string::npos)
        << trace.error().message;
  }
}

TEST(Traces, TimesAreTimesAndGoOnOverMidnight) {
  const auto azure = [](const std::string& lines) {
    return read_trace(write_temporary("times.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n" + lines),
                      TraceFormat::kAzure, {});
  };
  for (const char* stamp :
       {"2023-11-16 99:99:1e300", "2023-11-16 -1:-5:nan", "2023-11-16 24:00:00", "2023-11-16 00:60:00",
        "2023-11-16 00:00:61.0", "2023-13-16 00:00:00", "2023-02-30 00:00:00"})
    EXPECT_NE(azure(std::string(stamp) + ",1,1\n").error().message.find("times.csv:2:"), std::string::npos)
        << stamp;
  const Result<Trace> night = azure("2023-12-31 23:59:59.0,5,1\n2024-01-01 00:00:01.0,7,1\n");
  ASSERT_TRUE(night) << night.error().message;
  EXPECT_EQ(night->requests[0].prompt_tokens, 5);
  EXPECT_EQ(night->requests[1].arrival_us, 2'000'000);
  const Result<Trace> folder = read_trace(testing::TempDir(), TraceFormat::kAzure, {});
  EXPECT_NE(folder.error().message.find("is a directory"), std::string::npos);
}

// A client's two files as draw_servegen gets them.
std::string servegen_error(const std::string& windows, const std::string& lengths) {
  const Result<Trace> trace =
      draw_servegen({{"c-trace.csv", windows}, {"c-dataset.json", lengths}}, "a.tar", {.max_seconds = 100});
  return trace ? "accepted" : trace.error().message;
}

TEST(Traces, WhatServegenDoesNotMeanIsNamed) {
  const std::string window = "0,1,1,Gamma,1,1\n";
  const auto lengths = [](const std::string& histogram) {
    return R"({"0": {"input_tokens": ")" + histogram + R"(", "output_tokens": "{4: 1}"}})";
  };
  EXPECT_EQ(servegen_error(window, lengths("{4: 0.5, 5: 0.5}")), "accepted");
  EXPECT_NE(servegen_error("x,1,1,Gamma,1,1\n", lengths("{4: 1}")).find("c-trace.csv:1:"), std::string::npos);
  EXPECT_NE(servegen_error("0,1,1,Gamma,1s,1\n", lengths("{4: 1}")).find("c-trace.csv:1:"),
            std::string::npos);
  for (const char* bad : {"{4: 1", "4: 1}", "{4: 1, junk}", "{4: 1} 5", "{4 1}", "{4: -1}"})
    EXPECT_NE(servegen_error(window, lengths(bad)).find("c-dataset.json, window 0: a histogram"),
              std::string::npos)
        << bad;
  EXPECT_NE(servegen_error(window, "{\n\n x").find("c-dataset.json:3: not JSON"), std::string::npos);
  EXPECT_NE(servegen_error(window, R"({"x": {"input_tokens": "{4: 1}", "output_tokens": "{4: 1}"}})")
                .find("'x' is no window"),
            std::string::npos);
}

TEST(Traces, EqualPrefixPiecesGiveEqualTokens) {
  Trace trace{
      .requests = {{.arrival_us = 0, .prompt_tokens = 10, .output_tokens = 1, .prefix_pieces = {7, 8}},
                   {.arrival_us = 0, .prompt_tokens = 10, .output_tokens = 1, .prefix_pieces = {7, 9}}},
      .prefix_piece_tokens = 4};
  const std::vector<int32_t> a = prompt_of(trace, 0, 1000), b = prompt_of(trace, 1, 1000);
  EXPECT_TRUE(std::equal(a.begin(), a.begin() + 4, b.begin()));
  EXPECT_FALSE(std::equal(a.begin() + 4, a.begin() + 8, b.begin() + 4));
  EXPECT_FALSE(std::equal(a.begin() + 8, a.end(), b.begin() + 8));
}

TEST(Traces, TheSharedAzureTraceHasItsStatedMeans) {
  const std::string path = shared_trace("azure_llm_2023_conv.csv");
  if (path.empty()) GTEST_SKIP() << "shared data is not there (QUIRE_SHARED)";
  const Result<Trace> trace = read_trace(path, TraceFormat::kAzure, {});
  ASSERT_TRUE(trace) << trace.error().message;
  ASSERT_EQ(trace->requests.size(), 19366u);
  double prompt = 0;
  for (const TraceRequest& r : trace->requests) prompt += r.prompt_tokens;
  EXPECT_NEAR(prompt / 19366, 1155, 1);
}

// At a line's end it would be read as a shorter trace.
TEST(Traces, AGzipFileThatIsCutShortIsRefused) {
  const std::string path = std::filesystem::temp_directory_path() / "quire_trace.csv.gz";
  gzFile file = gzopen(path.c_str(), "wb");
  gzputs(file, "TIMESTAMP,ContextTokens,GeneratedTokens\n");
  for (int i = 0; i < 5000; ++i)
    gzprintf(file, "2023-11-16 18:%02d:%02d.%07d,%d,%d\n", i / 60 % 60, i % 60, i, 100 + i * 37 % 4001,
             i % 300 + 1);
  gzclose(file);
  ASSERT_TRUE(read_trace(path, TraceFormat::kAzure, {}));
  const auto whole = static_cast<int64_t>(std::filesystem::file_size(path));
  for (int64_t size = whole - 1; size > whole - 400; size -= 7) {
    std::filesystem::resize_file(path, static_cast<uintmax_t>(size));
    const Result<Trace> cut = read_trace(path, TraceFormat::kAzure, {});
    ASSERT_FALSE(cut) << size;
    EXPECT_NE(cut.error().message.find("is cut short"), std::string::npos) << cut.error().message;
  }
  std::filesystem::remove(path);
}

TEST(Traces, TheSharedMooncakeTraceHitsWhatAnUnboundedCacheWould) {
  const std::string path = shared_trace("mooncake_conversation.jsonl.gz");
  if (path.empty()) GTEST_SKIP() << "shared data is not there (QUIRE_SHARED)";
  const Result<Trace> trace = read_trace(path, TraceFormat::kMooncake, {});
  ASSERT_TRUE(trace) << trace.error().message;
  EXPECT_EQ(trace->requests.size(), 12031u);
  std::vector<char> seen;
  int64_t hits = 0, pieces = 0;
  for (const TraceRequest& r : trace->requests)
    for (const uint64_t id : r.prefix_pieces) {
      if (seen.size() <= id) seen.resize(id + 1);
      hits += seen[id];
      seen[id] = 1;
      ++pieces;
    }
  EXPECT_NEAR(100.0 * static_cast<double>(hits) / static_cast<double>(pieces), 36.6, 0.1);
}

TEST(Traces, ServeGenDrawsTheStatedRateAndTheSameRequestsFromASeed) {
  const std::string path = shared_trace("servegen_deepseek-r1.tar.gz");
  if (path.empty()) GTEST_SKIP() << "shared data is not there (QUIRE_SHARED)";
  const TraceOptions options{.seed = 5, .max_requests = 0, .max_seconds = 600};
  const Result<Trace> trace = read_trace(path, TraceFormat::kServeGen, options),
                      again = read_trace(path, TraceFormat::kServeGen, options);
  ASSERT_TRUE(trace) << trace.error().message;
  EXPECT_GT(trace->requests.size(), 1000u);
  ASSERT_EQ(trace->requests.size(), again->requests.size());
  EXPECT_EQ(trace->requests.back().prompt_tokens, again->requests.back().prompt_tokens);
}

}  // namespace
}  // namespace quire
