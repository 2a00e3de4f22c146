#include "server/utf8.h"

#include <cstdint>

namespace quire::server {
namespace {

struct LeadByte {
  int continuation_bytes;
  uint32_t bits, least;  // payload of the lead byte; least code point of this length
};

std::optional<LeadByte> read_lead(uint8_t byte) {
  if (byte < 0x80) return LeadByte{0, byte, 0};
  if (byte >= 0xC2 && byte < 0xE0) return LeadByte{1, byte & 0x1Fu, 0x80};
  if (byte >= 0xE0 && byte < 0xF0) return LeadByte{2, byte & 0x0Fu, 0x800};
  if (byte >= 0xF0 && byte < 0xF5) return LeadByte{3, byte & 0x07u, 0x10000};
  return std::nullopt;
}

}  // namespace

std::optional<size_t> find_invalid_utf8(std::string_view text) {
  for (size_t start = 0; start < text.size();) {
    const auto lead = read_lead(static_cast<uint8_t>(text[start]));
    if (!lead || text.size() - start <= static_cast<size_t>(lead->continuation_bytes)) return start;
    uint32_t code = lead->bits;
    for (int i = 1; i <= lead->continuation_bytes; ++i) {
      const auto byte = static_cast<uint8_t>(text[start + i]);
      if ((byte & 0xC0u) != 0x80u) return start;
      code = (code << 6) | (byte & 0x3Fu);
    }
    const bool surrogate = code >= 0xD800 && code < 0xE000;
    if (code < lead->least || surrogate || code > 0x10FFFF) return start;
    start += 1 + static_cast<size_t>(lead->continuation_bytes);
  }
  return std::nullopt;
}

}  // namespace quire::server
