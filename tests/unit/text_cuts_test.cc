// A long text read in parts gives the ids of the whole: for the public vocabularies, and for made-up ones each of
// which has one step that would tell a part from the whole, so that it must not be read in parts.
#include "tests/unit/text_fixture.h"

namespace quire::test {
namespace {

using Json = nlohmann::json;

constexpr size_t kPartBytes = 64 << 10;

std::string repeated(const std::string& block, size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += block;
  return text;
}

Json added_token(const std::string& content) {
  return {{"content", content}, {"single_word", false}, {"lstrip", false},
          {"rstrip", false},    {"normalized", false},  {"special", false}};
}

// A token that no text here has could lie over the end of a part: who has it must read a text as a whole.
Json uncuttable() {
  Json token = added_token("\u00a7q q\u00a7");
  token["special"] = true;
  return token;
}

std::unique_ptr<Tokenizer> opened(const std::string& dir) {
  Result<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::open(dir);
  EXPECT_TRUE(tokenizer.has_value()) << (tokenizer ? "" : tokenizer.error().message);
  return tokenizer ? std::move(*tokenizer) : nullptr;
}

std::unique_ptr<Tokenizer> open_json(const Json& file) {
  TempDir dir;
  write_file(dir.path() + "/tokenizer.json", file.dump());
  return opened(dir.path());
}

std::unique_ptr<Tokenizer> open_shared_unparted(const std::string& name, bool use_model, int32_t vocab_size) {
  TempDir dir;
  copy_shared(name, dir.path(), use_model);
  const std::string json = dir.path() + "/tokenizer.json";
  Json token = uncuttable();
  if (std::filesystem::exists(json)) {
    token["id"] = vocab_size;
    std::string file = read_file(json);  // not parsed: megabytes, slow where a sanitizer watches
    const size_t next_key = file.find("\"normalizer\"", file.find("\"added_tokens\""));
    EXPECT_NE(next_key, file.npos) << name;
    file.insert(file.rfind(']', next_key), "," + token.dump());
    write_file(json, file);
  } else {
    const Json tokens = {{std::to_string(vocab_size), token}};
    write_file(dir.path() + "/tokenizer_config.json", Json{{"added_tokens_decoder", tokens}}.dump());
  }
  return opened(dir.path());
}

// Every stored text, over and over, each time after another number of letters: parts begin and end in ever other
// places.
std::string long_text(const std::string& name) {
  std::string text;
  const Json pairs = Json::parse(read_file(shared_dir() + "/tokenizers/" + name + "/tests.json"));
  for (size_t shift = 0; text.size() < kPartBytes + (16 << 10); ++shift) {
    text.append(shift, 'x');
    for (const Json& pair : pairs) text += pair["text"].get<std::string>() + " and so on ";
  }
  return text;
}

// The limit counts the ids of all parts.
void expect_exact_limit(const Tokenizer& tokenizer, const std::string& text,
                        const std::vector<int32_t>& ids) {
  const auto within = tokenizer.encode(text, true, true, ids.size());
  ASSERT_TRUE(within.has_value()) << within.error().message;
  EXPECT_TRUE(*within == ids);
  const auto refused = tokenizer.encode(text, true, true, ids.size() - 1);
  ASSERT_TRUE(is_too_long(refused));
  EXPECT_NE(refused.error().message.find(std::to_string(text.size()) + " bytes has more than"),
            std::string::npos)
      << refused.error().message;
}

// Special tokens are found in the texts of one half of the vocabularies and guarded in the other's.
void expect_shared_parts_give_the_whole(const std::string& name, bool use_model) {
  const Tokenizer* const in_parts = open_shared(name, use_model);
  ASSERT_NE(in_parts, nullptr);
  const auto whole = open_shared_unparted(name, use_model, in_parts->vocab_size());
  ASSERT_NE(whole, nullptr);
  EXPECT_TRUE(in_parts->reads_in_parts()) << name;
  EXPECT_FALSE(whole->reads_in_parts()) << name;
  const std::string text = long_text(name);
  expect_exact_limit(*in_parts, text, *whole->encode(text, true, true));
  if (name.size() % 2 == 0) {
    EXPECT_TRUE(*in_parts->encode(text, false, false) == *whole->encode(text, false, false)) << name;
  } else {
    const std::string guarded = *in_parts->guard(text);
    EXPECT_TRUE(*in_parts->encode_guarded(guarded) == *whole->encode_guarded(guarded)) << name;
  }
}

class SharedCuts : public SharedTokenizer {};

TEST_P(SharedCuts, GivesTheSameIdsForALongTextInPartsAndAsAWhole) {
  expect_shared_parts_give_the_whole(GetParam(), false);
}

INSTANTIATE_TEST_SUITE_P(Every, SharedCuts, testing::ValuesIn(shared_names()), shared_test_name);

TEST(SentencePieceCuts, GivesTheSameIdsForALongTextInPartsAndAsAWhole) {
  if (!has_shared()) GTEST_SKIP() << "no " << shared_dir() << "/tokenizers (set QUIRE_SHARED)";
  expect_shared_parts_give_the_whole("llama2", /*use_model=*/true);
}

std::string utf8(int code) {  // of at most two bytes
  if (code < 0x80) return {static_cast<char>(code)};
  return {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 0x3f))};
}

