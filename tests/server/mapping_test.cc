// What stands between texts and requests, without a network: UTF-8, jsonl lines, the wire's defaults, flags,
// results as JSON.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>

#include "google/rpc/status.pb.h"
#include "quire/v1/service.pb.h"
#include "server/commands/common_flags.h"
#include "server/flags.h"
#include "server/json_message.h"
#include "server/json_output.h"
#include "server/list_counts.h"
#include "server/request_mapping.h"
#include "server/status.h"
#include "src/base/utf8.h"

namespace quire::server {
namespace {

TEST(Utf8, FindsTheFirstBadSequence) {
  EXPECT_FALSE(find_invalid_utf8("plain, \xC3\xA9, \xE2\x82\xAC, \xF0\x9F\x98\x80"));
  const std::pair<const char*, size_t> cases[] = {
      {"ab\xFF", 2},           {"a\xC3", 1}, {"\xC0\xAF", 0},    {"\xE0\x80\xAF", 0}, {"\xED\xA0\x80", 0},
      {"\xF4\x90\x80\x80", 0}, {"x\x80", 1}, {"\xF0\x9F\x98", 0}};
  for (const auto& [text, offset] : cases) EXPECT_EQ(find_invalid_utf8(text), offset) << text;
}

std::string why_refused(const std::string& line) {
  const auto request = request_from_json(line);
  return request ? "" : request.error().message;
}

TEST(JsonRequest, TakesTheFieldsOfTheWire) {
  const auto request = request_from_json(
      R"({"messages":[{"role":"user","content":"hi"}],"sampling":{"top_p":0.5,"logit_bias":{"7":-2.5},"bad_words":[[1,2],[3]],"seed":18446744073709551615},
          "kv_policy":"window:size=8","dump_kv":true,"priority":-3,"deadline_ms":100,
          "kv_retention":{"retention_class":2,"ttl_ms":60000}})");
  ASSERT_TRUE(request) << request.error().message;
  EXPECT_EQ(request->kv_retention().ttl_ms(), 60000);
  EXPECT_EQ(request->messages().messages(0).content(), "hi");
  EXPECT_EQ(request->sampling().top_p(), 0.5);
  EXPECT_EQ(request->sampling().logit_bias().at(7), -2.5);
  EXPECT_EQ(request->sampling().bad_words(0).ids(1), 2);
  EXPECT_EQ(request->sampling().seed(), UINT64_MAX);
  EXPECT_TRUE(request->dump_kv());
  EXPECT_EQ(request->priority(), -3);
}

TEST(JsonRequest, TakesTheShortForms) {
  auto request = request_from_json(R"({"prompt":"hi","max_tokens":3,"temperature":0})");
  ASSERT_TRUE(request) << request.error().message;
  EXPECT_EQ(request->text(), "hi");
  EXPECT_EQ(request->sampling().max_tokens(), 3);
  EXPECT_TRUE(request->sampling().has_temperature()) << "zero is a value";
  request = request_from_json(R"({"prompt_token_ids":[1,2]})");
  ASSERT_TRUE(request) << request.error().message;
  EXPECT_EQ(request->token_ids().ids_size(), 2);
  request = request_from_json(R"({"prompt":[4],"sampling":{"n":2},"stop":["a"]})");
  ASSERT_TRUE(request) << request.error().message;
  EXPECT_EQ(request->token_ids().ids(0), 4);
  EXPECT_EQ(request->sampling().n(), 2);
  EXPECT_EQ(request->sampling().stop(0), "a");
}

TEST(JsonRequest, NamesWhatIsWrong) {
  EXPECT_EQ(why_refused(R"({"prompt":"a","top_pp":1})"), "unknown field 'top_pp'");
  EXPECT_EQ(why_refused(R"({"prompt":"a","sampling":{"top_pp":1}})"), "unknown field 'sampling.top_pp'");
  EXPECT_EQ(why_refused(R"({"messages":[{"role":"user","text":"a"}]})"), "unknown field 'messages[0].text'");
  EXPECT_EQ(why_refused(R"({"prompt":"a","top_p":"x"})"), "sampling.top_p must be a number, not \"x\"");
  EXPECT_EQ(why_refused(R"({"prompt":"a","n":3000000000})"),
            "sampling.n must be an integer from -2147483648 to 2147483647, not 3000000000");
  EXPECT_EQ(why_refused(R"({"prompt":"a","n":1.5})"),
            "sampling.n must be an integer from -2147483648 to 2147483647, not 1.5");
  EXPECT_EQ(why_refused(R"({"prompt":7})"), "prompt must be a text or a list of token ids, not 7");
  EXPECT_EQ(why_refused(R"({"text":"a","token_ids":[1]})"), "token_ids: a prompt is given already");
  EXPECT_EQ(why_refused(R"({"prompt":"a","n":1,"sampling":{"n":2}})"), "sampling.n is given twice");
  EXPECT_EQ(why_refused(R"({"prompt":"a","logit_bias":{"x":1}})"),
            "sampling.logit_bias: 'x' is not a token id");
  for (const char* key : {" 5", "5 ", "\t5", "+5", "05", "5x", "5.0", "", "-"})
    EXPECT_EQ(why_refused(fmt::format(R"({{"prompt":"a","logit_bias":{{"{}":1}}}})",
                                      key == std::string("\t5") ? "\\t5" : key)),
              fmt::format("sampling.logit_bias: '{}' is not a token id", key));
  for (const char* value : {"\"greedy\"", "5", "null", "[1]"}) {
    const std::string message = fmt::format("sampling must be an object, not {}", value);
    EXPECT_EQ(why_refused(fmt::format(R"({{"prompt":"a","temperature":0,"sampling":{}}})", value)), message);
    EXPECT_EQ(why_refused(fmt::format(R"({{"prompt":"a","sampling":{},"temperature":0}})", value)), message);
    EXPECT_EQ(why_refused(fmt::format(R"({{"prompt":"a","sampling":{}}})", value)), message);
  }
  EXPECT_EQ(why_refused(std::string("{\"prompt\":\"a\"}\0{\"top_pp\":1}", 28)),
            "not valid JSON at byte 15, a NUL byte");
  EXPECT_EQ(why_refused("[1]"), "the request must be an object, not [1]");
  EXPECT_EQ(why_refused("{\"prompt\":\"a\xFF\"}"), "not UTF-8 at byte 12");
  EXPECT_NE(why_refused("{\"prompt\":").find("not valid JSON at byte"), std::string::npos);
}

TEST(ListCounts, AreOfWhatTheParserWouldMake) {
  v1::GenerateRequest wire;
  wire.set_request_id("mine");
  wire.set_text("\x2a\x02\x52\x00");  // looks like a sampling, and is a text
  v1::SamplingParams& sampling = *wire.mutable_sampling();
  sampling.set_temperature(0.5);
  sampling.set_seed(UINT64_MAX);
  for (int32_t id = 0; id < 300; ++id) (*sampling.mutable_logit_bias())[id] = id;
  for (int i = 0; i < 5; ++i) sampling.add_bad_words()->add_ids(i);
  sampling.add_bad_words();
  for (const char* text : {"a", "", "c"}) sampling.add_stop(text);
  const std::string bytes = wire.SerializeAsString();
  const auto expect = [](const WireRequest& seen, int64_t times) {
    EXPECT_EQ(seen.request_id, "mine");
    EXPECT_EQ(seen.lists.logit_bias, 300 * times);
    EXPECT_EQ(seen.lists.bad_words, 6 * times);
    EXPECT_EQ(seen.lists.stop, 3 * times);
  };
  expect(look_at_generate(bytes), 1);
  v1::DumpKvRequest dump;
  *dump.mutable_request() = wire;
  expect(look_at_dump_kv(dump.SerializeAsString()), 1);
  expect(look_at_generate(bytes + bytes), 2);  // the parser merges both
  // A group's fields are unknown ones, and what follows it counts as ever.
  expect(look_at_generate("\x9b\x06" + bytes + "\x9c\x06" + bytes), 1);
  for (size_t cut = 0; cut < bytes.size(); ++cut)
    EXPECT_EQ(look_at_generate(std::string_view(bytes).substr(0, cut)).lists.stop, 0) << "no parser takes it";
}

TEST(ToRequest, TakesAbsentFieldsFromTheDefaults) {
  v1::GenerateRequest wire;
  wire.set_text("a");
  wire.mutable_sampling()->set_temperature(0);
  auto request = to_request(wire, 10);
  ASSERT_TRUE(request);
  EXPECT_EQ(request->sampling.temperature, 0);
  EXPECT_EQ(request->sampling.top_p, SamplingParams().top_p);
  EXPECT_EQ(request->sampling.logprobs, -1);
  EXPECT_TRUE(request->special_as_text);
  Request defaults;
  defaults.sampling.max_tokens = 99;
  defaults.kv_policy = "window:size=8";
  request = to_request(wire, 10, defaults);
  EXPECT_EQ(request->sampling.max_tokens, 99);
  EXPECT_EQ(request->kv_policy, "window:size=8");
  wire.mutable_kv_retention()->set_retention_class(2);
  wire.mutable_kv_retention()->set_ttl_ms(5);
  request = to_request(wire, 10, defaults);
  EXPECT_EQ(request->kv_retention.retention_class, 2);
  EXPECT_EQ(request->kv_retention.ttl_ms, 5);
  EXPECT_EQ(request->kv_retention.cost, 1) << "absent";
}

TEST(ToRequest, RefusesNamesOverTheirLimit) {
  v1::GenerateRequest wire;
  wire.set_text("a");
  wire.set_cache_salt(std::string(257, 's'));
  const auto request = to_request(wire, 10);
  ASSERT_FALSE(request);
  EXPECT_EQ(request.error().message, "cache_salt has 257 bytes; at most 256");
  EXPECT_EQ(request.error().field, "cache_salt");
}

TEST(ToRequest, RefusesARoleOverItsLimit) {
  v1::GenerateRequest wire;
  v1::ChatMessage& message = *wire.mutable_messages()->add_messages();
  message.set_role(std::string(256, 'r'));
  EXPECT_TRUE(to_request(wire, 10).has_value());
  message.set_role(std::string(257, 'r'));
  EXPECT_EQ(to_request(wire, 10).error().message, "messages[0].role has 257 bytes; at most 256");
}

// Clients take 8 KB of metadata: the message escaped, and twice in the details in base64.
TEST(ToGrpcStatus, ALongMessageLeavesRoomForItsCodeAndField) {
  std::string words;
  for (int i = 0; i < 10000; ++i) words += "\xc3\xa9";
  const grpc::Status status = to_grpc_status(invalid(words, "prompt"));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), words.substr(0, 1024) + "...");
  EXPECT_LT(3 * status.error_message().size() + status.error_details().size() * 4 / 3, 7u << 10);
  google::rpc::Status details;
  EXPECT_TRUE(details.ParseFromString(status.error_details()));
  EXPECT_EQ(details.details_size(), 1);
}

