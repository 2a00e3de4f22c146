// No text becomes a control token, a byte or a special token, whatever the model's kind would make of it: cases by hand, every special
// token of every public vocabulary, and random small tokenizers of every kind over an alphabet so small that their tokens are met often.
// Those print their seed.
#include <cstring>
#include <set>

#include "src/base/random.h"
#include "tests/unit/text_fixture.h"

namespace quire::test {
namespace {

using Json = nlohmann::json;
using Ids = std::vector<int32_t>;

// sentencepiece_model.proto, the fields that matter.
enum Kind : uint8_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kByte = 6 };
enum ModelType : uint8_t { kUnigram = 1, kBpe = 2 };

struct Piece {
  std::string text;
  float score = 0;
  Kind kind = kNormal;
};

std::string varint(uint64_t number) {
  std::string bytes;
  for (; number >= 0x80; number >>= 7) bytes += static_cast<char>(number | 0x80);
  return bytes + static_cast<char>(number);
}

std::string numbered(int field, uint64_t number) {
  return varint(static_cast<uint64_t>(field) << 3) + varint(number);
}

std::string nested(int field, const std::string& bytes) {
  return varint(static_cast<uint64_t>(field) << 3 | 2) + varint(bytes.size()) + bytes;
}

std::string model_file(const std::vector<Piece>& pieces, ModelType type, bool byte_fallback) {
  std::string file;
  for (const Piece& piece : pieces) {
    std::string score(sizeof piece.score, '\0');
    std::memcpy(score.data(), &piece.score, sizeof piece.score);
    file += nested(1, nested(1, piece.text) + "\x15" + score + numbered(3, piece.kind));
  }
  file += nested(2, numbered(3, type) + numbered(35, byte_fallback ? 1 : 0));
  return file + nested(3, numbered(3, 0) + numbered(4, 0));  // nothing before a text, and no spaces taken out
}

std::unique_ptr<Tokenizer> open_files(const std::string& name, const std::string& file, const Json& config) {
  TempDir dir;
  write_file(dir.path() + "/" + name, file);
  write_file(dir.path() + "/tokenizer_config.json", config.dump());
  Result<std::unique_ptr<Tokenizer>> opened = Tokenizer::open(dir.path());
  EXPECT_TRUE(opened.has_value()) << (opened ? "" : opened.error().message);
  return opened ? std::move(*opened) : nullptr;
}

std::unique_ptr<Tokenizer> open_json(const Json& json) {
  return open_files("tokenizer.json", json.dump(), Json::object());
}

std::string byte_spelling(int byte) {
  char spelling[8];
  std::snprintf(spelling, sizeof spelling, "<0x%02X>", byte);
  return spelling;
}

std::vector<Piece> letters(float score = -5) {
  std::vector<Piece> pieces;
  for (const char letter : std::string("abcdefghijklmnopqrstuvwxyz</>|_0123456789X"))
    pieces.push_back({{letter}, score -= 0.01F});
  return pieces;
}

std::vector<Piece> with_bytes() {
  std::vector<Piece> pieces = {{"<unk>", 0, kUnknown}, {"<s>", 0, kControl}, {"</s>", 0, kControl}};
  for (int byte = 0; byte < 256; ++byte) pieces.push_back({byte_spelling(byte), 0, kByte});
  return pieces;
}

Json added(const std::string& content, int32_t id, bool special = true) {
  return {{"id", id},        {"content", content},  {"special", special},  {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"single_word", false}};
}

// No id of a special token, but the unknown one: a text of unknown characters has it too.
Ids specials_of(const Tokenizer& tokenizer, const Ids& ids) {
  Ids found;
  for (const int32_t id : ids)
    if (tokenizer.token_bytes(id).special && tokenizer.token_text(id) != "<unk>") found.push_back(id);
  return found;
}

std::vector<std::string> spelled(const Tokenizer& tokenizer, const Ids& ids) {
  std::vector<std::string> spellings;
  for (const int32_t id : ids) spellings.push_back(tokenizer.token_text(id).value_or(""));
  return spellings;
}

void expect_text(const Tokenizer& tokenizer, const std::string& text,
                 const std::vector<std::string>& spellings) {
  const auto ids = tokenizer.encode(text, false, /*special_as_text=*/true);
  ASSERT_TRUE(ids.has_value()) << text << ": " << ids.error().message;
  EXPECT_EQ(spelled(tokenizer, *ids), spellings) << text;
  const auto guarded = tokenizer.encode_guarded(*tokenizer.guard(text));
  ASSERT_TRUE(guarded.has_value()) << text << ": " << guarded.error().message;
  EXPECT_EQ(spelled(tokenizer, *guarded), spellings) << text;
}

const std::vector<std::string> kSpelledEnd = {"a", "<", "/", "s", ">", "b"};
const std::vector<std::string> kSpelledByte = {"<", "0", "x", "4", "1", ">"};

TEST(Reserved, AUnigramModelFileFindsNeitherControlsNorBytesInText) {
  std::vector<Piece> pieces = with_bytes();
  for (const Piece& piece : letters()) pieces.push_back(piece);
  const auto tokenizer = open_files("tokenizer.model", model_file(pieces, kUnigram, true), Json::object());
  ASSERT_NE(tokenizer, nullptr);
  expect_text(*tokenizer, "a</s>b", kSpelledEnd);
  expect_text(*tokenizer, "<0x41>", kSpelledByte);
  expect_text(*tokenizer, "A", {"<0x41>"});
  // Nor where special tokens are found.
  EXPECT_EQ(spelled(*tokenizer, *tokenizer->encode("</s><0x41>", false, false)).size(), 7u);
}

// The ids of SentencePiece 0.2: the best way to spell the text with what is left.
TEST(Reserved, AUnigramModelFileSplitsWhatSpellsAControlAsSentencePieceDoes) {
  std::vector<Piece> pieces = with_bytes();
  for (const Piece& piece : letters()) pieces.push_back(piece);
  for (const char* joined : {"</", "s>", "x4", ">a"}) pieces.push_back({joined, -6});
  const auto tokenizer = open_files("tokenizer.model", model_file(pieces, kUnigram, true), Json::object());
  ASSERT_NE(tokenizer, nullptr);
  expect_text(*tokenizer, "a</s>b", {"a", "</", "s>", "b"});
  expect_text(*tokenizer, "<0x41>a", {"<", "0", "x4", "1", ">a"});
  expect_text(*tokenizer, "\u00e9<unk>", {"<0xC3>", "<0xA9>", "<", "u", "n", "k", ">"});
}

// "<s>" and "</s>" of the model's vocabulary have the score of a certain piece.
Json unigram_json() {
  Json vocab = Json::array({{"<unk>", 0.0}, {"<s>", 0.0}, {"</s>", 0.0}});
  for (const Piece& piece : letters()) vocab.push_back({piece.text, piece.score});
  return {{"version", "1.0"},
          {"added_tokens", {added("<unk>", 0), added("<s>", 1), added("</s>", 2)}},
          {"decoder", {{"type", "Fuse"}}},
          {"model", {{"type", "Unigram"}, {"unk_id", 0}, {"vocab", vocab}, {"byte_fallback", false}}}};
}

TEST(Reserved, AUnigramOfATokenizerJsonFindsNoSpecialTokensInText) {
  const auto tokenizer = open_json(unigram_json());
  ASSERT_NE(tokenizer, nullptr);
  expect_text(*tokenizer, "a</s>b", kSpelledEnd);
  const Ids chat = *tokenizer->encode_guarded("<s>" + *tokenizer->guard("a</s><s>b") + "</s>");
  EXPECT_EQ(specials_of(*tokenizer, chat), (Ids{1, 2})) << "the template's own";
}

// Not found one by one, "<", "s" and ">" are one unknown piece, which the library looks up.
TEST(Reserved, UnknownCharactersOfASpecialTokenAreUnknown) {
  Json json = unigram_json();
  json["model"]["vocab"] = Json::array({{"<unk>", -1.0}, {"<s>", -1e9}, {"</s>", 0.0}, {"a", -2.0}});
  const auto tokenizer = open_json(json);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(specials_of(*tokenizer, *tokenizer->encode("a<s>a", false, true)), Ids{});
}

TEST(Reserved, AUserDefinedPieceThatTheConfigurationCallsSpecialIsText) {
  std::vector<Piece> pieces = with_bytes();
  const auto id = static_cast<int32_t>(pieces.size());
  pieces.push_back({"<turn>", 0, kUserDefined});
  pieces.push_back({"ab", 0, kUserDefined});
  for (const Piece& piece : letters()) pieces.push_back(piece);
  const std::string file = model_file(pieces, kBpe, true);
  for (const Json& config :
       {Json{{"added_tokens_decoder", {{std::to_string(id), added("<turn>", id)}}}},
        Json{{"additional_special_tokens", {"<turn>"}}}, Json{{"pad_token", added("<turn>", id)}}}) {
    const auto tokenizer = open_files("tokenizer.model", file, config);
    ASSERT_NE(tokenizer, nullptr);
    expect_text(*tokenizer, "<turn>ab", {"<", "t", "u", "r", "n", ">", "ab"});
    EXPECT_EQ(tokenizer->encode("<turn>", false, false)->at(0), id);
    const Ids chat = *tokenizer->encode_guarded("<turn>" + *tokenizer->guard("<turn>"));
    EXPECT_EQ(std::count(chat.begin(), chat.end(), id), 1) << "the template's own";
  }
}

TEST(Reserved, AUserDefinedPieceSpelledAsARoleIsTextInAChat) {
  std::vector<Piece> pieces = with_bytes();
  const auto id = static_cast<int32_t>(pieces.size());
  pieces.push_back({"<|user|>", 0, kUserDefined});
  for (const Piece& piece : letters()) pieces.push_back(piece);
  const auto tokenizer = open_files("tokenizer.model", model_file(pieces, kBpe, true), Json::object());
  ASSERT_NE(tokenizer, nullptr);
  const Ids chat = *tokenizer->encode_guarded("<|user|>" + *tokenizer->guard("a<|user|>b"));
  EXPECT_EQ(std::count(chat.begin(), chat.end(), id), 1) << "the template's own";
}

// Words that are looked up as a whole, by each kind of model that does.
TEST(Reserved, AWordOfTheVocabularyThatIsSpecialIsText) {
  const Json vocab = {{"<unk>", 0}, {"<s>", 1}, {"a", 2}, {"<", 3},
                      {"s>", 4},    {"##>", 5}, {"s", 6}, {">", 7}};
  const Json word_level = {{"type", "WordLevel"}, {"vocab", vocab}, {"unk_token", "<unk>"}};
  const Json word_piece = {{"type", "WordPiece"},
                           {"vocab", vocab},
                           {"unk_token", "<unk>"},
                           {"continuing_subword_prefix", "##"},
                           {"max_input_chars_per_word", 100}};
  const Json whole = {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}, {"ignore_merges", true}};
  for (const Json& model : {word_level, word_piece, whole}) {
    const auto tokenizer = open_json({{"version", "1.0"},
                                      {"added_tokens", {added("<unk>", 0), added("<s>", 1)}},
                                      {"pre_tokenizer", {{"type", "WhitespaceSplit"}}},
                                      {"decoder", {{"type", "Fuse"}}},
                                      {"model", model}});
    ASSERT_NE(tokenizer, nullptr);
    expect_text(*tokenizer, "a <s> a", {"a", "<", "s>", "a"});
  }
}

