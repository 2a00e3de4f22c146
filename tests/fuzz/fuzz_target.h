// What the fuzz targets share. Each is a libFuzzer program (https://llvm.org/docs/LibFuzzer.html) that defines fuzz_one and
// kCorpus; its committed seeds, tests/fuzz/corpus/NAME, are read whatever other corpus is named on the command line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace quire::fuzz {

extern const char* const kCorpus;
void fuzz_one(std::string_view input);

// Takes the part of input up to the first NUL; "" when there is none left.
inline std::string_view take_part(std::string_view& input) {
  const size_t end = input.find('\0');
  const std::string_view part = input.substr(0, end);
  input.remove_prefix(end == std::string_view::npos ? input.size() : end + 1);
  return part;
}

}  // namespace quire::fuzz
