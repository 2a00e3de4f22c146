// Method: definitions against the code, and exhaustive loops where a domain is small (all 65536 half floats).
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>
#include <thread>
#include <vector>

#include "quire/result.h"
#include "quire/sampling_params.h"
#include "src/base/block_size.h"
#include "src/base/check.h"
#include "src/base/check_note.h"
#include "src/base/dtype.h"
#include "src/base/engine_config.h"
#include "src/base/json_text.h"
#include "src/base/log.h"
#include "src/base/random.h"
#include "src/base/text_file.h"
#include "src/base/threads.h"
#include "src/base/utf8.h"

namespace quire {
namespace {

TEST(CheckDeathTest, SaysWhatTheThreadWasAt) {
  const auto fail = [](std::string_view note) {
    note_for_check("an older note");
    note_for_check(note);
    check(false, "two is not three");
  };
  EXPECT_DEATH(fail("plan queued last: step=7"), "two is not three\nquire: plan queued last: step=7\n$");
  EXPECT_DEATH(fail(""), "two is not three\n$");
  EXPECT_DEATH(fail(std::string(5000, 'a')), "two is not three\nquire: a{1000}\n$");
}

TEST(ResultTest, GivesBackWhatItWasMadeOf) {
  Result<std::string> value = std::string("text");
  ASSERT_TRUE(value.has_value());
  EXPECT_EQ(*value, "text");
  EXPECT_EQ(value->size(), 4u);
  value.value() += "s";
  EXPECT_EQ(std::move(value).value(), "texts");
  const Result<std::string> failed = error(Code::kNotFound, "no such file");
  ASSERT_FALSE(failed.has_value());
  EXPECT_EQ(failed.error().code, Code::kNotFound);
}

TEST(ResultDeathTest, WhatItDoesNotHoldEndsTheProcess) {
  Result<int> failed = error(Code::kNotFound, "no such file: a.json");
  const auto message = "holds an error was asked for its value: no such file: a.json";
  EXPECT_DEATH(failed.value() = 1, message);
  EXPECT_DEATH(*failed = 1, message);
  EXPECT_DEATH(std::move(failed).value(), message);
  const Result<std::string> text = error(Code::kInternal, "cut short");
  EXPECT_DEATH((void)text->size(), "asked for its value: cut short");
  const Result<int> value = 3;
  EXPECT_DEATH((void)value.error(), "holds a value was asked for its error");
}

TEST(ResultDeathTest, WhoAskedIsNamedByTheCodesAddress) {
  const Result<int> failed = error(Code::kNotFound, "no such file: a.json");
  EXPECT_DEATH((void)*failed,
               "^quire: asked from [^ ]*base_test 0x[0-9a-f]+\n(quire: asked from .*\n)+"
               "quire: check failed at .*: a result that holds an error");
}

TEST(CheckDeathTest, AThreadThatNotedNothingSaysWhatAnotherWasAt) {
  const auto fail_elsewhere = [] {
    note_for_check("plan queued last: step=7");
    std::thread([] { check(false, "two is not three"); }).join();
  };
  EXPECT_DEATH(fail_elsewhere(), "two is not three\nquire: on another thread: plan queued last: step=7\n$");
}

TEST(Threads, EachPartOfSharedWorkIsDoneOnce) {
  for (const int64_t parts : {0, 1, 2, 7}) {
    std::vector<std::atomic<int>> done(8);
    run_side_by_side(parts, [&](int64_t part) { ++done[static_cast<size_t>(part)]; });
    for (int64_t part = 0; part < 8; ++part) EXPECT_EQ(done[static_cast<size_t>(part)], part < parts ? 1 : 0);
  }
}

// In a process of its own, that has room for one stack more and not for two.
TEST(ThreadsDeathTest, WhatTheSystemDoesNotStartIsAnErrorOrDoneWithout) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's own memory does not fit in a limited address space";
#endif
  const auto try_it = [] {
    alarm(20);
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0 || pthread_attr_setstacksize(&attributes, 512 << 20) != 0 ||
        pthread_setattr_default_np(&attributes) != 0)
      _exit(2);
    const rlimit little{.rlim_cur = 1 << 30, .rlim_max = 1 << 30};
    if (setrlimit(RLIMIT_AS, &little) != 0) _exit(3);
    std::atomic<int> done = 0;
    run_side_by_side(5, [&](int64_t) { ++done; });
    if (done != 5) _exit(4);
    if (const Status room = check_thread_room("one", 1); !room) _exit(5);
    const Status room = check_thread_room("a library", 3);
    if (room) _exit(6);
    std::fprintf(stderr, "%s\n", room.error().message.c_str());
    _exit(room.error().code == Code::kResourceExhausted ? 0 : 7);
  };
  EXPECT_EXIT(try_it(), testing::ExitedWithCode(0),
              "the system starts no thread for a library .2 of 3.: Resource temporarily unavailable.*; "
              "RLIMIT_AS .ulimit -v. is 1073741824");
}

