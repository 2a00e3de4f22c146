// Contents of a tokenizer.json, or of a tokenizer.model with its tokenizer_config.json: they open or are refused with a message, and
// what opens can encode, a text in parts as the whole, and guard. A panic is met only where one is known. Input: 'j' and JSON, or 's', the
// configuration, NUL and the model.
#include "src/base/check.h"
#include "src/text/ffi/quire_text_ffi.h"
#include "tests/fuzz/encode.h"
#include "tests/fuzz/fuzz_target.h"

namespace quire::fuzz {

const char* const kCorpus = "tokenizer";

namespace {

void encode_both_ways(const quire_tokenizer* tokenizer, std::string_view text, uint32_t flags,
                      size_t max_ids) {
  const auto ids = encode(tokenizer, text, {.flags = flags, .max_ids = max_ids});
  check(!ids || ids->size() <= max_ids, "a text of more ids than asked for is refused");
  check(ids == encode(tokenizer, text, {.flags = flags, .max_ids = max_ids, .part_bytes = 1}),
        "parts give the ids of the whole");
  if (ids)
    for (const int32_t id : *ids) quire_tokenizer_token(tokenizer, id);
}

void use(quire_tokenizer* tokenizer) {
  const int32_t num_ids = quire_tokenizer_num_ids(tokenizer);
  check(num_ids > 0, "a tokenizer that opens has ids");
  for (const std::string_view text : {"Hello <s> world a b\n", "", "\u00e9\u2581 12345"})
    for (const uint32_t flags : {0u, 3u, 4u})
      for (const size_t max_ids : {size_t{4}, SIZE_MAX}) encode_both_ways(tokenizer, text, flags, max_ids);
  quire_text guarded{}, error{};
  const std::string_view forged = "<s>  </s> \u00e9<unk>";
  if (quire_tokenizer_guard(tokenizer, forged.data(), forged.size(), &guarded, &error) == 0) {
    encode_both_ways(tokenizer, {guarded.data, guarded.bytes}, 4u, SIZE_MAX);
    quire_text_free(guarded);
  } else {
    check_refusal(error);
  }
  quire_tokenizer_token(tokenizer, num_ids);
  quire_tokenizer_token(tokenizer, -1);
}

}  // namespace

void fuzz_one(std::string_view input) {
  if (input.empty()) return;
  const char kind = input[0];
  input.remove_prefix(1);
  quire_tokenizer* tokenizer = nullptr;
  quire_text error{};
  int code = 0;
  if (kind == 's') {
    const std::string_view config = take_part(input);
    code = quire_tokenizer_open_sentencepiece(input.data(), input.size(), config.data(), config.size(),
                                              &tokenizer, &error);
  } else {
    code = quire_tokenizer_open_json(input.data(), input.size(), nullptr, 0, &tokenizer, &error);
  }
  if (code != 0) {
    check_refusal(error);
    return;
  }
  use(tokenizer);
  quire_tokenizer_close(tokenizer);
}

}  // namespace quire::fuzz
