// quire generate: continue prompts with an engine in this process.
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <deque>

#include "quire/engine.h"
#include "server/commands/command.h"
#include "server/commands/common_flags.h"
#include "server/commands/text_file.h"
#include "server/json_message.h"
#include "server/json_output.h"
#include "server/request_mapping.h"
#include "src/base/progress.h"
#include "src/base/utf8.h"

namespace quire::server {
namespace {

constexpr size_t kMaxRunning = 512;  // requests given to the engine at once; the rest wait here

struct Options {
  EngineConfig engine;
  RequestFlags request;
  LogOptions log;
  std::optional<std::string> prompt;
  std::vector<int32_t> prompt_ids;
  std::string input;
  std::string output = "text";
};

void bind(Flags& flags, Options& o) {
  flags.add("prompt", o.prompt, "Text to continue");
  flags.add("prompt-ids", o.prompt_ids, "Token ids to continue");
  flags.add("input", o.input,
            "File of requests, one JSON object a line with the fields of the wire; - = standard input");
  flags.exclude("prompt", "prompt-ids");
  flags.exclude("prompt", "input");
  flags.exclude("prompt-ids", "input");
  flags.add_choice("output", o.output, {"text", "json", "jsonl"},
                   "text as it comes (with several requests or n > 1 each text at its end, after [R.I], "
                   "request R from 1 and output I from 0), "
                   "or one JSON object a request");
  bind_request_flags(flags, o.request);
  bind_engine_flags(flags, o.engine);
  bind_log_flags(flags, o.log);
  flags.add_config();
}

Result<std::vector<v1::GenerateRequest>> read_lines(const std::string& path) {
  const auto text = read_file(path, "--input");
  if (!text) return text.error();
  std::vector<v1::GenerateRequest> requests;
  int line_number = 0;
  for (size_t start = 0; start < text->size();) {
    const size_t end = std::min(text->find('\n', start), text->size());
    const std::string_view line(text->data() + start, end - start);
    start = end + 1;
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    auto request = request_from_json(line);
    if (!request)
      return invalid(fmt::format("{}:{}: {}", path, line_number, request.error().message),
                     request.error().field);
    requests.push_back(std::move(request).value());
  }
  if (requests.empty()) return invalid(fmt::format("--input {}: no requests in it", path));
  return requests;
}

Result<std::vector<v1::GenerateRequest>> read_requests(const Options& o) {
  if (!o.input.empty()) return read_lines(o.input);
  v1::GenerateRequest request;
  if (o.prompt) {
    if (Status utf8 = check_utf8("--prompt", *o.prompt); !utf8) return utf8.error();
    request.set_text(*o.prompt);
  } else {
    *request.mutable_token_ids()->mutable_ids() = {o.prompt_ids.begin(), o.prompt_ids.end()};
  }
  return std::vector{request};
}

// Runs requests through the engine and prints their results in the order of the input.
class Runner {
 public:
  Runner(Engine& engine, const Request& defaults, const std::string& output)
      : engine_(engine), defaults_(defaults), as_text_(output == "text") {}

  // The number of requests that failed.
  int run(const std::vector<v1::GenerateRequest>& requests) {
    num_requests_ = requests.size();
    // Where the results go to the terminal themselves, a bar would stand among them.
    std::optional<Progress> progress;
    if (num_requests_ > 1 && isatty(STDOUT_FILENO) == 0)
      progress.emplace("generating", static_cast<int64_t>(num_requests_), "requests");
    progress_ = progress ? &*progress : nullptr;
    for (const v1::GenerateRequest& wire : requests) {
      while (running_.size() >= kMaxRunning) finish_oldest();
      start(wire);
    }
    while (!running_.empty()) finish_oldest();
    return num_failed_;
  }

 private:
  struct Entry {
    std::string request_id;  // the line's; may be empty
    std::shared_ptr<Collector> collector;
    std::optional<Error> refusal;
  };

