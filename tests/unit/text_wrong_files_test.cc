// Files of tokenizers that the library would follow past their ends: each is refused when it is opened, with the file and what is wrong
// with it, and no panic of the library reaches a request.
#include <functional>

#include "tests/unit/text_fixture.h"

namespace quire::test {
namespace {

using Json = nlohmann::json;

Json demo_json() {
  return Json::parse(read_file(root_dir() + "/models/demo/tokenizer.json"));
}

Result<std::unique_ptr<Tokenizer>> open(const Json& json) {
  TempDir dir;
  write_file(dir.path() + "/tokenizer.json", json.dump());
  return Tokenizer::open(dir.path());
}

void expect_refused(const Json& json, const std::string& why) {
  const auto opened = open(json);
  ASSERT_FALSE(opened.has_value()) << why;
  EXPECT_EQ(opened.error().code, Code::kInvalidArgument) << opened.error().message;
  EXPECT_NE(opened.error().message.find("tokenizer.json: its " + why), std::string::npos)
      << opened.error().message;
}

std::string base64(const std::string& bytes) {
  static const std::string digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (size_t at = 0; at < bytes.size(); at += 3) {
    uint32_t bits = 0;
    for (size_t i = 0; i < 3; ++i)
      bits = bits << 8 | (at + i < bytes.size() ? static_cast<unsigned char>(bytes[at + i]) : 0u);
    for (size_t i = 0; i < 4; ++i) text += i <= bytes.size() - at ? digits[bits >> (18 - 6 * i) & 63] : '=';
  }
  return text;
}

// SentencePiece's map: the trie's bytes (u32), its units (u32), the texts. A unit: offset << 10 | has a value << 8 | byte.
struct CharacterMap {
  std::vector<uint32_t> trie = std::vector<uint32_t>(768);
  std::string texts = {'b', '\0'};

  CharacterMap() {  // "A" becomes "b"
    trie[0] = 256u << 10;
    trie[256 ^ 'A'] = (256u ^ 'A' ^ 512u) << 10 | 1u << 8 | 'A';
    trie[512] = 0;
  }
  uint32_t& of_a() { return trie[256 ^ 'A']; }
  uint32_t& value_of_a() { return trie[512]; }

  std::string bytes() const {
    std::string all;
    const auto put = [&](uint32_t word) {
      for (int i = 0; i < 4; ++i) all += static_cast<char>(word >> (8 * i));
    };
    put(static_cast<uint32_t>(4 * trie.size()));
    for (const uint32_t unit : trie) put(unit);
    return all + texts;
  }
};

Json normalized_by_map(const std::string& charsmap) {
  Json json = demo_json();
  json["normalizer"] = {{"type", "Sequence"},
                        {"normalizers", {{{"type", "Precompiled"}, {"precompiled_charsmap", charsmap}}}}};
  return json;
}

TEST(WrongTokenizer, ACharacterMapIsFollowedToItsEnds) {
  const auto opened = open(normalized_by_map(base64(CharacterMap().bytes())));
  ASSERT_TRUE(opened.has_value()) << opened.error().message;
  EXPECT_EQ(*(*opened)->encode("xAy", false, false), *open_demo()->encode("xby", false, false));

  const auto refuses = [](const std::function<void(CharacterMap&)>& change, const std::string& why) {
    CharacterMap map;
    change(map);
    expect_refused(normalized_by_map(base64(map.bytes())), "precompiled_charsmap " + why);
  };
  refuses([](CharacterMap& map) { map.trie.clear(); }, "has a trie of 0 units and leads to unit 0");
  refuses([](CharacterMap& map) { map.trie.resize(300); }, "has a trie of 300 units and leads to unit ");
  refuses([](CharacterMap& map) { map.trie[0] = 4096u << 10; },
          "has a trie of 768 units and leads to unit 4097");
  refuses([](CharacterMap& map) { map.of_a() |= 1u << 31 >> 1; },
          "has a trie of 768 units and leads to unit ");
  refuses([](CharacterMap& map) { map.value_of_a() = 3; },
          "points to byte 3 of its texts, which have 2 bytes");
  refuses([](CharacterMap& map) { map.texts = "\u00e9", map.value_of_a() = 1; },
          "points to byte 1 of its texts, which have 2 bytes: no character begins there");
  refuses([](CharacterMap& map) { map.texts = "b\xff"; }, "has texts that are not UTF-8: byte 1");
  expect_refused(normalized_by_map("AAAA"), "precompiled_charsmap has 3 bytes; it begins with a size of 4");
  expect_refused(normalized_by_map("A*=="), "precompiled_charsmap is not base64");
}

TEST(WrongTokenizer, AnAddedTokenIsMoreThanNothingOnceNormalized) {
  Json json = demo_json();
  json["normalizer"] = {{"type", "StripAccents"}};
  Json accent = json["added_tokens"][0];
  accent["content"] = "\u0301";
  accent["normalized"] = false;
  json["added_tokens"].push_back(accent);
  EXPECT_TRUE(open(json).has_value());
  json["added_tokens"].back()["normalized"] = true;
  expect_refused(json, "added token \"\\u{301}\" is empty once normalized");
}

TEST(WrongTokenizer, ATemplateHasItsSpecialTokens) {
  const Json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}},
             other = {{"Sequence", {{"id", "B"}, {"type_id", 0}}}};
  const Json end = {{"SpecialToken", {{"id", "<|im_end|>"}, {"type_id", 0}}}};
  Json json = demo_json();
  json["post_processor"] = {{"type", "TemplateProcessing"},
                            {"single", {text, end}},
                            {"pair", {text, other}},
                            {"special_tokens", Json::object()}};
  expect_refused(
      json, "post-processor puts the special token \"<|im_end|>\" around a text; its special_tokens lack it");
  json["post_processor"]["special_tokens"]["<|im_end|>"] = {
      {"id", "<|im_end|>"}, {"ids", {2}}, {"tokens", {"<|im_end|>"}}};
  EXPECT_TRUE(open(json).has_value());
}

