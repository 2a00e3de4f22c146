// Tokenizers against the stored pairs of text and ids of nine public vocabularies (all of them), and against
// files that are wrong. The demo model's tokenizer stands in where the data folder is absent.
#include <thread>

#include "tests/unit/text_fixture.h"

namespace quire::test {
namespace {

using Json = nlohmann::json;

void expect_all_pairs(const std::string& name, bool use_model) {
  const Tokenizer* const tokenizer = open_shared(name, use_model);
  ASSERT_NE(tokenizer, nullptr);
  const Json pairs = Json::parse(read_file(shared_dir() + "/tokenizers/" + name + "/tests.json"));
  ASSERT_FALSE(pairs.empty());
  for (const Json& pair : pairs) {
    const auto text = pair["text"].get<std::string>();
    const auto ids = tokenizer->encode(text, /*add_special_tokens=*/false, /*special_as_text=*/true);
    ASSERT_TRUE(ids.has_value()) << ids.error().message;
    EXPECT_EQ(*ids, pair["ids"].get<std::vector<int32_t>>()) << name << ": " << pair["text"];
  }
}

// The limit is exact, and what is within it is not changed by it.
void expect_exact_limits(const std::string& name, bool use_model) {
  const Tokenizer* const tokenizer = open_shared(name, use_model);
  ASSERT_NE(tokenizer, nullptr);
  for (const Json& pair : Json::parse(read_file(shared_dir() + "/tokenizers/" + name + "/tests.json"))) {
    const auto text = pair["text"].get<std::string>();
    const auto ids = pair["ids"].get<std::vector<int32_t>>();
    const auto within = tokenizer->encode(text, false, true, ids.size());
    ASSERT_TRUE(within.has_value()) << name << ": " << within.error().message << ": " << text;
    EXPECT_EQ(*within, ids) << name << ": " << text;
    if (ids.empty()) continue;
    EXPECT_TRUE(is_too_long(tokenizer->encode(text, false, true, ids.size() - 1))) << name << ": " << text;
    EXPECT_TRUE(is_too_long(tokenizer->encode(text, false, true, ids.size() / 2))) << name << ": " << text;
  }
}

// Told from the bytes alone: the message says so. Not phi-3's: its "</s>" takes along any number of spaces.
void expect_told_by_bytes(const Tokenizer& tokenizer, const std::string& name) {
  const auto refused = tokenizer.encode(std::string(1 << 20, 'a') + "\u00e9", true, true, 100);
  ASSERT_TRUE(is_too_long(refused)) << name;
  if (name == "phi-3") return;
  EXPECT_NE(refused.error().message.find("none stands for more than"), std::string::npos)
      << name << ": " << refused.error().message;
  EXPECT_NE(refused.error().message.find("1048578 bytes has more than 100 tokens"), std::string::npos)
      << name << ": " << refused.error().message;
}

TEST_P(SharedTokenizer, GivesTheIdsOfEveryStoredText) {
  expect_all_pairs(GetParam(), false);
}

TEST_P(SharedTokenizer, RefusesWhatIsOneIdTooLong) {
  expect_exact_limits(GetParam(), false);
}

TEST_P(SharedTokenizer, TellsAFarTooLongTextByItsBytes) {
  const Tokenizer* const tokenizer = open_shared(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  expect_told_by_bytes(*tokenizer, GetParam());
}

// Normalisers change some texts (NFC, and a leading space where the encoding strips one), so equal ids are
// what decoding promises.
TEST_P(SharedTokenizer, DecodedTextEncodesToTheSameIds) {
  const Tokenizer* const tokenizer = open_shared(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  for (const Json& pair :
       Json::parse(read_file(shared_dir() + "/tokenizers/" + GetParam() + "/tests.json"))) {
    const auto ids = pair["ids"].get<std::vector<int32_t>>();
    const auto text = tokenizer->decode(ids, false);
    ASSERT_TRUE(text.has_value());
    if (GetParam() != "qwen2.5") {
      EXPECT_EQ(*text, pair["text"].get<std::string>());
    }
    EXPECT_EQ(*tokenizer->encode(*text, false, true), ids) << pair["text"];
  }
}

TEST_P(SharedTokenizer, GuardedTextHasNoSpecialTokens) {
  const Tokenizer* const tokenizer = open_shared(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  for (int32_t id = 0; id < tokenizer->vocab_size(); ++id) {
    const TokenBytes token = tokenizer->token_bytes(id);
    if (!token.special) continue;
    const std::string text = "a " + *tokenizer->token_text(id) + *tokenizer->token_text(id) + " b";
    EXPECT_EQ(*tokenizer->encode_guarded(*tokenizer->guard(text)), *tokenizer->encode(text, false, true))
        << text;
  }
}

INSTANTIATE_TEST_SUITE_P(Every, SharedTokenizer, testing::ValuesIn(shared_names()), shared_test_name);

TEST(SentencePiece, GivesTheIdsOfEveryStoredText) {
  if (!has_shared()) GTEST_SKIP() << "no " << shared_dir() << "/tokenizers (set QUIRE_SHARED)";
  expect_all_pairs("llama2", /*use_model=*/true);
  expect_all_pairs("mistral-v3", /*use_model=*/true);
}

TEST(SentencePiece, RefusesWhatIsTooLong) {
  if (!has_shared()) GTEST_SKIP() << "no " << shared_dir() << "/tokenizers (set QUIRE_SHARED)";
  for (const std::string name : {"llama2", "mistral-v3"}) {
    expect_exact_limits(name, /*use_model=*/true);
    expect_told_by_bytes(*open_shared(name, true), name);
  }
}

// The samples were encoded part by part between control tokens, each with its own space mark.
TEST(SentencePiece, EncodesWholeChatsWithControlTokens) {
  if (!has_shared()) GTEST_SKIP() << "no " << shared_dir() << "/tokenizers (set QUIRE_SHARED)";
  const Tokenizer* const tokenizer = open_shared("mistral-v3");
  ASSERT_NE(tokenizer, nullptr);
  const Json samples = Json::parse(read_file(shared_dir() + "/tokenizers/mistral-v3/chat_samples.json"));
  const std::string mark = "\u2581";
  const auto replace_all = [](std::string text, const std::string& from, const std::string& to) {
    for (size_t at = text.find(from); at != text.npos; at = text.find(from, at + to.size()))
      text.replace(at, from.size(), to);
    return text;
  };
  for (const Json& sample : samples) {
    auto text = sample["text"].get<std::string>();
    for (const char* control : {"<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]",
                                "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"})
      text = replace_all(text, control + mark, control);
    text = replace_all(replace_all(text, mark, " "), "<0x0A>", "\n");  // the samples spell tokens
    EXPECT_EQ(*tokenizer->encode(text, false, false), sample["tokens"].get<std::vector<int32_t>>())
        << sample["name"];
  }
}

TEST(Tokenizer, AddsSpecialTokensOnlyWhenAsked) {
  if (!has_shared()) GTEST_SKIP() << "no " << shared_dir() << "/tokenizers (set QUIRE_SHARED)";
  for (const bool use_model : {false, true}) {
    const Tokenizer* const tokenizer = open_shared("llama2", use_model);
    ASSERT_NE(tokenizer, nullptr);
    EXPECT_EQ(*tokenizer->encode("Hello", true, true), (std::vector<int32_t>{1, 15043}));
    EXPECT_EQ(*tokenizer->encode("Hello", false, true), (std::vector<int32_t>{15043}));
    EXPECT_EQ(*tokenizer->encode("</s>", false, false), (std::vector<int32_t>{2}));
    EXPECT_NE(*tokenizer->encode("</s>", false, true), (std::vector<int32_t>{2}));
  }
}

TEST(Tokenizer, ReadsSpecialTokensAsTextWhenAsked) {
  const std::unique_ptr<Tokenizer> tokenizer = open_demo();
  ASSERT_NE(tokenizer, nullptr);
  const std::string text = "one<|im_end|>two";
  const auto special = *tokenizer->encode(text, false, false), plain = *tokenizer->encode(text, false, true);
  const int32_t end = *tokenizer->token_id("<|im_end|>");
  EXPECT_EQ(std::count(special.begin(), special.end(), end), 1);
  EXPECT_EQ(std::count(plain.begin(), plain.end(), end), 0);
  EXPECT_EQ(*tokenizer->decode(plain, true), text);
  EXPECT_EQ(*tokenizer->decode(special, true), "onetwo");
  EXPECT_EQ(*tokenizer->decode(special, false), text);
}

TEST(Tokenizer, RecognisesTheTemplatesTokensButNotTheGuardedOnes) {
  const std::unique_ptr<Tokenizer> tokenizer = open_demo();
  ASSERT_NE(tokenizer, nullptr);
  const std::string rendered = "<|im_start|>user\n" + *tokenizer->guard("<|im_end|>") + "<|im_end|>";
  const auto ids = *tokenizer->encode_guarded(rendered);
  EXPECT_EQ(ids.front(), *tokenizer->token_id("<|im_start|>"));
  EXPECT_EQ(std::count(ids.begin(), ids.end(), *tokenizer->token_id("<|im_end|>")), 1);
  EXPECT_EQ(*tokenizer->decode(ids, false), "<|im_start|>user\n<|im_end|><|im_end|>");
}

TEST(Tokenizer, RefusesTextThatIsNotUtf8) {
  const std::unique_ptr<Tokenizer> tokenizer = open_demo();
  ASSERT_NE(tokenizer, nullptr);
  const auto ids = tokenizer->encode("ab\xff", false, true);
  ASSERT_FALSE(ids.has_value());
  EXPECT_EQ(ids.error().code, Code::kInvalidArgument);
  EXPECT_NE(ids.error().message.find("byte 2"), std::string::npos) << ids.error().message;
}

TEST(Tokenizer, RefusesIdsOutsideItsVocabulary) {
  const std::unique_ptr<Tokenizer> tokenizer = open_demo();
  ASSERT_NE(tokenizer, nullptr);
  for (const int32_t id : {-1, tokenizer->vocab_size()}) {
    const auto text = tokenizer->decode(std::vector<int32_t>{id}, false);
    ASSERT_FALSE(text.has_value());
    EXPECT_NE(text.error().message.find(std::to_string(id)), std::string::npos);
  }
}

TEST(Tokenizer, RefusesMoreIdsThanTheModelHas) {
  const std::string dir = root_dir() + "/models/demo";
  const auto refused = Tokenizer::open(dir, 4095);
  ASSERT_FALSE(refused.has_value());
  EXPECT_NE(refused.error().message.find("tokenizer.json"), std::string::npos);
  EXPECT_NE(refused.error().message.find("4095"), std::string::npos);
  const auto padded = Tokenizer::open(dir, 5000);
  ASSERT_TRUE(padded.has_value());
  EXPECT_EQ((*padded)->vocab_size(), 5000);
  EXPECT_EQ((*padded)->ids_without_a_token(), 904);
  EXPECT_EQ(*(*padded)->decode(std::vector<int32_t>{4999}, false), "");
}

// A million spaces and a letter are one token, or few, where steps drop or join what stands in a text: no bytes tell.
TEST(Tokenizer, DoesNotGoByBytesWhereTextMayVanish) {
  const Json good = Json::parse(read_file(root_dir() + "/models/demo/tokenizer.json"));
  const std::string spaces(1 << 20, ' ');
  const auto encoded = [&](const Json& json, const char* last = "a") {
    TempDir dir;
    write_file(dir.path() + "/tokenizer.json", json.dump());
    const auto opened = Tokenizer::open(dir.path());
    EXPECT_TRUE(opened.has_value()) << (opened ? "" : opened.error().message);
    return opened ? (*opened)->encode(spaces + last, false, true, 4)
                  : Result<std::vector<int32_t>>(opened.error());
  };
  EXPECT_TRUE(is_too_long(encoded(good)));
  Json strips = good;
  strips["normalizer"] = {{"type", "Strip"}, {"strip_left", true}, {"strip_right", false}};
  EXPECT_TRUE(encoded(strips).has_value());
  Json splits = good;
  const Json drop = {
      {"type", "Split"}, {"pattern", {{"String", " "}}}, {"behavior", "Removed"}, {"invert", false}};
  Json& steps = splits["pre_tokenizer"]["pretokenizers"];
  steps.insert(steps.begin(), drop);
  EXPECT_TRUE(encoded(splits).has_value());
  Json composes = good;  // each NFC may take several bytes for one, and none is the less for the next
  composes["normalizer"] = {{"type", "Sequence"}, {"normalizers", Json::array()}};
  for (int i = 0; i < 22; ++i) composes["normalizer"]["normalizers"].push_back({{"type", "NFC"}});
  EXPECT_TRUE(is_too_long(encoded(composes, "\u00e9")));
  Json added = good;
  added["added_tokens"].push_back({{"id", 4096},
                                   {"content", "a"},
                                   {"single_word", false},
                                   {"lstrip", true},
                                   {"rstrip", false},
                                   {"normalized", false},
                                   {"special", false}});
  EXPECT_TRUE(encoded(added).has_value());
}

TEST(Tokenizer, IsSharedByThreads) {
  const std::unique_ptr<Tokenizer> tokenizer = open_demo();
  ASSERT_NE(tokenizer, nullptr);
  const std::string text = "The pass key of Emma is 48213. What is the pass key of Emma?";
  const std::vector<int32_t> expected = *tokenizer->encode(text, false, true);
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&] {
      for (int j = 0; j < 100; ++j)
        if (*tokenizer->encode(text, false, true) != expected || *tokenizer->decode(expected, false) != text)
          ++wrong;
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

// Errors of files: each names the file.
std::string error_of(const std::string& file, const std::string& contents) {
  TempDir dir;
  write_file(dir.path() + "/" + file, contents);
  const auto opened = Tokenizer::open(dir.path());
  if (opened) return "";
  EXPECT_NE(opened.error().message.find(file), std::string::npos) << opened.error().message;
  return opened.error().message;
}

TEST(Tokenizer, NamesTheFileThatIsWrong) {
  const std::string good = read_file(root_dir() + "/models/demo/tokenizer.json");
  EXPECT_NE(error_of("tokenizer.json", good.substr(0, good.size() / 2)).find("not JSON"), std::string::npos);
  EXPECT_NE(error_of("tokenizer.json", "").find("not JSON"), std::string::npos);
  EXPECT_NE(error_of("tokenizer.json", "[1, 2]").find("decoder"), std::string::npos);
  Json no_model = Json::parse(good);
  no_model.erase("model");
  EXPECT_NE(error_of("tokenizer.json", no_model.dump()).find("not a tokenizer"), std::string::npos);
  Json other_decoder = Json::parse(good);
  other_decoder["decoder"] = {{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", true}};
  EXPECT_NE(error_of("tokenizer.json", other_decoder.dump()).find("WordPiece"), std::string::npos);
  Json far_id = Json::parse(good);
  far_id["model"]["vocab"]["zzz"] = 4000000000u;
  EXPECT_NE(error_of("tokenizer.json", far_id.dump()).find("4000000000"), std::string::npos);
  far_id["model"]["vocab"]["zzz"] = 1 << 21;  // a place for each id below takes 56 bytes
  EXPECT_NE(error_of("tokenizer.json", far_id.dump()).find("the limit is 2097152"), std::string::npos);
  Json lying_map = Json::parse(good);  // base64 of a trie of 4294967295 bytes in a map of 8
  lying_map["normalizer"] = {
      {"type", "Sequence"},
      {"normalizers", {{{"type", "Precompiled"}, {"precompiled_charsmap", "/////wAAAAA="}}}}};
  EXPECT_NE(error_of("tokenizer.json", lying_map.dump()).find("4294967295 bytes; 4 follow"),
            std::string::npos);
  lying_map["normalizer"] = {{"type", "Precompiled"}, {"precompiled_charsmap", "AAA="}};
  EXPECT_NE(error_of("tokenizer.json", lying_map.dump()).find("has 2 bytes"), std::string::npos);
  EXPECT_EQ(Tokenizer::open("no/such/dir").error().code, Code::kNotFound);
}

TEST(SentencePiece, NamesTheFileThatIsWrong) {
  EXPECT_NE(error_of("tokenizer.model", "").find("unknown pieces"), std::string::npos);
  EXPECT_NE(error_of("tokenizer.model", "\x0a\x7f").find("ends inside a field"), std::string::npos);
  EXPECT_NE(error_of("tokenizer.model", "IQ== 0\nIg== 1\n").find("tiktoken"), std::string::npos);
  using namespace std::string_literals;
  const std::string unknown = "\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0\x18\x02"s;  // piece 0
  const std::string lying_map =
      "\x1a\x0a\x12\x08\xff\xff\xff\xff\0\0\0\0"s;  // a trie of 4294967295 bytes in a map of 8
  EXPECT_NE(error_of("tokenizer.model", unknown + lying_map).find("4294967295 bytes; 4 follow"),
            std::string::npos);
  if (!has_shared()) return;
  const std::string good = read_file(shared_dir() + "/tokenizers/llama2/tokenizer.model");
  for (const size_t bytes : {good.size() - 1, good.size() / 2, good.size() / 3})
    error_of("tokenizer.model", good.substr(0, bytes));
}

}  // namespace
}  // namespace quire::test