TEST(EngineConfig, TheFieldOutOfRangeIsNamedWithItsLimits) {
  const auto why_not = [](auto change) {
    EngineConfig config;
    change(config);
    const Status s = validate(config);
    return s ? "" : s.error().field + ": " + s.error().message;
  };
  EXPECT_EQ(why_not([](EngineConfig&) {}), "");
  EXPECT_EQ(why_not([](EngineConfig& c) { c.drain_timeout_ms = INT64_MAX; }),
            "drain_timeout_ms: drain_timeout_ms is 9223372036854775807; it must be from 0 to 1099511627776");
  EXPECT_EQ(why_not([](EngineConfig& c) { c.max_queued_kv_factor = 1e30; }),
            "max_queued_kv_factor: max_queued_kv_factor is 1e+30; it must be above 0 and at most 1000000");
  EXPECT_EQ(why_not([](EngineConfig& c) { c.max_kv_retention_cost = 0.5; }),
            "max_kv_retention_cost: max_kv_retention_cost is 0.5; it must be from 1 to 1000000");
  EXPECT_EQ(why_not([](EngineConfig& c) { c.max_priority_wait_ms = 0; }),
            "max_priority_wait_ms: max_priority_wait_ms is 0; it must be from 1 to 1099511627776");
  EXPECT_EQ(
      why_not([](EngineConfig& c) { c.max_step_tokens = 10; }),
      "max_step_tokens: max_step_tokens is 10 and max_sequences 256; a step must have a token for every "
      "running sequence");
  EXPECT_EQ(why_not([](EngineConfig& c) { c.preemption_mode = "never"; }),
            "preemption_mode: preemption_mode is `never`; it must be auto, swap or recompute");
}

TEST(Utf8, AnEscapedTextIsOneLineWithoutControlCharacters) {
  EXPECT_EQ(escape_controls("a \xc3\xa9 \\n \xf0\x9f\x98\x80"), "a \xc3\xa9 \\n \xf0\x9f\x98\x80");
  EXPECT_EQ(escape_controls("a\nb\r\t\x1b[31m\x7f"), "a\\nb\\u000d\\u0009\\u001b[31m\\u007f");
  EXPECT_EQ(escape_controls("\xc2\x9b\xc2\xa0\xc2"), "\\u009b\xc2\xa0\xc2")
      << "U+009B is one, U+00A0 is none";
  EXPECT_EQ(escape_controls(std::string_view("\0", 1)), "\\u0000");
}

TEST(Utf8, ACutTextEndsWithAWholeCharacter) {
  EXPECT_EQ(cut_text("abc", 3), "abc");
  EXPECT_EQ(cut_text("abcd", 3), "abc...");
  EXPECT_EQ(cut_text("a\xc3\xa9\xf0\x9f\x98\x80", 6), "a\xc3\xa9...") << "not half of four bytes";
}

