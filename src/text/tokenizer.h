// Text to token ids and back, from a model directory's tokenizer.json (Hugging Face) or tokenizer.model
// (SentencePiece); a tokenizer_config.json beside it may tell what stands around a text. Immutable after open:
// any thread, no lock. The work is done by the Rust crate in ffi/; no exception and no panic leaves it. The files are trusted in what they cost: a pattern or a character map may
// make encoding slow or large, and only what multiplies (steps of a normaliser, copies of a text) is refused.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quire/result.h"

struct quire_tokenizer;  // ffi/quire_text_ffi.h

namespace quire {

// What one id contributes to a text.
struct TokenBytes {
  std::string_view bytes;  // UTF-8, or any bytes: a token may hold a part of a character
  bool special = false;    // a control token: left out where special tokens are skipped
};

// How token bytes become text; the two families differ at the start of a text and where bytes are not UTF-8.
struct DecodeRules {
  bool strip_leading_space = false;  // one space at the very start belongs to the encoding, not to the text
  bool replace_each_byte = false;    // U+FFFD per invalid byte (SentencePiece); else per maximal ill-formed
                                     // part (Unicode 3.9, U+FFFD)
};

class Tokenizer {
 public:
  static constexpr size_t kAnyNumber = std::numeric_limits<size_t>::max();

  // Errors name the file and what is wrong with it. With model_vocab_size (> 0), a tokenizer that has ids the
  // model lacks is refused, and vocab_size() is the model's.
  static Result<std::unique_ptr<Tokenizer>> open(const std::string& dir, int32_t model_vocab_size = 0);
  // Whether dir has a tokenizer.json or a tokenizer.model.
  static bool exists(const std::string& dir);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // add_special_tokens: what the tokenizer's own template puts around a text (BOS, EOS). special_as_text:
  // special tokens that stand in the text are read as plain text, whatever kind of model has them in its
  // vocabulary. A byte's spelling ("<0x41>") is text in any case. Errors: text that is not UTF-8, or that only
  // a special token spells; kOutOfRange for a text of more than max_ids ids, as early as that is certain:
  // often from its bytes alone.
  Result<std::vector<int32_t>> encode(std::string_view text, bool add_special_tokens, bool special_as_text,
                                      size_t max_ids = kAnyNumber) const;
  // A rendered chat: special tokens are recognised, but not those inside a part that went through guard()
  // before rendering. So the template's own role marks count and a message cannot forge one, spelled out or as
  // what the normaliser makes of another spelling. Adds no BOS: the template does.
  Result<std::vector<int32_t>> encode_guarded(std::string_view rendered, size_t max_ids = kAnyNumber) const;
  Result<std::string> guard(std::string_view part) const;
  // Encoding takes some 120 bytes of memory for each byte that is read at once: of parts of 64 KiB where this is
  // true (and more where a text has no two words for longer), else of the whole text. The ids are the same.
  bool reads_in_parts() const;

  // Equal to a Detokenizer's pushes and flush over the same ids. Errors: an id outside [0, vocab_size()).
  Result<std::string> decode(std::span<const int32_t> ids, bool skip_special_tokens) const;

  // Ids are below this: the model's vocabulary where it is known, else highest id + 1. Some may have no
  // token; they decode to nothing.
  int32_t vocab_size() const { return vocab_size_; }
  int32_t ids_without_a_token() const;
  std::optional<int32_t> token_id(std::string_view token) const;
  // As the vocabulary spells it ("Ġthe", "▁the", "<s>").
  std::optional<std::string> token_text(int32_t id) const;
  TokenBytes token_bytes(int32_t id) const;  // ids without a token have no bytes
  DecodeRules decode_rules() const { return rules_; }

 private:
  Result<std::vector<int32_t>> run_encode(std::string_view text, uint32_t flags, size_t max_ids) const;
  Tokenizer(quire_tokenizer* handle, int32_t vocab_size, DecodeRules rules)
      : handle_(handle), vocab_size_(vocab_size), rules_(rules) {}

  quire_tokenizer* handle_;
  int32_t vocab_size_;
  DecodeRules rules_;
};

}  // namespace quire
