// Command-line flags bound to variables. Each flag has a name, a unit or range, a default (the variable's
// value when bound), an environment name (QUIRE_ + the name in capitals) and a key in the JSON file of
// --config (the name, with - or _): by construction, so --help cannot forget one. Precedence: command line,
// environment, file, default.
//
// The one file that includes CLI11 is flags.cc: it costs seconds of compile time wherever it is included.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "quire/result.h"

namespace quire::server {

class Flags {
 public:
  // `command` is what the user typed: "quire inspect kv".
  Flags(const std::string& command, const std::string& description);
  ~Flags();

  // `name` without dashes ("max-tokens"); `help` says what it is, with its unit.
  void add(const std::string& name, std::string& target, const std::string& help);
  void add(const std::string& name, int32_t& target, const std::string& help);
  void add(const std::string& name, int64_t& target, const std::string& help);
  void add(const std::string& name, uint64_t& target, const std::string& help);
  void add(const std::string& name, double& target, const std::string& help);
  void add(const std::string& name, bool& target,
           const std::string& help);  // a switch: --name, or --name=false
  void add(const std::string& name, std::optional<uint64_t>& target, const std::string& help);
  void add(const std::string& name, std::optional<int64_t>& target, const std::string& help);
  void add(const std::string& name, std::optional<std::string>& target, const std::string& help);
  void add(const std::string& name, std::vector<int32_t>& target, const std::string& help);  // 1,2,3
  void add(const std::string& name, std::vector<int64_t>& target, const std::string& help);
  void add(const std::string& name, std::vector<std::string>& target, const std::string& help);  // repeated
  void add_choice(const std::string& name, std::string& target, const std::vector<std::string>& choices,
                  const std::string& help);
  void add_positional(const std::string& name, std::string& target, const std::string& help);
  void require(const std::string& name);
  void exclude(const std::string& name,
               const std::string& other);  // not both; what comes first of line, environment, file counts
  void add_config();                       // --config FILE.json

  // False: --help was asked for and printed. Errors name the flag, the value and what was expected.
  Result<bool> parse(const std::vector<std::string>& arguments);
  // After parse(): on the command line, in the environment or in the file.
  bool given(const std::string& name) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace quire::server