TEST(ToRequest, RefusesADeadlineThatIsOver) {
  v1::GenerateRequest wire;
  wire.set_text("a");
  wire.set_deadline_ms(0);
  EXPECT_EQ(to_request(wire, 10).error().message, "deadline_ms is 0; it must be from 1 to 1099511627776");
  wire.set_deadline_ms(INT64_MAX);
  EXPECT_EQ(to_request(wire, 10).error().message,
            "deadline_ms is 9223372036854775807; it must be from 1 to 1099511627776");
}

TEST(JsonOutput, HasTheFormThatScriptsRelyOn) {
  Completion c;
  c.prompt_token_ids = {1, 2};
  Output out;
  out.text = "a\"\n";
  out.token_ids = {5};
  out.finish = FinishReason::kLength;
  out.logprobs = {{.token_id = 5, .logprob = -0.1f, .top = {{5, -0.1f}, {6, -INFINITY}}}};
  out.kv_dump = {{{0, 1}}, {{0}, {1}}};
  c.outputs = {out};
  c.usage = {.prompt_tokens = 2, .completion_tokens = 1, .cached_tokens = 0};
  c.timings = {.queued_ms = 0.5, .first_token_ms = 1.5, .total_ms = 2};
  EXPECT_EQ(
      to_json(c),
      R"({"prompt_token_ids":[1,2],"outputs":[{"index":0,"text":"a\"\n","token_ids":[5],"finish_reason":"length",)"
      R"("logprobs":[{"token_id":5,"logprob":-0.1,"top":[{"token_id":5,"logprob":-0.1},{"token_id":6,"logprob":null}]}],)"
      R"("kv_dump":{"layers":[{"heads":[[0,1]]},{"heads":[[0],[1]]}]}}],)"
      R"("usage":{"prompt_tokens":2,"completion_tokens":1,"cached_tokens":0},)"
      R"("kv":{"blocks_peak":0,"blocks_shared_peak":0,"copies_on_write":0,"waste_percent":0.0,"prefill_mode":""},)"
      R"("timings":{"queued_ms":0.5,"first_token_ms":1.5,"total_ms":2.0}})");
  EXPECT_EQ(to_json(c, "a \"b").substr(0, 46), R"({"request_id":"a \"b","prompt_token_ids":[1,2])");
  EXPECT_EQ(to_json(invalid("bad"), "7"),
            R"({"request_id":"7","error":{"code":"INVALID_ARGUMENT","message":"bad"}})");
}