std::string logged(LogFormat format, std::string_view text) {
  testing::internal::CaptureStderr();
  configure_log(format, LogLevel::kInfo);
  log_line(LogLevel::kInfo, "said", {{"text", text}});
  configure_log(LogFormat::kKeyValue, LogLevel::kInfo);
  const std::string line = testing::internal::GetCapturedStderr();
  return line.substr(line.find("text"));
}

// Names come from clients, who are not to draw on an operator's terminal nor to break a line's form.
TEST(Log, NoControlCharacterAndNoBadByteReachesItRaw) {
  struct Case {
    std::string text, shown;
  };
  const std::string bad = "\xef\xbf\xbd";
  for (const Case& c :
       {Case{"plain", "plain"}, Case{"caf\xc3\xa9", "caf\xc3\xa9"}, Case{"\nz", R"("\u000az")"},
        Case{"\x7fz", R"("\u007fz")"}, Case{"\xc2\x9b[2Jz", R"("\u009b[2Jz")"},
        Case{"\xffz", '"' + bad + "z\""}, Case{"cut \xe2\x82", "\"cut " + bad + '"'}}) {
    EXPECT_EQ(logged(LogFormat::kKeyValue, c.text), "text=" + c.shown + "\n");
    const std::string quoted = c.shown.starts_with('"') ? c.shown : '"' + c.shown + '"';
    EXPECT_EQ(logged(LogFormat::kJson, c.text), "text\":" + quoted + "}\n");
  }
}

// GetLoad tells it, in a string.
TEST(EngineConfig, ADirectoryThatIsNotUtf8IsRefused) {
  EngineConfig config;
  config.disk_kv_dir = "/tmp/\xff";
  config.disk_kv_bytes = int64_t{1} << 30;
  const Status s = validate(config);
  ASSERT_FALSE(s);
  EXPECT_EQ(s.error().message, "disk_kv_dir is not UTF-8 at byte 5");
  EXPECT_EQ(s.error().field, "disk_kv_dir");
  config.disk_kv_dir = "/tmp/\xc3\xa9";
  EXPECT_TRUE(validate(config));
}

TEST(JsonText, WhatNestsTooDeepIsRefusedBeforeItIsATree) {
  const auto nested = [](int depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_TRUE(parse_json(nested(kMaxJsonDepth)).has_value());
  for (const int depth : {kMaxJsonDepth + 1, 1'000'000})
    EXPECT_EQ(parse_json(nested(depth)).error().message, "nested more than 64 deep");
  EXPECT_FALSE(parse_json(std::string(1'000'000, '[')).has_value());
  EXPECT_TRUE(parse_json("\"" + std::string(100, '[') + R"(\"[)" + "\"").has_value()) << "a string's text";
  EXPECT_EQ(parse_json("[1,").error().message, "not valid JSON at byte 4");
  EXPECT_EQ(parse_json("[\"a\xff\"]").error().message, "not valid JSON at byte 4, which is not UTF-8");
  EXPECT_EQ(parse_json("[1,}\"\xff\"]").error().message, "not valid JSON at byte 4");
  EXPECT_EQ(shown(*parse_json(R"(["\u00e9", 1])"), 5), R"(["\u0...)");
}

TEST(JsonText, ANulByteEndsNoText) {
  using std::string_view_literals::operator""sv;
  EXPECT_EQ(parse_json("{}\0 garbage"sv).error().message, "not valid JSON at byte 3, a NUL byte");
  EXPECT_EQ(parse_json("[1]\0"sv).error().message, "not valid JSON at byte 4, a NUL byte");
  EXPECT_EQ(parse_json("[\"a\0b\"]"sv).error().message, "not valid JSON at byte 4, a NUL byte");
  EXPECT_EQ(parse_unambiguous_json("{}\0"sv).error().message, "not valid JSON at byte 3, a NUL byte");
  EXPECT_TRUE(parse_json(R"(["a\u0000b"])").has_value());
}

TEST(JsonText, AKeyGivenTwiceIsNamed) {
  EXPECT_EQ(parse_unambiguous_json(R"({"a": 1, "b": {"a": 2}, "": [{}, {"a": 3}]})")->size(), 3u);
  EXPECT_EQ(parse_unambiguous_json(R"({"a": 1, "a": 1})").error().message, "key \"a\" is given twice");
  EXPECT_EQ(parse_unambiguous_json(R"({"b": [{"": 1, "c": {}, "": 1}], "b": 2})").error().message,
            "key \"\" is given twice")
      << "the first that is";
  EXPECT_EQ(parse_unambiguous_json(R"({"a": 1, "a": 1)").error().message, "not valid JSON at byte 16");
  EXPECT_EQ(parse_unambiguous_json("[1e400]").error().message,
            "not valid JSON: the number 1e400 is out of range");
}

TEST(TextFile, SaysWhatIsWrongWithWhatItCannotRead) {
  const std::string dir = testing::TempDir(), loop = dir + "/quire_loop", away = dir + "/quire_away";
  std::filesystem::remove(loop);
  std::filesystem::remove(away);
  std::filesystem::create_symlink("quire_loop", loop);
  std::filesystem::create_symlink("quire_nowhere", away);
  EXPECT_TRUE(entry_exists(loop));
  EXPECT_EQ(read_text_file(loop, 9).error().message, loop + ": Too many levels of symbolic links");
  EXPECT_TRUE(entry_exists(away));
  EXPECT_EQ(read_text_file(away, 9).error().code, Code::kNotFound);
  EXPECT_FALSE(entry_exists(dir + "/quire_nowhere"));
  EXPECT_EQ(read_text_file(dir, 9).error().message, dir + ": it is no regular file");
  const std::string file = dir + "/quire_file";
  std::ofstream(file) << "123456789";
  EXPECT_EQ(*read_text_file(file, 9), "123456789");
  EXPECT_EQ(read_text_file(file, 8).error().message, file + ": more than 8 bytes");
}

TEST(Dtype, EveryF16ValueSurvivesARoundTrip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float f = f16_to_f32(static_cast<uint16_t>(bits));
    if (std::isnan(f)) {
      EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(f))));
    } else {
      ASSERT_EQ(f32_to_f16(f), bits) << bits;
    }
  }
}

