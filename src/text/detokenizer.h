// Token ids to text as they come: each push returns the characters that are now complete, never half of one.
// All pushes and the flush, joined, are what Tokenizer::decode gives for the same ids. One sequence, one
// thread; O(bytes of the token) per push.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "src/text/tokenizer.h"

namespace quire {

class Detokenizer {
 public:
  // context: the tokens before the first push (the prompt). Their text is not returned, but it decides
  // whether the first token's leading space stays, and a character begun there may be completed here.
  // tokenizer must outlive this.
  Detokenizer(const Tokenizer& tokenizer, bool skip_special_tokens, std::span<const int32_t> context = {});

  std::string push(int32_t id);
  // At the end: an incomplete character comes out as U+FFFD.
  std::string flush();

 private:
  void append(std::string_view bytes, std::string& text);
  void replace(size_t bad_bytes, std::string& text) const;

  const Tokenizer* tokenizer_;
  DecodeRules rules_;
  bool skip_special_tokens_;
  bool at_start_ = true;
  std::string partial_;  // at most 3 bytes: a character begun and not ended
};

}  // namespace quire