// ---- flags ----

struct Bound {
  int32_t max_tokens = 16;
  bool prefix_cache = true;
  std::string device = "auto";
  std::vector<int32_t> ids;
  std::vector<std::string> stop;
  std::optional<uint64_t> seed;
};

Result<bool> parse(Bound& bound, const std::vector<std::string>& arguments) {
  Flags flags("quire test", "A command of this test.");
  flags.add("max-tokens", bound.max_tokens, "Most new tokens");
  flags.add("prefix-cache", bound.prefix_cache, "Reuse prefixes");
  flags.add_choice("device", bound.device, {"auto", "cpu"}, "Where");
  flags.add("ids", bound.ids, "Token ids");
  flags.add("stop", bound.stop, "Stop texts");
  flags.add("seed", bound.seed, "Seed");
  flags.require("device");
  flags.add_config();
  return flags.parse(arguments);
}

std::string write_config(const std::string& json) {
  const std::string path = testing::TempDir() + "/quire_config.json";
  std::ofstream(path) << json;
  return path;
}

TEST(Flags, ReadEachKindOfValue) {
  Bound bound;
  const auto parsed = parse(bound, {"--device", "cpu", "--ids", "1,2,3", "--stop", "a", "--stop", "b,c",
                                    "--seed", "18446744073709551615", "--prefix-cache=false"});
  ASSERT_TRUE(parsed) << parsed.error().message;
  EXPECT_EQ(bound.ids, (std::vector<int32_t>{1, 2, 3}));
  EXPECT_EQ(bound.stop, (std::vector<std::string>{"a", "b,c"}));
  EXPECT_EQ(bound.seed, UINT64_MAX);
  EXPECT_FALSE(bound.prefix_cache);
}

