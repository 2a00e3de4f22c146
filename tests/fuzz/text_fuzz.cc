// The demo model's tokenizer on any text and any ids: what encodes decodes to itself, a guarded text has no special token, pushes join
// to the decoding of the whole, and the stop matcher loses no text. Input: text, NUL, stop string, NUL, ids as 16-bit numbers.
#include <cstring>

#include "src/base/check.h"
#include "src/text/detokenizer.h"
#include "src/text/stop_matcher.h"
#include "tests/fuzz/fuzz_target.h"

namespace quire::fuzz {

const char* const kCorpus = "text";

namespace {

constexpr std::string_view kGuard = "\xef\xb7\x90";  // U+FDD0, which encode_guarded takes out

const Tokenizer& demo() {
  static const std::unique_ptr<Tokenizer> tokenizer = [] {
    auto opened = Tokenizer::open(QUIRE_SOURCE_DIR "/models/demo");
    check(opened.has_value(), "the demo tokenizer opens");
    return std::move(*opened);
  }();
  return *tokenizer;
}

void encode(const std::string& text) {
  const auto plain = demo().encode(text, false, /*special_as_text=*/true);
  if (!plain) return;  // not UTF-8
  check(*demo().decode(*plain, true) == text, "byte-level text decodes to itself");
  check(*demo().decode(*demo().encode(text, false, false), false) == text,
        "special tokens decode to themselves");
  const std::vector<int32_t> guarded = *demo().encode_guarded(*demo().guard(text));
  check(guarded == *plain || text.find(kGuard) != text.npos, "a guarded text is plain text");
  for (const int32_t id : guarded)
    check(!demo().token_bytes(id).special, "no special token comes out of a guarded text");
}

void decode(const std::vector<int32_t>& ids, const std::string& stop) {
  const std::string whole = *demo().decode(ids, true);
  Detokenizer detokenizer(demo(), true);
  StopMatcher matcher({stop}, /*include_stop=*/true);
  std::string text, sent;
  bool stopped = false;
  const auto take = [&](const std::string& piece) {
    text += piece;
    const StopMatcher::Step step = matcher.push(piece);
    sent += step.text;
    stopped |= step.stop.has_value();
  };
  for (const int32_t id : ids) take(detokenizer.push(id));
  take(detokenizer.flush());
  sent += matcher.flush();
  check(text == whole, "pushes join to the decoding of the whole");
  check(stopped == (!stop.empty() && whole.find(stop) != whole.npos),
        "a stop string is found where there is one");
  check(sent == (stopped ? whole.substr(0, whole.find(stop) + stop.size()) : whole),
        "the text up to the stop is sent");
}

}  // namespace

void fuzz_one(std::string_view input) {
  const std::string text(take_part(input)), stop(take_part(input));
  std::vector<int32_t> ids(input.size() / 2);
  for (size_t i = 0; i < ids.size(); ++i) {
    uint16_t id = 0;
    std::memcpy(&id, input.data() + 2 * i, sizeof id);
    ids[i] = id % demo().vocab_size();
  }
  encode(text);
  decode(ids, stop);
}

}  // namespace quire::fuzz
