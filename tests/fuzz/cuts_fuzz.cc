// A text in parts gives the ids of the whole, for BPE tokenizers put together from the steps that the published ones have, and from some
// that no text may be cut for. Input: letters of steps, NUL, the pattern of a split, NUL, merges (a line each, left TAB right), NUL, added
// tokens (a line each, its first character the flags), NUL, the text.
#include <cctype>
#include <map>
#include <nlohmann/json.hpp>

#include "src/base/check.h"
#include "tests/fuzz/encode.h"
#include "tests/fuzz/fuzz_target.h"

namespace quire::fuzz {

const char* const kCorpus = "cuts";

namespace {

using Json = nlohmann::json;

const std::string kMark = "\u2581", kSpaceByte = "\u0120";

std::vector<std::string_view> lines_of(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    if (end != 0) lines.push_back(text.substr(0, end));
    text.remove_prefix(end == text.npos ? text.size() : end + 1);
  }
  return lines;
}

Json split_by(const std::string& pattern) {
  return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
}

Json byte_level(bool add_prefix_space, bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", add_prefix_space},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

Json metaspace(const char* scheme, bool split) {
  return {{"type", "Metaspace"}, {"replacement", kMark}, {"prepend_scheme", scheme}, {"split", split}};
}

const std::map<char, Json>& normalizers() {
  static const std::map<char, Json> steps = {
      {'P', {{"type", "Prepend"}, {"prepend", kMark}}},
      {'R', {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kMark}}},
      {'C', {{"type", "NFC"}}},
      {'K', {{"type", "NFKC"}}},
      {'L', {{"type", "Lowercase"}}},
  };
  return steps;
}

const std::map<char, Json>& pre_tokenizers() {
  constexpr const char* kWords =
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  static const std::map<char, Json> steps = {
      {'b', byte_level(false, false)},
      {'B', byte_level(false, true)},
      {'c', byte_level(true, false)},
      {'d', byte_level(true, true)},
      {'m', metaspace("never", false)},
      {'M', metaspace("never", true)},
      {'f', metaspace("first", false)},
      {'F', metaspace("first", true)},
      {'a', metaspace("always", false)},
      {'A', metaspace("always", true)},
      {'w', split_by(kWords)},
      {'s', split_by(R"(\s+$)")},
      {'n', {{"type", "Digits"}, {"individual_digits", false}}},
      {'p', {{"type", "Punctuation"}, {"behavior", "Isolated"}}},
  };
  return steps;
}

Json vocabulary(bool with_spaces, bool with_letters) {
  Json vocab = {{"<unk>", 0}};
  const auto add = [&](const std::string& piece) { vocab.emplace(piece, vocab.size()); };
  for (char c = '!'; c <= '~'; ++c)
    if (with_letters || std::isalpha(static_cast<unsigned char>(c)) == 0) add({c});
  add("\u010a");  // a line's end, and the first byte of a mark, as bytes are spelled
  add("\u00e2");
  if (with_spaces)
    for (const std::string& space : {std::string(" "), kMark, kSpaceByte}) add(space);
  return vocab;
}

Json model_of(std::string_view letters, std::string_view merges) {
  const auto has = [&](char letter) { return letters.find(letter) != letters.npos; };
  Json model = {{"type", "BPE"}, {"vocab", vocabulary(!has('0'), !has('9'))}, {"merges", Json::array()}};
  for (const std::string_view line : lines_of(merges)) {
    const std::string left(line.substr(0, line.find('\t'))),
        right(line.substr(std::min(left.size() + 1, line.size())));
    if (left.empty()) continue;
    for (const std::string& piece : {left, right, left + right})  // alone: a word that no merge makes
      if (!piece.empty()) model["vocab"].emplace(piece, model["vocab"].size());
    if (!right.empty()) model["merges"].push_back(Json::array({left, right}));
  }
  if (has('i')) model["ignore_merges"] = true;
  if (has('u')) model.update({{"unk_token", "<unk>"}, {"fuse_unk", true}});
  if (has('e')) model["end_of_word_suffix"] = "</w>";
  return model;
}

Json added_of(std::string_view added, size_t first_id) {
  Json tokens = Json::array();
  for (const std::string_view line : lines_of(added)) {
    if (line.size() < 2) continue;
    const auto is_set = [&](int bit) { return (line[0] >> bit & 1) != 0; };
    tokens.push_back({{"id", first_id++},
                      {"content", line.substr(1)},
                      {"single_word", is_set(0)},
                      {"lstrip", is_set(1)},
                      {"rstrip", is_set(2)},
                      {"normalized", is_set(3)},
                      {"special", is_set(4)}});
  }
  return tokens;
}

std::string tokenizer_of(std::string_view& input) {
  const std::string_view letters = take_part(input), pattern = take_part(input);
  Json normalizing = Json::array(), splitting = Json::array();
  for (const char letter : letters) {
    if (const auto step = normalizers().find(letter); step != normalizers().end())
      normalizing.push_back(step->second);
    if (const auto step = pre_tokenizers().find(letter); step != pre_tokenizers().end())
      splitting.push_back(step->second);
    if (letter == 'x') splitting.push_back(split_by(std::string(pattern)));
  }
  const Json model = model_of(letters, take_part(input));
  const Json file = {{"version", "1.0"},
                     {"added_tokens", added_of(take_part(input), model["vocab"].size())},
                     {"normalizer", {{"type", "Sequence"}, {"normalizers", normalizing}}},
                     {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", splitting}}},
                     {"decoder", {{"type", "Fuse"}}},
                     {"model", model}};
  return file.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void compare(const quire_tokenizer* tokenizer, std::string_view text, uint32_t flags) {
  const auto whole = encode(tokenizer, text, {.flags = flags});
  for (const size_t part_bytes : {1, 2, 5, 11})
    check(whole == encode(tokenizer, text, {.flags = flags, .part_bytes = part_bytes}),
          "parts give the ids of the whole");
}

void compare_all(const quire_tokenizer* tokenizer, std::string_view text) {
  compare(tokenizer, text, 0);
  compare(tokenizer, text, QUIRE_ADD_SPECIAL | QUIRE_SPECIAL_AS_TEXT);
  quire_text guarded{}, error{};
  if (quire_tokenizer_guard(tokenizer, text.data(), text.size(), &guarded, &error) != 0)
    return quire_text_free(error);
  compare(tokenizer, {guarded.data, guarded.bytes}, QUIRE_GUARDED);
  quire_text_free(guarded);
}

}  // namespace

void fuzz_one(std::string_view input) {
  const std::string json = tokenizer_of(input);
  quire_tokenizer* tokenizer = nullptr;
  quire_text error{};
  if (quire_tokenizer_open_json(json.data(), json.size(), nullptr, 0, &tokenizer, &error) != 0)
    return quire_text_free(error);
  if (quire_tokenizer_reads_in_parts(tokenizer) != 0) compare_all(tokenizer, input);
  quire_tokenizer_close(tokenizer);
}

}  // namespace quire::fuzz