TEST(Dtype, F16RoundsTiesToEvenAndOverflowsToInfinity) {
  EXPECT_EQ(f32_to_f16(1.0f + 0x1p-11f), 0x3c00);      // half way between 1 and 1 + 2^-10: even is 1
  EXPECT_EQ(f32_to_f16(1.0f + 3 * 0x1p-11f), 0x3c02);  // half way: even is 1 + 2 * 2^-10
  EXPECT_EQ(f32_to_f16(65519.0f), 0x7bff);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(f32_to_f16(0x1p-25f), 0x0000);  // half of the least subnormal: even is 0
  EXPECT_EQ(f32_to_f16(0x1.8p-24f), 0x0002);
}

TEST(Dtype, Bf16RoundsToNearestEven) {
  EXPECT_EQ(f32_to_bf16(1.0f), 0x3f80);
  EXPECT_EQ(f32_to_bf16(1.0f + 0x1p-8f), 0x3f80);
  EXPECT_EQ(f32_to_bf16(1.0f + 3 * 0x1p-8f), 0x3f82);
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::numeric_limits<float>::quiet_NaN()))));
}

// The first vector of the Random123 known-answer tests for philox4x32-10 (Salmon et al. 2011).
TEST(Random, PhiloxGivesThePublishedVectors) {
  const auto zero = philox4x32({0, 0, 0, 0}, {0, 0});
  EXPECT_EQ(zero[0], 0x6627e8d5u);
  EXPECT_EQ(zero[1], 0xe169c58du);
  EXPECT_EQ(zero[2], 0xbc57ac4cu);
  EXPECT_EQ(zero[3], 0x9b00dbd8u);
  const auto ones = philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u});
  EXPECT_EQ(ones[0], 0x408f276du);
}

TEST(Random, UniformNeverTouchesItsEnds) {
  EXPECT_GT(uniform_open(0), 0.0f);
  EXPECT_LT(uniform_open(~0u), 1.0f);
}