// How byte-level tokenizers spell the 256 bytes: printable ones as themselves, the others by the code points from 256.
std::vector<std::string> byte_letters() {
  std::vector<std::string> letters;
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte > 32 && byte < 127) || (byte > 160 && byte != 173);
    letters.push_back(utf8(printable ? byte : next++));
  }
  return letters;
}

const std::string kMark = "\u2581", kSpaceByte = "\u0120";

Json model_of(const std::vector<std::string>& spellings, Json merges = Json::array()) {
  Json vocab = Json::object();
  for (const std::string& spelling : spellings) vocab[spelling] = vocab.size();
  return {{"type", "BPE"}, {"vocab", vocab}, {"merges", std::move(merges)}};
}

Json byte_model(const std::vector<std::string>& more = {}, Json merges = Json::array()) {
  std::vector<std::string> spellings = byte_letters();
  spellings.insert(spellings.end(), more.begin(), more.end());
  return model_of(spellings, std::move(merges));
}

Json byte_level(bool add_prefix_space, bool use_regex = true) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", add_prefix_space},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

Json metaspace(const char* scheme, bool split) {
  return {{"type", "Metaspace"}, {"replacement", kMark}, {"prepend_scheme", scheme}, {"split", split}};
}

Json split_by(const std::string& pattern) {
  return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
}

Json in_turn(const std::vector<Json>& steps) {
  return {{"type", "Sequence"}, {"pretokenizers", steps}};
}

Json spaces_to_marks() {
  return {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kMark}};
}

// Whose added tokens have no ids yet. The texts are only encoded: the decoder is the plainest.
Json tokenizer_of(const Json& normalizer, const Json& pre_tokenizer, const Json& model,
                  const std::vector<Json>& added = {}) {
  return {{"version", "1.0"},
          {"added_tokens", added},
          {"normalizer", normalizer},
          {"pre_tokenizer", pre_tokenizer},
          {"decoder", {{"type", "Fuse"}}},
          {"model", model}};
}

std::unique_ptr<Tokenizer> open_numbered(Json file) {
  size_t id = file["model"]["vocab"].size();
  for (Json& token : file["added_tokens"]) token["id"] = id++;
  return open_json(file);
}

// Blocks have one place to cut: after "abc" or the like. The others have a stop or a digit before the space.
void expect_parts_give_the_whole(const Json& file, bool is_cut, const std::string& block = "abc def. ") {
  Json unparted = file;
  unparted["added_tokens"].push_back(uncuttable());
  const auto tokenizer = open_numbered(file), whole = open_numbered(unparted);
  ASSERT_TRUE(tokenizer != nullptr && whole != nullptr);
  EXPECT_EQ(tokenizer->reads_in_parts(), is_cut);
  EXPECT_FALSE(whole->reads_in_parts());
  const std::string text = repeated(block, kPartBytes + 100);
  const auto ids = tokenizer->encode(text, false, false), expected = whole->encode(text, false, false);
  ASSERT_TRUE(ids.has_value() && expected.has_value());
  EXPECT_TRUE(*ids == *expected) << ids->size() << " ids, not " << expected->size();
}

const Json kNone, kNfkc = {{"type", "NFKC"}};

TEST(Cuts, ASpaceIsPutBeforeAPartOnlyWhereItHasNone) {
  const Json model = byte_model({kMark, " "});
  expect_parts_give_the_whole(tokenizer_of(kNone, byte_level(true), model), true);
  expect_parts_give_the_whole(tokenizer_of(kNone, in_turn({split_by("[.]"), byte_level(true)}), model), true);
  expect_parts_give_the_whole(tokenizer_of(spaces_to_marks(), metaspace("always", false), model), true);
  expect_parts_give_the_whole(tokenizer_of(kNone, metaspace("first", false), model), true);
}

TEST(Cuts, NoneWhereASpaceIsPutBeforeOneSpelledOtherwise) {
  const Json model = byte_model({kMark, " "});
  const Json marks = metaspace("never", false), bytes = byte_level(false, false);
  expect_parts_give_the_whole(tokenizer_of(spaces_to_marks(), byte_level(true), model), false);
  expect_parts_give_the_whole(tokenizer_of(kNone, in_turn({marks, byte_level(true)}), model), false);
  expect_parts_give_the_whole(tokenizer_of(kNone, in_turn({bytes, byte_level(true)}), model), false);
  expect_parts_give_the_whole(tokenizer_of(kNone, in_turn({bytes, metaspace("always", false)}), model),
                              false);
}

// U+00E2 is how the first byte of a mark is spelled.
TEST(Cuts, NoneWhereAMarkIsSpelledInBytes) {
  const Json model = byte_model({"c\u00e2"}, {"c \u00e2"});
  expect_parts_give_the_whole(tokenizer_of(spaces_to_marks(), byte_level(false, false), model), false);
}

