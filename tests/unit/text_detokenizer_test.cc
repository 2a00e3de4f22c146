// The detokenizer: its pushes, joined, are the decoding of the whole, and each is whole characters. Stated
// cases by hand, then random ids of every vocabulary at hand (seeds are printed with a failure) and the
// stored texts.
#include "src/base/random.h"
#include "src/base/utf8.h"
#include "src/text/detokenizer.h"
#include "tests/unit/text_fixture.h"

namespace quire::test {
namespace {

const std::string kBad = "\xef\xbf\xbd";

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const Utf8Part part = first_part(text);
    if (part.kind != Utf8::kWhole) return false;
    text.remove_prefix(part.bytes);
  }
  return true;
}

// An independent statement of what a byte sequence decodes to, for runs of bytes: replace every maximal
// ill-formed part.
std::string lossy(const std::string& bytes, bool each_byte) {
  std::string text;
  for (size_t at = 0; at < bytes.size();) {
    const auto lead = static_cast<unsigned char>(bytes[at]);
    const size_t wanted = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    const auto valid = [&](size_t length) {  // whether bytes[at, at + length) begins, or is, a character
      if (lead >= 0x80 && (lead < 0xc2 || lead > 0xf4)) return false;
      if (at + length > bytes.size()) return false;
      for (size_t i = 1; i < length; ++i) {
        const auto next = static_cast<unsigned char>(bytes[at + i]);
        if (next < 0x80 || next > 0xbf) return false;
        if (i == 1 && ((lead == 0xe0 && next < 0xa0) || (lead == 0xed && next > 0x9f) ||
                       (lead == 0xf0 && next < 0x90) || (lead == 0xf4 && next > 0x8f)))
          return false;
      }
      return true;
    };
    if (valid(wanted)) {
      text += bytes.substr(at, wanted);
      at += wanted;
      continue;
    }
    size_t part = 1;
    while (part < wanted && valid(part + 1)) ++part;
    for (size_t i = 0; i < (each_byte ? part : 1); ++i) text += kBad;
    at += part;
  }
  return text;
}

// Pushes one by one; checks each piece; returns all of them.
std::string pushed(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool skip_special) {
  Detokenizer detokenizer(tokenizer, skip_special);
  std::string text;
  for (const int32_t id : ids) {
    const std::string piece = detokenizer.push(id);
    EXPECT_TRUE(is_utf8(piece)) << piece;
    text += piece;
  }
  return text + detokenizer.flush();
}

std::string bytes_of(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool skip_special) {
  std::string bytes;
  for (const int32_t id : ids)
    if (const TokenBytes token = tokenizer.token_bytes(id); !(token.special && skip_special))
      bytes += token.bytes;
  if (tokenizer.decode_rules().strip_leading_space && bytes.starts_with(' ')) bytes.erase(0, 1);
  return bytes;
}

// Random ids, half of the time from those that hold parts of characters, where there are some.
void expect_random_ids_agree(const Tokenizer& tokenizer, uint64_t seed) {
  Random random(seed);
  std::vector<int32_t> partial;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id)
    if (const TokenBytes token = tokenizer.token_bytes(id); !token.bytes.empty() && !is_utf8(token.bytes))
      partial.push_back(id);
  for (int round = 0; round < 200; ++round) {
    std::vector<int32_t> ids(random.below(40));
    for (int32_t& id : ids) {
      const bool part = !partial.empty() && random.chance(0.5);
      id = part ? partial[random.below(partial.size())]
                : static_cast<int32_t>(random.below(static_cast<uint64_t>(tokenizer.vocab_size())));
    }
    const bool skip_special = random.chance(0.5);
    const std::string text = pushed(tokenizer, ids, skip_special);
    ASSERT_EQ(text, *tokenizer.decode(ids, skip_special)) << "seed " << seed << " round " << round;
    ASSERT_EQ(text, lossy(bytes_of(tokenizer, ids, skip_special), tokenizer.decode_rules().replace_each_byte))
        << "seed " << seed << " round " << round;
  }
}

TEST(Detokenizer, RandomIdsOfTheDemoGiveTheWholeDecoding) {
  expect_random_ids_agree(*open_demo(), 1);
}

TEST(Detokenizer, RandomIdsOfEveryVocabularyGiveTheWholeDecoding) {
  if (!has_shared()) GTEST_SKIP() << "no " << shared_dir() << "/tokenizers (set QUIRE_SHARED)";
  uint64_t seed = 100;
  for (const std::string& name : shared_names()) {
    SCOPED_TRACE(name);
    const Tokenizer* const tokenizer = open_shared(name);
    ASSERT_NE(tokenizer, nullptr);
    expect_random_ids_agree(*tokenizer, ++seed);
    for (const auto& pair :
         nlohmann::json::parse(read_file(shared_dir() + "/tokenizers/" + name + "/tests.json"))) {
      const auto ids = pair["ids"].get<std::vector<int32_t>>();
      EXPECT_EQ(pushed(*tokenizer, ids, true), *tokenizer->decode(ids, true));
    }
  }
}

