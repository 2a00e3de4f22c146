#include "src/text/detokenizer.h"

#include "src/base/utf8.h"

namespace quire {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

}  // namespace

// A space is stripped at the first text of all, and a character may begin in the context's last bytes: so the
// context runs through the same machine and its text is thrown away.
Detokenizer::Detokenizer(const Tokenizer& tokenizer, bool skip_special_tokens,
                         std::span<const int32_t> context)
    : tokenizer_(&tokenizer), rules_(tokenizer.decode_rules()), skip_special_tokens_(skip_special_tokens) {
  for (const int32_t id : context) push(id);
}

std::string Detokenizer::push(int32_t id) {
  std::string text;
  const TokenBytes token = tokenizer_->token_bytes(id);
  if ((token.special && skip_special_tokens_) || token.bytes.empty()) return text;
  append(token.bytes, text);
  return text;
}

std::string Detokenizer::flush() {
  std::string text;
  if (!partial_.empty()) replace(partial_.size(), text);
  partial_.clear();
  return text;
}

void Detokenizer::replace(size_t bad_bytes, std::string& text) const {
  for (size_t i = 0; i < (rules_.replace_each_byte ? bad_bytes : 1); ++i) text += kReplacement;
}

void Detokenizer::append(std::string_view bytes, std::string& text) {
  if (at_start_ && rules_.strip_leading_space && bytes.starts_with(' ')) bytes.remove_prefix(1);
  at_start_ = false;
  partial_ += bytes;
  std::string_view rest = partial_;
  while (!rest.empty()) {
    const Utf8Part part = first_part(rest);
    if (part.kind == Utf8::kPartial) break;
    if (part.kind == Utf8::kWhole)
      text += rest.substr(0, part.bytes);
    else
      replace(part.bytes, text);
    rest.remove_prefix(part.bytes);
  }
  partial_.erase(0, partial_.size() - rest.size());
}

}  // namespace quire
