// What the Rust crate hands over, as the project's own types. Used inside src/text only.
#pragma once

#include <string>
#include <string_view>

#include "quire/result.h"
#include "src/text/ffi/quire_text_ffi.h"

namespace quire {

inline constexpr int64_t kMaxModelTextBytes = 256 << 20;  // the largest tokenizers in use have 35 MB

// Copies and frees.
inline std::string take_text(quire_text text) {
  std::string copy(text.data, text.bytes);
  quire_text_free(text);
  return copy;
}

// code is one of quire::Code. prefix: the thing at fault ("dir/tokenizer.json: ").
inline Error ffi_error(int code, quire_text message, std::string_view prefix = {}) {
  return error(static_cast<Code>(code), std::string(prefix) + take_text(message));
}

}  // namespace quire