TEST(Flags, ReadWholeNumbersAsDecimalWhateverZerosStandBeforeThem) {
  Bound bound;
  const auto parsed = parse(bound, {"--device", "cpu", "--max-tokens", "010", "--ids", "010,08,-09,000,0",
                                    "--seed", "00018446744073709551615"});
  ASSERT_TRUE(parsed) << parsed.error().message;
  EXPECT_EQ(bound.max_tokens, 10);
  EXPECT_EQ(bound.ids, (std::vector<int32_t>{10, 8, -9, 0, 0}));
  EXPECT_EQ(bound.seed, UINT64_MAX);
  setenv("QUIRE_MAX_TOKENS", "-020", 1);
  EXPECT_TRUE(parse(bound, {"--device", "cpu"}));
  EXPECT_EQ(bound.max_tokens, -20);
  unsetenv("QUIRE_MAX_TOKENS");
  for (const char* text : {"0x10", "00x10", "010x", "0b11", "", "-", "+5", "1_000", "1'000", " 5", "5 "}) {
    const auto no = parse(bound, {"--device", "cpu", "--max-tokens", text});
    ASSERT_FALSE(no) << text;
    EXPECT_NE(no.error().message.find("--max-tokens: '" + std::string(text) + "' is not an integer from"),
              std::string::npos)
        << no.error().message;
  }
}

TEST(Flags, PreferCommandLineThenEnvironmentThenFile) {
  const std::string path =
      write_config(R"({"max_tokens": 1, "device": "cpu", "prefix-cache": false, "ids": [7]})");
  Bound bound;
  ASSERT_TRUE(parse(bound, {"--config", path})) << "a required flag may stand in the file";
  EXPECT_EQ(bound.max_tokens, 1);
  EXPECT_FALSE(bound.prefix_cache);
  EXPECT_EQ(bound.ids, std::vector<int32_t>{7});
  setenv("QUIRE_MAX_TOKENS", "2", 1);
  EXPECT_TRUE(parse(bound, {"--config", path}));
  EXPECT_EQ(bound.max_tokens, 2);
  EXPECT_TRUE(parse(bound, {"--config=" + path, "--max-tokens", "3"}));
  EXPECT_EQ(bound.max_tokens, 3);
  unsetenv("QUIRE_MAX_TOKENS");
}

