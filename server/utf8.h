// UTF-8 as the standard has it (RFC 3629): no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

namespace quire::server {

// The byte offset of the first sequence that is not UTF-8.
std::optional<size_t> find_invalid_utf8(std::string_view text);

}  // namespace quire::server
