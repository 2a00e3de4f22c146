// A config.json with its generation_config.json: understood, or refused with a message. Input: config, NUL, generation config.
#include "src/base/check.h"
#include "src/model/config.h"
#include "tests/fuzz/fuzz_target.h"

namespace quire::fuzz {

const char* const kCorpus = "config";

void fuzz_one(std::string_view input) {
  const std::string_view config = take_part(input);
  const auto spec = parse_model_config(config, input);
  check(spec || !spec.error().message.empty(), "a refusal says why");
}

}  // namespace quire::fuzz
