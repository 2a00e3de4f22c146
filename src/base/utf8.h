// Well-formed UTF-8, byte by byte (Unicode 15, table 3-7): no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace quire {

enum class Utf8 {
  kWhole,    // a character
  kPartial,  // the beginning of one; the text ends inside it
  kBad,      // not UTF-8
};

struct Utf8Part {
  Utf8 kind = Utf8::kBad;
  size_t bytes = 0;  // whole: of the character. partial: all that is left. bad: the maximal ill-formed part
                     // (Unicode 3.9, D93b)
};

// What text, which is not empty, starts with.
Utf8Part first_part(std::string_view text);

// The byte offset of the first sequence that is not UTF-8.
std::optional<size_t> find_invalid_utf8(std::string_view text);

// Text as it is, or its first whole characters, of at most max_bytes, and "...".
std::string cut_text(std::string_view text, size_t max_bytes);

// Text of a caller as one line that no terminal obeys: each control character (C0, DEL, C1) as \n or \u001b.
std::string escape_controls(std::string_view text);

}  // namespace quire
