// Chat templates and their variables: they render within their limits or fail with a message. Input: variables (JSON), NUL, template.
// The corpus has templates that cost much: values doubled and nested, lazy ones, chains of operators.
#include "src/base/check.h"
#include "src/text/chat_template.h"
#include "tests/fuzz/fuzz_target.h"

namespace quire::fuzz {

const char* const kCorpus = "template";

void fuzz_one(std::string_view input) {
  const std::string_view variables = take_part(input);
  const ChatTemplate::Limits limits = {.max_steps = 100'000, .max_output_bytes = 65'536};
  const auto chat = ChatTemplate::from_source(input, "{}", limits);
  if (!chat) {
    check(!chat.error().message.empty(), "a refusal says why");
    return;
  }
  const Result<std::string> text = (*chat)->render_json(variables, 1'700'000'000);
  check(!text || text->size() <= limits.max_output_bytes, "the output is bounded");
  check(text || !text.error().message.empty(), "a failure says why");
  const std::vector<ChatMessage> messages = {{.role = "user", .content = std::string(variables)}};
  static_cast<void>((*chat)->render(messages, true, variables));
}

}  // namespace quire::fuzz