Json normalized_token(const std::string& content, bool rstrip = false) {
  Json token = added_token(content);
  token["normalized"] = true;
  token["rstrip"] = rstrip;
  return token;
}

TEST(Cuts, NoneWhereANormalizedAddedTokenBecomesOneThatLiesOverThem) {
  const Json bytes = byte_level(false), model = byte_model();
  const auto with = [&](const Json& token) { return tokenizer_of(kNfkc, bytes, model, {token}); };
  expect_parts_give_the_whole(with(normalized_token("abc")), true);
  expect_parts_give_the_whole(with(added_token("c\u00a0d")), true);  // looked for before NFKC
  expect_parts_give_the_whole(with(normalized_token("c\u00a0d")), false);
  expect_parts_give_the_whole(with(normalized_token("\ufb01", /*rstrip=*/true)), false, "abfi def. ");
}

TEST(Cuts, NoneWhereAnAddedTokenLooksAtWhatIsBeforeTheSpace) {
  Json token = added_token(" def");
  expect_parts_give_the_whole(tokenizer_of(kNone, byte_level(false), byte_model(), {token}), true);
  token["single_word"] = true;
  expect_parts_give_the_whole(tokenizer_of(kNone, byte_level(false), byte_model(), {token}), false);
}

// Unknown neighbours are one token: the space between unknown letters must be known, as these steps spell it.
TEST(Cuts, NoneWhereTheSpaceHasNoSpellingOfItsOwn) {
  const auto model_with = [](const std::string& space) {
    Json model = model_of({"<unk>", "a", "b", "e", "f", ".", space});
    model.update({{"unk_token", "<unk>"}, {"fuse_unk", true}});
    return model;
  };
  const std::vector<std::pair<std::string, std::pair<Json, Json>>> by_space = {
      {" ", {kNone, kNone}},
      {kMark, {spaces_to_marks(), kNone}},
      {kMark, {kNone, metaspace("never", false)}},
      {kSpaceByte, {kNone, byte_level(false, false)}}};
  for (const auto& [space, steps] : by_space)
    for (const std::string& known : {std::string(" "), kMark, kSpaceByte})
      expect_parts_give_the_whole(tokenizer_of(steps.first, steps.second, model_with(known)), known == space);
}

// The last piece of a part, " abc", is a word of the vocabulary that no merges make; that of the whole is " abc def".
TEST(Cuts, NoneWhereWholePiecesAreLookedUpAndNotSplitThere) {
  Json model = byte_model({" ", kMark, " abc", kMark + "abc", kSpaceByte + "abc"});
  model["ignore_merges"] = true;
  const Json digits = {{"type", "Digits"}, {"individual_digits", false}};
  const auto expect = [&](const std::vector<Json>& steps, bool is_cut) {
    expect_parts_give_the_whole(tokenizer_of(kNone, in_turn(steps), model), is_cut, "abc def1 ");
  };
  expect({digits}, false);
  expect({digits, metaspace("never", false)}, false);
  expect({digits, byte_level(false, false)}, false);
  expect({digits, metaspace("never", true)}, true);
  expect({digits, byte_level(false)}, true);
}

TEST(Cuts, AreKnownForPatternsOfOneClassWithoutSpaces) {
  const auto file = [](const std::string& pattern) {
    return tokenizer_of(kNone, in_turn({split_by(pattern), byte_level(false, false)}), byte_model());
  };
  for (const char* pattern : {"[\r\n]", "[a-z]+", "\\s?[a-z]+", "[!-/:-~]+", "[\u00e0-\u00ff-]"})
    expect_parts_give_the_whole(file(pattern), true);
  for (const char* pattern : {"[^.]+", "[a-z ]+", "[\t-~]+", "[\t--.]", "[\\sa-z]+", "[\\x20c]+", "[a-z]+ ",
                              "[a-z]+ [d]", "[a-z]+|[c] [d]", "[[:alpha:]]+", "[a[ c]]+", "[a-z]++",
                              "[a-z&&[^b]]", "abc", "\\s*[a-z]+", "(?<=c) [a-z]+", "\\s?", "(?<=[c])[ ]"}) {
    const auto tokenizer = open_json(file(pattern));
    ASSERT_NE(tokenizer, nullptr) << pattern;
    EXPECT_FALSE(tokenizer->reads_in_parts()) << pattern;
  }
}

// A merge, or a pattern, that takes a letter and the space after it together.
TEST(Cuts, NoneWhereAPatternOrAPieceLiesOverThem) {
  const Json model = byte_model({"c" + kSpaceByte}, {"c " + kSpaceByte});
  expect_parts_give_the_whole(tokenizer_of(kNone, byte_level(false, false), model), false);
  const Json other = {
      {"type", "Split"}, {"pattern", {{"String", "c "}}}, {"behavior", "Isolated"}, {"invert", false}};
  expect_parts_give_the_whole(tokenizer_of(kNone, in_turn({other, byte_level(true)}), byte_model()), false);
}

}  // namespace
}  // namespace quire::test