// A vocabulary made here: SentencePiece's shape, with byte fallback.
std::unique_ptr<Tokenizer> open_byte_fallback() {
  nlohmann::json vocab = {{"<unk>", 0}, {"<s>", 1}, {"\u2581a", 258}, {"b", 259}};
  char byte[8];
  for (int i = 0; i < 256; ++i) {
    std::snprintf(byte, sizeof byte, "<0x%02X>", i);
    vocab[byte] = 2 + i;
  }
  const auto step = [](const char* type) { return nlohmann::json{{"type", type}}; };
  const nlohmann::json tokenizer = {
      {"version", "1.0"},
      {"added_tokens",
       {{{"id", 1},
         {"content", "<s>"},
         {"single_word", false},
         {"lstrip", false},
         {"rstrip", false},
         {"normalized", false},
         {"special", true}}}},
      {"normalizer", nullptr},
      {"pre_tokenizer", nullptr},
      {"post_processor", nullptr},
      {"decoder",
       {{"type", "Sequence"},
        {"decoders",
         {{{"type", "Replace"}, {"pattern", {{"String", "\u2581"}}}, {"content", " "}},
          step("ByteFallback"),
          step("Fuse"),
          {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}}},
      {"model",
       {{"type", "BPE"},
        {"unk_token", "<unk>"},
        {"byte_fallback", true},
        {"vocab", vocab},
        {"merges", nlohmann::json::array()}}}};
  TempDir dir;
  write_file(dir.path() + "/tokenizer.json", tokenizer.dump());
  Result<std::unique_ptr<Tokenizer>> opened = Tokenizer::open(dir.path());
  EXPECT_TRUE(opened.has_value()) << (opened ? "" : opened.error().message);
  return opened ? std::move(*opened) : nullptr;
}

constexpr int32_t byte_id(int byte) {
  return 2 + byte;
}

TEST(Detokenizer, HoldsACharacterUntilItIsWhole) {
  const std::unique_ptr<Tokenizer> tokenizer = open_byte_fallback();
  ASSERT_NE(tokenizer, nullptr);
  Detokenizer detokenizer(*tokenizer, true);
  EXPECT_EQ(detokenizer.push(byte_id(0xf0)), "");
  EXPECT_EQ(detokenizer.push(byte_id(0x9f)), "");
  EXPECT_EQ(detokenizer.push(byte_id(0x98)), "");
  EXPECT_EQ(detokenizer.push(byte_id(0x80)), "\U0001f600");
  EXPECT_EQ(detokenizer.push(byte_id('\n')), "\n");  // at once: a stop string may wait for it
  EXPECT_EQ(detokenizer.push(byte_id(0xe2)), "");
  EXPECT_EQ(detokenizer.push(259), kBad + "b");
  EXPECT_EQ(detokenizer.push(byte_id(0xe2)), "");
  EXPECT_EQ(detokenizer.push(byte_id(0x82)), "");
  EXPECT_EQ(detokenizer.flush(), kBad + kBad);  // one for each byte, as SentencePiece does
  EXPECT_EQ(detokenizer.flush(), "");
}

TEST(Detokenizer, StripsOneSpaceAtTheStartOnly) {
  const std::unique_ptr<Tokenizer> tokenizer = open_byte_fallback();
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(*tokenizer->decode(std::vector<int32_t>{258, 258}, true), "a a");
  EXPECT_EQ(*tokenizer->decode(std::vector<int32_t>{1, 258}, true), "a");
  EXPECT_EQ(*tokenizer->decode(std::vector<int32_t>{1, 258}, false), "<s> a");
  const std::vector<int32_t> text_before = {258}, only_bos = {1};
  EXPECT_EQ(Detokenizer(*tokenizer, true, text_before).push(258), " a");
  EXPECT_EQ(Detokenizer(*tokenizer, true, only_bos).push(258), "a");
}

TEST(Detokenizer, EndsACharacterThatTheContextBegan) {
  const std::unique_ptr<Tokenizer> tokenizer = open_byte_fallback();
  ASSERT_NE(tokenizer, nullptr);
  const std::vector<int32_t> context = {258, byte_id(0xc3)};
  EXPECT_EQ(Detokenizer(*tokenizer, true, context).push(byte_id(0xa9)), "\u00e9");
}

TEST(Detokenizer, IdsWithoutATokenAreEmpty) {
  const std::unique_ptr<Tokenizer> tokenizer = open_byte_fallback();
  ASSERT_NE(tokenizer, nullptr);
  Detokenizer detokenizer(*tokenizer, true);
  EXPECT_EQ(detokenizer.push(100000), "");
  EXPECT_EQ(detokenizer.push(-1), "");
  EXPECT_EQ(detokenizer.push(258), "a");
}

TEST(Utf8, KnowsWellFormedFromIllFormed) {
  EXPECT_EQ(first_part("\xc0\x80").kind, Utf8::kBad);          // overlong
  EXPECT_EQ(first_part("\xed\xa0\x80").kind, Utf8::kBad);      // a surrogate
  EXPECT_EQ(first_part("\xf4\x90\x80\x80").kind, Utf8::kBad);  // above U+10FFFF
  EXPECT_EQ(first_part("\xf4\x8f\xbf\xbf").bytes, 4u);
  EXPECT_EQ(first_part("\xe2\x82").kind, Utf8::kPartial);
  EXPECT_EQ(first_part("\xe2\x82"
                       "a")
                .bytes,
            2u);  // the maximal ill-formed part
}

}  // namespace
}  // namespace quire::test
