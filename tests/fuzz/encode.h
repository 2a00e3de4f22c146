// What the tokenizers' fuzz targets share: one text through the C ABI, in parts of any size, where the server's are of 64 KiB.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/check.h"
#include "src/text/ffi/quire_text_ffi.h"

namespace quire::fuzz {

struct How {
  uint32_t flags = 0;
  size_t max_ids = SIZE_MAX;
  size_t part_bytes = SIZE_MAX;
};

// Frees it. A panic is caught at the ABI and told as an internal fault. One is known: where a Replace matches nothing at a text's start,
// the library has no place for what it inserts.
inline void check_refusal(quire_text error) {
  const std::string why(error.data, error.bytes);
  quire_text_free(error);
  check(!why.empty(), "a refusal says why");
  check(!why.starts_with("internal fault") || why.find("index out of bounds") != why.npos, why);
}

// None where it is refused.
inline std::optional<std::vector<int32_t>> encode(const quire_tokenizer* tokenizer, std::string_view text,
                                                  const How& how) {
  quire_ids ids{};
  quire_text error{};
  if (quire_tokenizer_encode(tokenizer, text.data(), text.size(), how.flags, how.max_ids, how.part_bytes,
                             &ids, &error) != 0) {
    check_refusal(error);
    return std::nullopt;
  }
  std::vector<int32_t> taken(ids.data, ids.data + ids.count);
  quire_ids_free(ids);
  return taken;
}

}  // namespace quire::fuzz