TEST(Flags, NameWhatIsWrong) {
  Bound bound;
  const auto why = [&](const std::vector<std::string>& arguments) {
    const auto parsed = parse(bound, arguments);
    return parsed ? "" : parsed.error().message;
  };
  EXPECT_NE(why({"--device", "tpu"}).find("'tpu' is not one of auto, cpu"), std::string::npos);
  EXPECT_NE(why({"--device", "cpu", "--max-tokens", "x"}).find("--max-tokens: 'x' is not an integer from"),
            std::string::npos);
  EXPECT_NE(why({"--device", "cpu", "--max-tokens", "2147483648"}).find("from -2147483648 to 2147483647"),
            std::string::npos);
  EXPECT_NE(why({"--device", "cpu", "--seed", "-1"}).find("'-1' is not an integer from 0 to"),
            std::string::npos);
  EXPECT_NE(why({"--device", "cpu", "--ids", "5,2147483648"}).find("'2147483648' is not an integer"),
            std::string::npos);
  EXPECT_NE(why({"--device", "cpu", "--nonsense"}).find("--nonsense"), std::string::npos);
  EXPECT_NE(why({}).find("device"), std::string::npos);
  EXPECT_NE(why({"--config", write_config(R"({"max_tokenz": 1})")}).find("unknown key 'max_tokenz'"),
            std::string::npos);
  EXPECT_NE(why({"--config", write_config(R"({"max_tokens": "1"})")}).find("'max_tokens' is \"1\""),
            std::string::npos);
  for (const auto& [json, wanted] : std::vector<std::pair<std::string, std::string>>{
           {R"({"max_tokens": "1"})",
            "'max_tokens' is \"1\"; it must be an integer from -2147483648 to 2147483647"},
           {R"({"max_tokens": 3e9})", "it must be an integer from -2147483648 to 2147483647"},
           {R"({"prefix_cache": 1})", "'prefix_cache' is 1; it must be true or false"},
           {R"({"device": 3})", "'device' is 3; it must be one of auto, cpu"},
           {R"({"ids": 7})", "'ids' is 7; it must be a list, each entry an integer from"},
           {R"({"ids": [7, "8"]})", "'ids' is [7,\"8\"]; it must be a list, each entry an integer from"},
           {R"({"stop": "a"})", "'stop' is \"a\"; it must be a list, each entry a text in quotes"},
           {R"({"max_tokens": 2, "max-tokens": 3})", "is there twice, with a dash and with _"},
           {R"({"seed": -1})", "'seed' is -1; it must be an integer from 0 to 18446744073709551615"}})
    EXPECT_NE(why({"--config", write_config(json)}).find(wanted), std::string::npos)
        << why({"--config", write_config(json)});
  EXPECT_NE(why({"--config", write_config(R"({"device": "tpu"})")}).find("'tpu' is not one of"),
            std::string::npos);
  EXPECT_NE(why({"--config", "/nonexistent.json"}).find("No such file"), std::string::npos);
}

TEST(Flags, ARequiredTextIsNotEmpty) {
  std::string model;
  Flags flags("quire test", "A command of this test.");
  flags.add("model", model, "Directory");
  flags.require("model");
  const auto parsed = flags.parse({"--model", ""});
  ASSERT_FALSE(parsed);
  EXPECT_EQ(parsed.error().message, "--model is empty");
}

TEST(Flags, OfARequestAreRefusedWhereTheyAreNoUtf8RepeatAnIdOrHaveAnEmptyOne) {
  const auto why = [](const std::function<void(RequestFlags&)>& change) {
    RequestFlags flags;
    change(flags);
    const Result<Request> request = finish(flags);
    return request ? "" : request.error().message;
  };
  EXPECT_EQ(why([](RequestFlags& f) { f.request.sampling.stop = {"a", "b\xff"}; }),
            "--stop is not UTF-8 at byte 1");
  EXPECT_EQ(why([](RequestFlags& f) { f.request.tenant = std::string("\xff"); }),
            "--tenant is not UTF-8 at byte 0");
  EXPECT_EQ(why([](RequestFlags& f) { f.request.cache_salt = std::string("\xff"); }),
            "--cache-salt is not UTF-8 at byte 0");
  EXPECT_EQ(why([](RequestFlags& f) { f.logit_bias = {"5:60", "6:1", "5:60"}; }),
            "--logit-bias has token id 5 more than once");
  for (const char* words : {"1,", ",1", "1,,2"})
    EXPECT_NE(why([&](RequestFlags& f) { f.bad_words = {words}; }).find("is not a list of token ids"),
              std::string::npos)
        << words;
  EXPECT_EQ(why([](RequestFlags& f) { f.bad_words = {"1,2"}, f.logit_bias = {"5:60"}; }), "");
}

TEST(Flags, HelpTellsDefaultAndEnvironmentOfEachFlag) {
  Bound bound;
  testing::internal::CaptureStdout();
  const auto parsed = parse(bound, {"--help"});
  const std::string help = testing::internal::GetCapturedStdout();
  ASSERT_TRUE(parsed);
  EXPECT_FALSE(*parsed);
  for (const char* part : {"[default: 16]", "[env: QUIRE_MAX_TOKENS]", "[default: on]", "[env: QUIRE_DEVICE]",
                           "[env: QUIRE_CONFIG]"})
    EXPECT_NE(help.find(part), std::string::npos) << part << " is missing in:\n" << help;
}

}  // namespace
}  // namespace quire::server
