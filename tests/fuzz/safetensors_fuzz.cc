// A safetensors header before a buffer of some size: every tensor that is handed out lies inside the buffer. Input: 4 bytes of
// buffer size, then the header.
#include <cstring>

#include "src/base/check.h"
#include "src/model/safetensors.h"
#include "tests/fuzz/fuzz_target.h"

namespace quire::fuzz {

const char* const kCorpus = "safetensors";

void fuzz_one(std::string_view input) {
  uint32_t buffer_bytes = 0;
  if (input.size() < sizeof buffer_bytes) return;
  std::memcpy(&buffer_bytes, input.data(), sizeof buffer_bytes);
  input.remove_prefix(sizeof buffer_bytes);
  const auto tensors = parse_safetensors_header(input, buffer_bytes, "fuzzed.safetensors");
  if (!tensors) {
    check(tensors.error().message.find("fuzzed.safetensors") != std::string::npos,
          "a refusal names the file");
    return;
  }
  for (const TensorView& tensor : *tensors)
    check(tensor.begin >= 0 && tensor.begin <= tensor.end && tensor.end <= static_cast<int64_t>(buffer_bytes),
          "inside the buffer");
}

}  // namespace quire::fuzz