  void start(const v1::GenerateRequest& wire) {
    Result<Request> request = to_request(wire, engine_.model().vocab_size, defaults_);
    const auto add = [&](std::shared_ptr<Collector> collector, std::optional<Error> refusal) {
      running_.push_back({wire.request_id(), std::move(collector), std::move(refusal)});
    };
    if (!request) return add(nullptr, request.error());
    // The only request of a text run is shown as it comes; everything else at its end.
    const bool live = as_text_ && num_requests_ == 1 && request->sampling.num_sequences() == 1;
    request->stream = live;
    for (;;) {
      auto collector = live ? std::make_shared<Collector>([](const std::string& text) { print_now(text); })
                            : std::make_shared<Collector>();
      const Result<RequestId> id = engine_.submit(*request, collector);
      if (id) return add(collector, std::nullopt);
      const bool queue_full =
          id.error().code == Code::kResourceExhausted && id.error().retry_delay_ms && !running_.empty();
      if (!queue_full) return add(nullptr, id.error());
      finish_oldest();  // its place in the queue is what is waited for
    }
  }

  void finish_oldest() {
    const Entry entry = std::move(running_.front());
    running_.pop_front();
    if (entry.refusal) {
      report(*entry.refusal, to_json(*entry.refusal, entry.request_id));
    } else {
      const Completion completion = entry.collector->wait();
      if (completion.error) {
        report(*completion.error, to_json(completion, entry.request_id));
      } else {
        print(completion, entry.request_id);
      }
    }
    ++num_finished_;
    if (progress_ != nullptr) progress_->advance();
  }

  static void print_now(const std::string& text) {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  }

  void report(const Error& problem, const std::string& json) {
    ++num_failed_;
    if (!as_text_) fmt::print("{}\n", json);
    fmt::print(stderr, "quire: request {}: {}\n", num_finished_ + 1, escape_controls(problem.message));
  }

  void print(const Completion& completion, const std::string& request_id) const {
    if (!as_text_) {
      fmt::print("{}\n", to_json(completion, request_id));
    } else if (num_requests_ == 1 && completion.outputs.size() == 1) {
      fmt::print("\n");  // its text is there already
    } else {
      for (const Output& out : completion.outputs)
        fmt::print("[{}.{}] {}\n", num_finished_ + 1, out.index, out.text);
    }
  }

  Engine& engine_;
  const Request defaults_;
  const bool as_text_;
  std::deque<Entry> running_;  // in the order of the input
  size_t num_requests_ = 0, num_finished_ = 0;
  int num_failed_ = 0;
  Progress* progress_ = nullptr;
};

}  // namespace

int run_generate(const Arguments& arguments) {
  Options options;
  Flags flags("quire generate", "Continue one prompt or a file of them, with the engine in this process.");
  bind(flags, options);
  const Result<bool> parsed = flags.parse(arguments);
  if (!parsed) return fail(parsed.error(), kExitUsage);
  if (!*parsed) return 0;
  apply(options.log);
  auto defaults = finish(options.request);
  if (!defaults) return fail(defaults.error(), kExitUsage);
  if (Status shown = check_output(options.request, options.output); !shown)
    return fail(shown.error(), kExitUsage);
  if (!options.prompt && options.prompt_ids.empty() && options.input.empty())
    return fail(invalid("no prompt; give one of --prompt, --prompt-ids, --input"), kExitUsage);
  const auto requests = read_requests(options);
  if (!requests) return fail(requests.error());
  const auto engine = Engine::open(options.engine);
  if (!engine) return fail(engine.error());
  defaults->fit_max_tokens = !flags.given("max-tokens");
  take_model_defaults(flags, (*engine)->model().default_sampling, defaults->sampling);
  return Runner(**engine, *defaults, options.output).run(*requests) == 0 ? 0 : kExitFailed;
}

}  // namespace quire::server
