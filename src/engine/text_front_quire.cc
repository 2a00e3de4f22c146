// Text over src/text: tokenizer, chat template, detokenizer, stop matcher.
#include "src/engine/text_front.h"

#include "src/base/log.h"
#include "src/text/chat_template.h"
#include "src/text/detokenizer.h"
#include "src/text/stop_matcher.h"
#include "src/text/tokenizer.h"

namespace quire {
namespace {

class QuireTextStream final : public TextStream {
 public:
  QuireTextStream(const Tokenizer& tokenizer, const SamplingParams& sampling, std::span<const int32_t> prompt)
      : detokenizer_(tokenizer, sampling.skip_special_tokens, prompt),
        stops_(sampling.stop, sampling.include_stop) {}

  Piece push(int32_t id, bool may_stop) override {
    StopMatcher::Step step = stops_.push(detokenizer_.push(id), may_stop);
    return {std::move(step.text), std::move(step.stop)};
  }
  std::string flush() override {
    std::string text = stops_.push(detokenizer_.flush(), false).text;
    return text += stops_.flush();
  }

 private:
  Detokenizer detokenizer_;
  StopMatcher stops_;
};

class QuireTextFront final : public TextFront {
 public:
  QuireTextFront(std::unique_ptr<Tokenizer> tokenizer, std::unique_ptr<ChatTemplate> chat)
      : tokenizer_(std::move(tokenizer)), chat_(std::move(chat)) {}

  bool has_tokenizer() const override { return true; }
  bool has_chat_template() const override { return chat_ != nullptr; }

  Result<std::vector<int32_t>> encode(std::string_view text, bool add_special_tokens, bool special_as_text,
                                      size_t max_ids) const override {
    return tokenizer_->encode(text, add_special_tokens, special_as_text, max_ids);
  }
  Result<std::vector<int32_t>> encode_chat(std::span<const ChatMessage> messages, bool special_as_text,
                                           size_t max_ids) const override {
    if (chat_ == nullptr) return no_template();
    return chat_->encode(*tokenizer_, messages, true, special_as_text, {}, max_ids);
  }
  Result<std::string> render_chat(std::span<const ChatMessage> messages) const override {
    if (chat_ == nullptr) return no_template();
    return chat_->render(messages, true);
  }
  Result<std::string> decode(std::span<const int32_t> ids, bool skip_special_tokens) const override {
    return tokenizer_->decode(ids, skip_special_tokens);
  }
  std::unique_ptr<TextStream> stream(const SamplingParams& sampling,
                                     std::span<const int32_t> prompt) const override {
    return std::make_unique<QuireTextStream>(*tokenizer_, sampling, prompt);
  }

 private:
  static Error no_template() {
    Error e = error(Code::kFailedPrecondition,
                    "this model has no chat template: send the prompt as text or token ids");
    e.field = "messages";
    return e;
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> chat_;
};

// Often only padding of the model's vocabulary, which it never chooses; a tokenizer of another model looks the same.
void warn_of_ids_without_a_token(const Tokenizer& tokenizer) {
  const int32_t without = tokenizer.ids_without_a_token();
  if (without > 0)
    log_line(
        LogLevel::kWarn, "ids_without_a_token",
        {{"ids", without}, {"vocab_size", tokenizer.vocab_size()}, {"effect", "they decode to no text"}});
}

}  // namespace

Result<std::unique_ptr<TextFront>> open_text_front(const std::string& model_dir, int32_t vocab_size) {
  if (!Tokenizer::exists(model_dir))
    return make_ids_only_front(
        "this model's directory has no tokenizer.json or tokenizer.model: prompts must be token ids");
  Result<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::open(model_dir, vocab_size);
  if (!tokenizer) return tokenizer.error();
  warn_of_ids_without_a_token(**tokenizer);
  Result<std::unique_ptr<ChatTemplate>> chat = ChatTemplate::open(model_dir);
  if (!chat) return chat.error();
  return std::unique_ptr<TextFront>(
      std::make_unique<QuireTextFront>(std::move(*tokenizer), std::move(*chat)));
}

}  // namespace quire