TEST(SamplingParams, DefaultsAreValid) {
  EXPECT_TRUE(validate(SamplingParams{}, SamplingLimits{}));
}

struct BadCase {
  const char* field;
  void (*spoil)(SamplingParams&);
};

class BadSampling : public testing::TestWithParam<BadCase> {};

TEST_P(BadSampling, IsRefusedAndNamesItsField) {
  SamplingParams params;
  GetParam().spoil(params);
  SamplingLimits limits;
  limits.vocab_size = 100;
  const Status status = validate(params, limits);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, Code::kInvalidArgument);
  EXPECT_EQ(status.error().field, std::string("sampling.") + GetParam().field);
  EXPECT_NE(status.error().message.find(GetParam().field), std::string::npos) << status.error().message;
}

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

INSTANTIATE_TEST_SUITE_P(
    All, BadSampling,
    testing::Values(
        BadCase{"temperature", [](SamplingParams& p) { p.temperature = -0.1; }},
        BadCase{"temperature", [](SamplingParams& p) { p.temperature = kNan; }},
        BadCase{"top_p", [](SamplingParams& p) { p.top_p = 0; }},
        BadCase{"top_p", [](SamplingParams& p) { p.top_p = 1.01; }},
        BadCase{"top_k", [](SamplingParams& p) { p.top_k = -1; }},
        BadCase{"min_p", [](SamplingParams& p) { p.min_p = 2; }},
        BadCase{"typical_p", [](SamplingParams& p) { p.typical_p = 0; }},
        BadCase{"repetition_penalty", [](SamplingParams& p) { p.repetition_penalty = 0; }},
        BadCase{"presence_penalty", [](SamplingParams& p) { p.presence_penalty = 2.5; }},
        BadCase{"frequency_penalty", [](SamplingParams& p) { p.frequency_penalty = kNan; }},
        BadCase{"n", [](SamplingParams& p) { p.n = 0; }}, BadCase{"n", [](SamplingParams& p) { p.n = 9; }},
        BadCase{"best_of", [](SamplingParams& p) { p.n = 3, p.best_of = 2; }},
        BadCase{"n", [](SamplingParams& p) { p.n = 3, p.beam_width = 2; }},
        BadCase{"best_of", [](SamplingParams& p) { p.n = 2, p.best_of = 2, p.beam_width = 2; }},
        BadCase{"max_tokens", [](SamplingParams& p) { p.max_tokens = -1; }},
        BadCase{"min_tokens", [](SamplingParams& p) { p.min_tokens = 17; }},
        BadCase{"logprobs", [](SamplingParams& p) { p.logprobs = 21; }},
        BadCase{"stop", [](SamplingParams& p) { p.stop = {""}; }},
        BadCase{"stop", [](SamplingParams& p) { p.stop.assign(17, "x"); }},
        BadCase{"stop", [](SamplingParams& p) { p.stop = {std::string(257, 'x')}; }},
        BadCase{"stop_token_ids", [](SamplingParams& p) { p.stop_token_ids = {100}; }},
        BadCase{"logit_bias", [](SamplingParams& p) { p.logit_bias = {{-1, 0.0}}; }},
        BadCase{"logit_bias", [](SamplingParams& p) { p.logit_bias = {{1, kNan}}; }},
        BadCase{"logit_bias", [](SamplingParams& p) { p.logit_bias = {{5, 60.0}, {6, 1.0}, {5, 60.0}}; }},
        BadCase{"allowed_token_ids", [](SamplingParams& p) { p.allowed_token_ids = {100}; }},
        BadCase{"bad_words", [](SamplingParams& p) { p.bad_words = {{}}; }},
        BadCase{"bad_words", [](SamplingParams& p) { p.bad_words.assign(257, {1}); }},
        BadCase{"bad_words", [](SamplingParams& p) { p.bad_words = {std::vector<int32_t>(65, 1)}; }},
        BadCase{"stop_token_ids", [](SamplingParams& p) { p.stop_token_ids.assign(257, 1); }},
        BadCase{"allowed_token_ids", [](SamplingParams& p) { p.allowed_token_ids.assign(101, 1); }},
        BadCase{"forced_token_ids", [](SamplingParams& p) { p.forced_token_ids = {100}; }},
        BadCase{"forced_token_ids", [](SamplingParams& p) { p.forced_token_ids.assign(17, 1); }},
        BadCase{"forced_token_ids", [](SamplingParams& p) { p.forced_token_ids = {1}, p.beam_width = 2; }}));

