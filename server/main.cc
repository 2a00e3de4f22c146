// quire's binary: finds the command, runs it.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <span>
#include <string_view>
#include <system_error>

#include "server/commands/command.h"
#include "server/library_log.h"
#include "server/progress_bar.h"
#include "server/version.h"
#include "src/base/utf8.h"

namespace quire::server {
namespace {

const Command kCommands[] = {
    {"serve", "serve a model over gRPC", run_serve},
    {"generate", "continue prompts, in this process", run_generate},
    {"chat", "talk to a model in the terminal", run_chat},
    {"tokenize", "texts to token ids", run_tokenize},
    {"detokenize", "token ids to texts", run_detokenize},
    {"inspect kv", "what a model's KV cache costs", run_inspect_kv},
    {"inspect model", "what was understood of a checkpoint", run_inspect_model},
#ifdef QUIRE_HAS_BENCH_OFFLINE  // -DQUIRE_BENCHMARKS=OFF leaves the bench commands out
    {"bench offline", "measure the engine without a wire", run_bench_offline},
#endif
#ifdef QUIRE_HAS_BENCH_SIM
    {"bench sim", "simulate scheduler and cache, with faults, from a seed", run_bench_sim},
#endif
    {"healthcheck", "ask a server whether it is ready", run_healthcheck},
};

// With a first word ("inspect"), only the commands that begin with it.
void print_usage(std::FILE* out, std::string_view first = {}) {
  fmt::print(out,
             "quire {}: serves large language models; the KV cache is the product.\n\nusage: quire COMMAND "
             "[FLAGS]\n\n",
             kVersion);
  for (const Command& command : kCommands)
    if (command.words.starts_with(first)) fmt::print(out, "  {:16} {}\n", command.words, command.summary);
  fmt::print(out,
             "\nquire COMMAND --help lists a command's flags with units, defaults and environment names.\n");
}

// Whether `words` begin with the command's one or two words.
bool begins_with(std::span<char*> words, const Command& command) {
  const std::string_view wanted = command.words;
  const size_t blank = wanted.find(' ');
  if (words.empty() || words[0] != wanted.substr(0, blank)) return false;
  return blank == std::string_view::npos || (words.size() > 1 && words[1] == wanted.substr(blank + 1));
}

bool is_group(std::string_view first) {
  const auto begins = [&](const Command& c) { return c.words.starts_with(std::string(first) + " "); };
  return std::any_of(std::begin(kCommands), std::end(kCommands), begins);
}

const Command* find_command(std::span<char*> words) {
  for (const Command& command : kCommands)
    if (begins_with(words, command)) return &command;
  return nullptr;
}

// The next file or socket that is opened would take the number of a closed one, and what is printed or logged would go there.
Status open_standard_streams() {
  const bool has_output = fcntl(STDOUT_FILENO, F_GETFD) != -1;
  for (int stream = STDIN_FILENO; stream <= STDERR_FILENO; ++stream)
    if (fcntl(stream, F_GETFD) == -1 && open("/dev/null", O_RDWR) != stream)
      return error(Code::kInternal, fmt::format("standard stream {}: {}", stream, std::strerror(errno)));
  return has_output ? ok() : error(Code::kInternal, "standard output is closed");
}

int run(std::span<char*> words) {
  if (Status streams = open_standard_streams(); !streams) return fail(streams.error());
  const std::string first = words.empty() ? "" : words[0];
  if (first == "--help" || first == "-h" || first == "help") return print_usage(stdout), 0;
  if (first == "--version") return fmt::print("quire {}\n", kVersion), 0;
  const Command* command = find_command(words);
  if (command == nullptr && words.size() > 1 &&
      (std::string_view(words[1]) == "--help" || std::string_view(words[1]) == "-h") && is_group(first))
    return print_usage(stdout, first), 0;
  if (command == nullptr) {
    if (!first.empty())
      fmt::print(stderr, "quire: no command '{}{}{}'\n\n", escape_controls(first),
                 words.size() > 1 ? " " : "", escape_controls(words.size() > 1 ? words[1] : ""));
    print_usage(stderr);
    return kExitUsage;
  }
  show_progress();
  adopt_library_logs();
  const size_t num_words = command->words.find(' ') == std::string::npos ? 1 : 2;
  const int code =
      command->run(Arguments(words.begin() + static_cast<std::ptrdiff_t>(num_words), words.end()));
  // A full disk shows only when what was printed is written.
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return code;
  return fail(error(Code::kInternal, fmt::format("standard output: {}", std::strerror(errno))));
}

}  // namespace
}  // namespace quire::server

// Out of memory and what the system refuses (fmt throws where a disk is full) are the world's fault; what else is thrown is ours, and
// ends with its own text and a core.
// NOLINTNEXTLINE(bugprone-exception-escape)
int main(int argc, char** argv) {
  std::signal(SIGXFSZ, SIG_IGN);  // a write beyond ulimit -f is an error to report, and not the end
  try {
    return quire::server::run(std::span(argv + 1, static_cast<size_t>(argc > 0 ? argc - 1 : 0)));
  } catch (const std::bad_alloc&) {
    return quire::server::fail(quire::error(quire::Code::kResourceExhausted, "out of memory"));
  } catch (const std::system_error& refused) {
    return quire::server::fail(quire::error(quire::Code::kInternal, refused.what()));
  }
}