// A file may call one of the 256 special, to fill up batches: it is still how text is spelled.
TEST(Reserved, TheAlphabetOfAByteLevelModelIsNot) {
  Json json = Json::parse(read_file(root_dir() + "/models/demo/tokenizer.json"));
  const auto id = json["model"]["vocab"]["!"].get<int32_t>();
  json["added_tokens"].push_back(added("!", id));
  const auto tokenizer = open_json(json);
  ASSERT_NE(tokenizer, nullptr);
  EXPECT_EQ(*tokenizer->decode(*tokenizer->encode("No!", false, true), false), "No!");
}

TEST(Reserved, ACharacterThatOnlyASpecialTokenSpellsIsRefused) {
  const Json vocab = {{"a", 0}, {"\u20ac", 1}};
  const auto tokenizer =
      open_json({{"version", "1.0"},
                 {"added_tokens", {added("\u20ac", 1)}},
                 {"decoder", {{"type", "Fuse"}}},
                 {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", Json::array()}}}});
  ASSERT_NE(tokenizer, nullptr);
  const auto ids = tokenizer->encode("a\u20ac", false, true);
  ASSERT_FALSE(ids.has_value());
  EXPECT_NE(ids.error().message.find("only a special token spells \"\u20ac\""), std::string::npos)
      << ids.error().message;
}

void expect_specials_are_text(const Tokenizer& tokenizer) {
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    const std::string spelling = tokenizer.token_text(id).value_or("");
    const bool is_byte = spelling.size() == 6 && spelling.starts_with("<0x") && spelling.ends_with(">");
    if (!tokenizer.token_bytes(id).special && !is_byte) continue;
    for (const std::string& text :
         {spelling, spelling + spelling, "a" + spelling + "b", " " + spelling + " "}) {
      const Ids plain = *tokenizer.encode(text, false, true);
      EXPECT_EQ(std::count(plain.begin(), plain.end(), id), 0) << text;
      EXPECT_EQ(specials_of(tokenizer, plain), Ids{}) << text;
      EXPECT_EQ(*tokenizer.encode_guarded(*tokenizer.guard(text)), plain) << text;
    }
  }
}

TEST_P(SharedTokenizer, FindsNoSpecialTokenAndNoByteInText) {
  const Tokenizer* const tokenizer = open_shared(GetParam());
  ASSERT_NE(tokenizer, nullptr);
  expect_specials_are_text(*tokenizer);
}

TEST(SentencePiece, FindsNoSpecialTokenAndNoByteInText) {
  if (!has_shared()) GTEST_SKIP() << "no " << shared_dir() << "/tokenizers (set QUIRE_SHARED)";
  for (const std::string name : {"llama2", "mistral-v3"})
    expect_specials_are_text(*open_shared(name, /*use_model=*/true));
}

// Random small tokenizers.

const std::vector<std::string> kSpecials = {"<s>", "</s>", "<a>", "<|b|>", "ab", "<0x41>"};
const std::string kAlphabet = "<>/|sabx041";

struct Made {
  std::unique_ptr<Tokenizer> tokenizer;
  bool bytes = false;  // every text is told from its ids
};

std::string any_of(Random& random, const std::vector<std::string>& choices) {
  return choices[random.below(choices.size())];
}

std::string random_text(Random& random, size_t max_parts) {
  std::string text;
  for (size_t parts = random.below(max_parts) + 1; parts > 0; --parts)
    text += random.chance(0.5) ? any_of(random, kSpecials)
                               : std::string(1, kAlphabet[random.below(kAlphabet.size())]);
  return text;
}

// Without the special tokens: what stands in the vocabulary beside them.
std::vector<std::string> random_words(Random& random) {
  std::set<std::string> words;
  for (const char letter : kAlphabet)
    if (random.chance(0.8)) words.insert({letter});
  for (int i = 0; i < 20; ++i) words.insert(random_text(random, 2).substr(0, 1 + random.below(6)));
  for (const std::string& special : kSpecials) words.erase(special);
  return {words.begin(), words.end()};
}

std::vector<std::string> spellings_of(const std::vector<std::string>& words, bool bytes) {
  std::vector<std::string> all = {"<unk>"};
  all.insert(all.end(), kSpecials.begin(), kSpecials.end() - (bytes ? 1 : 0));
  for (int byte = 0; bytes && byte < 256; ++byte) all.push_back(byte_spelling(byte));
  all.insert(all.end(), words.begin(), words.end());
  return all;
}

// Every way to make a spelling of two others, some left out.
Json merges_of(Random& random, const std::vector<std::string>& spellings) {
  const std::set<std::string> known(spellings.begin(), spellings.end());
  Json merges = Json::array();
  for (const std::string& spelling : known)
    for (size_t left = 1; left < spelling.size(); ++left)
      if (known.contains(spelling.substr(0, left)) && known.contains(spelling.substr(left)) &&
          random.chance(0.7))
        merges.push_back({spelling.substr(0, left), spelling.substr(left)});
  return merges;
}

Json random_model(Random& random, const std::string& type, const std::vector<std::string>& spellings,
                  bool bytes) {
  Json vocab = Json::object(), scored = Json::array();
  for (const std::string& spelling : spellings) {
    vocab[spelling] = vocab.size();
    scored.push_back({spelling, -10 * random.uniform()});
  }
  if (type == "Unigram") return {{"type", type}, {"unk_id", 0}, {"vocab", scored}, {"byte_fallback", bytes}};
  Json model = {{"type", type}, {"vocab", vocab}, {"unk_token", "<unk>"}};
  if (type == "WordPiece")
    model.update(
        {{"continuing_subword_prefix", any_of(random, {"##", ""})}, {"max_input_chars_per_word", 100}});
  if (type == "BPE")
    model.update({{"merges", merges_of(random, spellings)},
                  {"byte_fallback", bytes},
                  {"fuse_unk", random.chance(0.5)},
                  {"ignore_merges", random.chance(0.5)}});
  return model;
}

Made random_json(Random& random) {
  const std::string type = any_of(random, {"BPE", "Unigram", "WordLevel", "WordPiece"});
  const bool bytes = (type == "BPE" || type == "Unigram") && random.chance(0.5);
  const std::vector<std::string> spellings = spellings_of(random_words(random), bytes);
  Json tokens = Json::array();
  for (int32_t id = 0; id <= static_cast<int32_t>(kSpecials.size()) - (bytes ? 1 : 0); ++id)
    tokens.push_back(added(spellings[static_cast<size_t>(id)], id));
  Json decoders = Json::array();
  if (bytes) decoders.push_back({{"type", "ByteFallback"}});
  decoders.push_back({{"type", "Fuse"}});
  const Json json = {{"version", "1.0"},
                     {"added_tokens", tokens},
                     {"decoder", {{"type", "Sequence"}, {"decoders", decoders}}},
                     {"model", random_model(random, type, spellings, bytes)}};
  return {open_json(json), bytes};
}

Made random_sentencepiece(Random& random) {
  const ModelType type = random.chance(0.5) ? kBpe : kUnigram;
  const bool bytes = random.chance(0.5);
  std::vector<Piece> pieces;
  Json named = Json::object();
  for (const std::string& text : spellings_of(random_words(random), bytes)) {
    const auto id = static_cast<int32_t>(pieces.size());
    const bool is_special = std::ranges::count(kSpecials, text) != 0,
               is_byte = bytes && text.size() == 6 && text.starts_with("<0x");
    const Kind special = type == kBpe && random.chance(0.5) ? kUserDefined
                         : random.chance(0.5)               ? kNormal
                                                            : kControl;
    const Kind kind = id == 0 ? kUnknown : is_byte ? kByte : is_special ? special : kNormal;
    pieces.push_back({text, static_cast<float>(-10 * random.uniform()), kind});
    if (is_special && !is_byte) named[std::to_string(id)] = added(text, id);
  }
  const Json config = {{"added_tokens_decoder", named}, {"add_bos_token", false}};
  return {open_files("tokenizer.model", model_file(pieces, type, bytes), config), bytes};
}

void expect_text_stays_text(const Made& made, const std::string& text) {
  const Tokenizer& tokenizer = *made.tokenizer;
  const Ids plain = *tokenizer.encode(text, false, true);
  ASSERT_EQ(specials_of(tokenizer, plain), Ids{}) << text;
  if (made.bytes) {
    ASSERT_EQ(*tokenizer.decode(plain, false), text);
    ASSERT_EQ(*tokenizer.decode(*tokenizer.encode(text, false, false), false), text);
  }
  const Ids chat = *tokenizer.encode_guarded("<s>" + *tokenizer.guard(text) + "</s>");
  ASSERT_EQ(specials_of(tokenizer, chat), (Ids{*tokenizer.token_id("<s>"), *tokenizer.token_id("</s>")}))
      << text;
  ASSERT_EQ(Ids(chat.begin() + 1, chat.end() - 1), plain) << text;
}

TEST(Reserved, RandomTokenizersFindNoSpecialTokenInRandomText) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const Made made = random.chance(0.5) ? random_json(random) : random_sentencepiece(random);
    ASSERT_NE(made.tokenizer, nullptr);
    for (int i = 0; i < 20 && !HasFatalFailure(); ++i) expect_text_stays_text(made, random_text(random, 12));
    if (HasFatalFailure()) return;
  }
}

}  // namespace
}  // namespace quire::test