Json inserts_before(
    const std::string&
        pattern) {  // a pattern that matches nothing, for which the library has no place at a text's start
  Json json = demo_json();
  json["normalizer"] = {{"type", "Replace"}, {"pattern", {{"Regex", pattern}}}, {"content", "x"}};
  return json;
}

// Steps that no check knows of: what fails for any text fails when the file is opened.
TEST(WrongTokenizer, WhatTheLibraryDoesNotExpectIsTheFilesFault) {
  for (const std::string pattern : {"^", "q*", ""}) {
    const auto opened = open(inserts_before(pattern));
    ASSERT_FALSE(opened.has_value()) << pattern;
    EXPECT_EQ(opened.error().code, Code::kInvalidArgument) << opened.error().message;
    EXPECT_NE(opened.error().message.find(
                  "tokenizer.json: the library that reads it does not expect what it says: index"),
              std::string::npos)
        << opened.error().message;
  }
  Json prepend = demo_json();  // fails where a chat is read
  prepend["normalizer"] = {{"type", "Prepend"}, {"prepend", ""}};
  EXPECT_FALSE(open(prepend).has_value());
  Json merges = demo_json();  // of a merge's second part it takes a prefix away
  merges["model"]["continuing_subword_prefix"] = "a prefix longer than any token of this vocabulary is";
  const auto opened = open(merges);
  ASSERT_FALSE(opened.has_value());
  EXPECT_EQ(opened.error().code, Code::kInvalidArgument) << opened.error().message;
}

TEST(WrongTokenizer, APanicOfTheLibraryIsAnErrorAndNothingOnStderr) {
  const auto tokenizer = open(inserts_before("(?=zq)"));
  ASSERT_TRUE(tokenizer.has_value()) << tokenizer.error().message;
  EXPECT_TRUE((*tokenizer)->encode("hello", false, true).has_value());
  testing::internal::CaptureStderr();
  const auto ids = (*tokenizer)->encode("zq", false, true);
  const std::string told = testing::internal::GetCapturedStderr();
  EXPECT_EQ(told, "");
  ASSERT_FALSE(ids.has_value());
  EXPECT_EQ(ids.error().code, Code::kInternal);
  EXPECT_NE(ids.error().message.find("index out of bounds"), std::string::npos) << ids.error().message;
}

// <a> takes the spaces after it along, and a space is a token too.
TEST(WrongTokenizer, TokensThatTakeEachOthersSpacesAreGuarded) {
  Json json = demo_json();
  const auto add = [&](const std::string& content, bool rstrip) {
    Json token = json["added_tokens"][0];
    token["content"] = content;
    token["rstrip"] = rstrip;
    token["id"] = 4000 + json["added_tokens"].size();
    json["added_tokens"].push_back(token);
  };
  add("|", true);
  add(" ", true);
  const auto tokenizer = open(json);
  ASSERT_TRUE(tokenizer.has_value()) << tokenizer.error().message;
  for (const std::string message : {"|   x", "a |  |  ", "   ", " | "}) {
    const auto guarded = (*tokenizer)->guard(message);
    ASSERT_TRUE(guarded.has_value()) << message << ": " << guarded.error().message;
    EXPECT_EQ(*(*tokenizer)->encode_guarded(*guarded),
              *(*tokenizer)->encode(message, false, /*special_as_text=*/true))
        << message;
  }
}

}  // namespace
}  // namespace quire::test
