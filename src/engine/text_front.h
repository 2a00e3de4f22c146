// Text as the engine needs it: prompts in, text out piece by piece. A seam: implemented over src/text where
// that is built (text_front_quire.cc); a build without it, or a model without a tokenizer, takes and gives
// token ids only. const members may be called from any thread; a TextStream belongs to the delivery thread.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quire/request.h"
#include "quire/result.h"

namespace quire {

// The text of one sequence as its ids come.
class TextStream {
 public:
  virtual ~TextStream() = default;
  struct Piece {
    std::string text;                 // complete characters, and nothing a stop text may begin in
    std::optional<std::string> stop;  // the stop text that was met; nothing more will come
  };
  virtual Piece push(int32_t id, bool may_stop) = 0;
  virtual std::string flush() = 0;  // what was held back, at an end that is no stop text's
};

class TextFront {
 public:
  virtual ~TextFront() = default;
  virtual bool has_tokenizer() const = 0;
  virtual bool has_chat_template() const = 0;
  static constexpr size_t kAnyNumber = std::numeric_limits<size_t>::max();
  // Errors: no tokenizer (kFailedPrecondition, says why), text that is not UTF-8, what a template raises;
  // kOutOfRange for more than max_ids ids, as early as that is certain.
  virtual Result<std::vector<int32_t>> encode(std::string_view text, bool add_special_tokens,
                                              bool special_as_text, size_t max_ids) const = 0;
  virtual Result<std::vector<int32_t>> encode_chat(std::span<const ChatMessage> messages,
                                                   bool special_as_text, size_t max_ids) const = 0;
  virtual Result<std::string> render_chat(std::span<const ChatMessage> messages) const = 0;
  virtual Result<std::string> decode(std::span<const int32_t> ids, bool skip_special_tokens) const = 0;
  // nullptr without a tokenizer.
  virtual std::unique_ptr<TextStream> stream(const SamplingParams& sampling,
                                             std::span<const int32_t> prompt) const = 0;
};

// A model directory's tokenizer and chat template, where it has them. Errors name the file.
Result<std::unique_ptr<TextFront>> open_text_front(const std::string& model_dir, int32_t vocab_size);

// Ids only; every refusal gives `reason`.
std::unique_ptr<TextFront> make_ids_only_front(std::string reason);

}  // namespace quire
