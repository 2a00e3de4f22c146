// What every command shares: its entry in the table, and how it ends.
#pragma once

#include <string>
#include <vector>

#include "quire/result.h"

namespace quire::server {

// Exit codes: 0 done, 1 failed (one line on standard error says why), 2 the command line was not understood.
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;

using Arguments = std::vector<std::string>;

struct Command {
  std::string words;  // "inspect kv"
  std::string summary;
  int (*run)(const Arguments& arguments);
};

int run_serve(const Arguments& arguments);
int run_generate(const Arguments& arguments);
int run_chat(const Arguments& arguments);
int run_tokenize(const Arguments& arguments);
int run_detokenize(const Arguments& arguments);
int run_inspect_kv(const Arguments& arguments);
int run_inspect_model(const Arguments& arguments);
int run_bench_offline(const Arguments& arguments);
int run_bench_sim(const Arguments& arguments);
int run_healthcheck(const Arguments& arguments);

// "quire: MESSAGE" on standard error, one line whatever the message quotes; gives back `exit_code`.
int fail(const Error& error, int exit_code = kExitFailed);

}  // namespace quire::server
