// quire chat: a conversation in the terminal, with an engine in this process. The history is the prompt, so
// every turn after the first finds its beginning in the prefix cache.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iostream>

#include "quire/engine.h"
#include "server/collector.h"
#include "server/commands/command.h"
#include "server/commands/common_flags.h"
#include "server/json_output.h"
#include "src/base/utf8.h"

namespace quire::server {
namespace {

struct Options {
  EngineConfig engine;
  RequestFlags request;
  LogOptions log;
  std::string system;
  std::string output = "text";
};

void bind(Flags& flags, Options& o) {
  o.request.request.sampling.max_tokens = 512;
  flags.add("system", o.system, "The system message");
  flags.add_choice("output", o.output, {"text", "json", "jsonl"},
                   "text as it comes, or one JSON object a turn");
  bind_request_flags(flags, o.request);
  bind_engine_flags(flags, o.engine);
  bind_log_flags(flags, o.log);
  flags.add_config();
}

class Conversation {
 public:
  Conversation(Engine& engine, const Request& defaults, const Options& options)
      : engine_(engine), defaults_(defaults), as_text_(options.output == "text"), system_(options.system) {
    reset();
  }

  // Lines from standard input until its end or /exit. False if the last turn failed.
  bool run() {
    const bool prompted = as_text_ && isatty(STDIN_FILENO) != 0;
    if (prompted) fmt::print("/reset forgets the conversation, /exit ends it.\n");
    bool fine = true;
    for (std::string line; read_line(prompted, line);) {
      if (line == "/exit") break;
      if (line == "/reset")
        reset();
      else if (!line.empty())
        fine = turn(line);
    }
    return fine;
  }

 private:
  static bool read_line(bool prompted, std::string& line) {
    if (prompted) {
      fmt::print("> ");
      std::fflush(stdout);
    }
    return static_cast<bool>(std::getline(std::cin, line));
  }

  void reset() {
    messages_.clear();
    if (!system_.empty()) messages_.push_back({.role = "system", .content = system_});
  }

  // The oldest turns make way for the answer.
  void make_room() {
    int32_t dropped = 0;
    while (!leaves_room() && drop_oldest_turn()) ++dropped;
    if (dropped > 0)
      fmt::print(stderr,
                 "({} of the oldest turns forgotten: the conversation no longer fits into the model's {} "
                 "tokens; /reset forgets all)\n",
                 dropped, engine_.model().max_context_tokens);
  }

  // For what an answer may take, or a quarter of the context where that is less.
  bool leaves_room() const {
    const Result<std::string> text = engine_.render_chat(messages_);
    if (!text) return true;  // submitting tells why
    const auto ids = engine_.tokenize(*text, /*add_special_tokens=*/false, /*special_as_text=*/false);
    if (!ids) return true;
    const int32_t context = engine_.model().max_context_tokens;
    const int32_t wanted = std::min(defaults_.sampling.max_tokens, context / 4);
    return static_cast<int64_t>(ids->size()) + wanted <= context;
  }

  bool drop_oldest_turn() {
    const ptrdiff_t first = system_.empty() ? 0 : 1;
    if (std::ssize(messages_) - first < 3) return false;  // what is left is the question
    messages_.erase(messages_.begin() + first, messages_.begin() + first + 2);
    return true;
  }

  bool turn(const std::string& line) {
    if (const auto offset = find_invalid_utf8(line))
      return fail(invalid(fmt::format("the line is not UTF-8 at byte {}", *offset))) == 0;
    messages_.push_back({.role = "user", .content = line});
    make_room();
    Request request = defaults_;
    request.fit_max_tokens = true;
    request.prompt = messages_;
    const auto collector = std::make_shared<Collector>([this](const std::string& text) {
      if (!as_text_) return;
      std::fwrite(text.data(), 1, text.size(), stdout);
      std::fflush(stdout);
    });
    const Result<RequestId> id = engine_.submit(std::move(request), collector);
    const Completion completion = id ? collector->wait() : Completion{.error = id.error()};
    if (completion.error) {
      messages_.pop_back();
      return fail(*completion.error) == 0;
    }
    fmt::print("{}\n", as_text_ ? "" : to_json(completion));
    std::fflush(stdout);
    messages_.push_back({.role = "assistant", .content = completion.outputs.front().text});
    return true;
  }

  Engine& engine_;
  const Request defaults_;
  const bool as_text_;
  const std::string system_;
  std::vector<ChatMessage> messages_;
};

}  // namespace

int run_chat(const Arguments& arguments) {
  Options options;
  Flags flags("quire chat",
              "Talk to a model that has a chat template. Reads a line a turn from standard input.");
  bind(flags, options);
  const Result<bool> parsed = flags.parse(arguments);
  if (!parsed) return fail(parsed.error(), kExitUsage);
  if (!*parsed) return 0;
  apply(options.log);
  auto defaults = finish(options.request);
  if (!defaults) return fail(defaults.error(), kExitUsage);
  if (Status shown = check_output(options.request, options.output); !shown)
    return fail(shown.error(), kExitUsage);
  if (Status utf8 = check_utf8("--system", options.system); !utf8) return fail(utf8.error(), kExitUsage);
  const auto engine = Engine::open(options.engine);
  if (!engine) return fail(engine.error());
  take_model_defaults(flags, (*engine)->model().default_sampling, defaults->sampling);
  if (!(*engine)->model().has_chat_template)
    return fail(
        error(Code::kFailedPrecondition, fmt::format("{} has no chat template", options.engine.model_dir)));
  return Conversation(**engine, *defaults, options).run() ? 0 : kExitFailed;
}

}  // namespace quire::server
