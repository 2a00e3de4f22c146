// A model's chat template (Jinja, as Hugging Face renders it: trim_blocks, lstrip_blocks, Python methods on
// values, raise_exception, strftime_now, tojson without HTML escapes). Immutable after open: any thread.
// Bounded for any template, a hostile one too: the source and its tags; a rendering's steps, each of which works
// on a value of bounded size and depth; the output. So a rendering ends within seconds, on a stack of 2 MiB, in
// less than 1 GiB of memory (measured: 1.4 s and 0.8 GiB at most, the request's own included). It cannot be
// cancelled before.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quire/request.h"
#include "quire/result.h"
#include "src/text/tokenizer.h"

struct quire_template;  // ffi/quire_text_ffi.h

namespace quire {

class ChatTemplate {
 public:
  struct Limits {
    uint64_t max_steps = 10'000'000;  // instructions, bytes made (64 a step), parts of values seen (4 a step)
    uint64_t max_output_bytes = 16 * 1024 * 1024;  // a value may have twice as many
  };

  // From dir's chat_template.jinja, else from tokenizer_config.json: chat_template, a string or a list of
  // named templates (then "default", and "tool_use" where tools are given). A null pointer where the model
  // has none. Errors name the file; a template that does not parse is one.
  static Result<std::unique_ptr<ChatTemplate>> open(const std::string& dir);
  // special_tokens_json: an object of further variables ({"bos_token": "<s>", ...}).
  static Result<std::unique_ptr<ChatTemplate>> from_source(std::string_view source,
                                                           std::string_view special_tokens_json,
                                                           Limits limits);
  static Result<std::unique_ptr<ChatTemplate>> from_source(std::string_view source,
                                                           std::string_view special_tokens_json) {
    return from_source(source, special_tokens_json, Limits{});
  }
  ~ChatTemplate();
  ChatTemplate(const ChatTemplate&) = delete;
  ChatTemplate& operator=(const ChatTemplate&) = delete;

  // tools_json: a JSON array of tool descriptions, or "". Errors: what the template raises (kInvalidArgument:
  // "messages must alternate ..."), a limit passed, tools that are not JSON.
  Result<std::string> render(std::span<const ChatMessage> messages, bool add_generation_prompt,
                             std::string_view tools_json = {}) const;
  // Ids of the rendered chat. special_as_text: special tokens inside messages and tools are plain text
  // (Tokenizer::guard). max_ids: as in Tokenizer::encode.
  Result<std::vector<int32_t>> encode(const Tokenizer& tokenizer, std::span<const ChatMessage> messages,
                                      bool add_generation_prompt, bool special_as_text,
                                      std::string_view tools_json = {},
                                      size_t max_ids = Tokenizer::kAnyNumber) const;
  // Any variables, as a JSON object; they take precedence over the special tokens. now_unix_s: what
  // strftime_now reads, UTC.
  Result<std::string> render_json(std::string_view variables_json, int64_t now_unix_s) const;

 private:
  ChatTemplate(quire_template* main, quire_template* with_tools) : main_(main), with_tools_(with_tools) {}
  const quire_template* template_for(bool has_tools) const {
    return has_tools && with_tools_ != nullptr ? with_tools_ : main_;
  }

  quire_template* main_;
  quire_template* with_tools_;  // null: the main one
};

}  // namespace quire
