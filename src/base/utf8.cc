#include "src/base/utf8.h"

#include <fmt/format.h>

#include <cstdint>

namespace quire {
namespace {

struct Lead {
  size_t bytes = 0;                               // 0: never leads
  uint8_t second_low = 0x80, second_high = 0xbf;  // range of the second byte; later ones are 80..bf
};

Lead lead_of(uint8_t byte) {
  if (byte < 0x80) return {.bytes = 1};
  if (byte >= 0xc2 && byte <= 0xdf) return {.bytes = 2};
  if (byte == 0xe0) return {.bytes = 3, .second_low = 0xa0};
  if (byte == 0xed) return {.bytes = 3, .second_high = 0x9f};
  if (byte >= 0xe1 && byte <= 0xef) return {.bytes = 3};
  if (byte == 0xf0) return {.bytes = 4, .second_low = 0x90};
  if (byte >= 0xf1 && byte <= 0xf3) return {.bytes = 4};
  if (byte == 0xf4) return {.bytes = 4, .second_high = 0x8f};
  return {};
}

}  // namespace

Utf8Part first_part(std::string_view text) {
  const Lead lead = lead_of(static_cast<uint8_t>(text[0]));
  if (lead.bytes == 0) return {.kind = Utf8::kBad, .bytes = 1};
  for (size_t i = 1; i < lead.bytes; ++i) {
    if (i == text.size()) return {.kind = Utf8::kPartial, .bytes = i};
    const auto byte = static_cast<uint8_t>(text[i]);
    const bool fits =
        i == 1 ? byte >= lead.second_low && byte <= lead.second_high : byte >= 0x80 && byte <= 0xbf;
    if (!fits) return {.kind = Utf8::kBad, .bytes = i};
  }
  return {.kind = Utf8::kWhole, .bytes = lead.bytes};
}

std::optional<size_t> find_invalid_utf8(std::string_view text) {
  for (size_t start = 0; start < text.size();) {
    const Utf8Part part = first_part(text.substr(start));
    if (part.kind != Utf8::kWhole) return start;
    start += part.bytes;
  }
  return std::nullopt;
}

std::string cut_text(std::string_view text, size_t max_bytes) {
  if (text.size() <= max_bytes) return std::string(text);
  size_t end = max_bytes;
  while (end > 0 && (static_cast<uint8_t>(text[end]) & 0xc0u) == 0x80u) --end;  // inside a character
  return std::string(text.substr(0, end)) + "...";
}

std::string escape_controls(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<uint8_t>(text[i]);
    const auto next = static_cast<uint8_t>(i + 1 < text.size() ? text[i + 1] : 0);
    if (byte == '\n') {
      out += "\\n";
    } else if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\u{:04x}", byte);
    } else if (byte == 0xc2 && next >= 0x80 && next < 0xa0) {  // U+0080 to U+009F
      out += fmt::format("\\u{:04x}", next);
      ++i;
    } else {
      out += text[i];
    }
  }
  return out;
}

}  // namespace quire
