#include "src/engine/text_front.h"

namespace quire {
namespace {

class IdsOnlyFront final : public TextFront {
 public:
  explicit IdsOnlyFront(std::string reason) : reason_(std::move(reason)) {}
  bool has_tokenizer() const override { return false; }
  bool has_chat_template() const override { return false; }
  Result<std::vector<int32_t>> encode(std::string_view, bool, bool, size_t) const override {
    return refusal();
  }
  Result<std::vector<int32_t>> encode_chat(std::span<const ChatMessage>, bool, size_t) const override {
    return refusal();
  }
  Result<std::string> render_chat(std::span<const ChatMessage>) const override { return refusal(); }
  Result<std::string> decode(std::span<const int32_t>, bool) const override { return refusal(); }
  std::unique_ptr<TextStream> stream(const SamplingParams&, std::span<const int32_t>) const override {
    return nullptr;
  }

 private:
  Error refusal() const { return error(Code::kFailedPrecondition, reason_); }
  std::string reason_;
};

}  // namespace

std::unique_ptr<TextFront> make_ids_only_front(std::string reason) {
  return std::make_unique<IdsOnlyFront>(std::move(reason));
}

}  // namespace quire