TEST(SamplingParams, AValueOverALimitThatCanBeSetNamesTheLimit) {
  struct Case {
    const char* limit;
    void (*spoil)(SamplingParams&);
  };
  for (const Case& c : {Case{"(max_n)", [](SamplingParams& p) { p.n = 9; }},
                        Case{"(max_n)", [](SamplingParams& p) { p.best_of = 9; }},
                        Case{"(max_beam_width)", [](SamplingParams& p) { p.beam_width = 9; }},
                        Case{"(max_tokens)", [](SamplingParams& p) { p.min_tokens = 17; }},
                        Case{"(max_logprobs)", [](SamplingParams& p) { p.logprobs = 21; }},
                        Case{"(max_logprobs)", [](SamplingParams& p) { p.prompt_logprobs = 21; }},
                        Case{"(max_stop_strings)", [](SamplingParams& p) { p.stop.assign(17, "x"); }},
                        Case{"(max_bad_words)", [](SamplingParams& p) { p.bad_words.assign(257, {1}); }}}) {
    SamplingParams params;
    c.spoil(params);
    const Status status = validate(params, SamplingLimits{});
    ASSERT_FALSE(status) << c.limit;
    EXPECT_NE(status.error().message.find(c.limit), std::string::npos) << status.error().message;
  }
}

TEST(SamplingParams, WhichTextOrSequenceIsBadIsSaid) {
  SamplingParams stops, words;
  stops.stop = {"x", ""};
  words.bad_words = {{1}, {2}, {}};
  EXPECT_TRUE(validate(stops, SamplingLimits{}).error().message.starts_with("stop text 1 has 0 bytes"));
  EXPECT_TRUE(
      validate(words, SamplingLimits{}).error().message.starts_with("sequence 2 of bad_words has 0 tokens"));
}

TEST(SamplingParams, AnIdIsNotComparedWithAVocabularyThatIsNotKnown) {
  SamplingParams params;
  params.stop_token_ids = {1 << 30};
  SamplingLimits limits;
  EXPECT_TRUE(validate(params, limits));
  params.stop_token_ids = {-1};
  EXPECT_EQ(validate(params, limits).error().message, "stop_token_ids has token id -1; ids run from 0");
  limits.vocab_size = 100;
  EXPECT_EQ(validate(params, limits).error().message,
            "stop_token_ids has token id -1; ids of this model run from 0 to 99");
}

TEST(BlockSize, AgreesWithDivision) {
  for (const int32_t tokens : {1, 8, 16, 64}) {
    const BlockSize size(tokens);
    EXPECT_EQ(size.tokens(), tokens);
    for (int32_t n = 0; n < 3 * tokens + 2; ++n) {
      EXPECT_EQ(size.block_of(n), n / tokens);
      EXPECT_EQ(size.offset_of(n), n % tokens);
      EXPECT_EQ(size.first_slot(n), n * tokens);
      EXPECT_EQ(size.blocks_for(n), (n + tokens - 1) / tokens);
      EXPECT_EQ(size.whole_blocks(n), n / tokens * tokens);
    }
  }
}

TEST(BlockSizeDeath, RefusesWhatIsNoPowerOfTwo) {
  EXPECT_DEATH(BlockSize(12), "a block's tokens are a power of two");
  EXPECT_DEATH(BlockSize(0), "a block's tokens are a power of two");
}

}  // namespace
}  // namespace quire
