#include "server/flags.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <functional>
#include <map>
#include <set>

#include "server/commands/text_file.h"
#include "src/base/json_text.h"
#include "src/base/log.h"

namespace quire::server {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxConfigBytes = 1 << 20;

// ---- what a value must be, in words ----
std::string wanted(const bool&) {
  return "true or false";
}
std::string wanted(const std::string&) {
  return "a text in quotes";
}
std::string wanted(const double&) {
  return "a number";
}
template <class Int>
  requires std::is_integral_v<Int>
std::string wanted(const Int&) {
  return fmt::format("an integer from {} to {}", std::numeric_limits<Int>::min(),
                     std::numeric_limits<Int>::max());
}
template <class T>
std::string wanted(const std::optional<T>&) {
  return wanted(T{});
}
template <class T>
std::string wanted(const std::vector<T>&) {
  return "a list, each entry " + wanted(T{});
}

// ---- JSON values of a configuration file, type by type; false = the wrong type ----
bool read_json(const Json& json, bool& out) {
  return json.is_boolean() && (out = json.get<bool>(), true);
}
bool read_json(const Json& json, std::string& out) {
  return json.is_string() && (out = json.get<std::string>(), true);
}
bool read_json(const Json& json, double& out) {
  return json.is_number() && (out = json.get<double>(), true);
}

template <class Int>
  requires std::is_integral_v<Int>
bool read_json(const Json& json, Int& out) {
  if (json.is_number_unsigned()) {
    const auto value = json.get<uint64_t>();
    return std::in_range<Int>(value) && (out = static_cast<Int>(value), true);
  }
  if (!json.is_number_integer()) return false;
  const auto value = json.get<int64_t>();
  return std::in_range<Int>(value) && (out = static_cast<Int>(value), true);
}

template <class T>
bool read_json(const Json& json, std::optional<T>& out) {
  T value{};
  if (!read_json(json, value)) return false;
  out = std::move(value);
  return true;
}

template <class T>
bool read_json(const Json& json, std::vector<T>& out) {
  if (!json.is_array()) return false;
  std::vector<T> values(json.size());
  for (size_t i = 0; i < json.size(); ++i)
    if (!read_json(json[i], values[i])) return false;
  out = std::move(values);
  return true;
}

// ---- defaults as --help shows them ----
std::string show(bool value) {
  return value ? "on" : "off";
}
std::string show(const std::string& value) {
  return value.empty() ? "none" : value;
}
template <class T>
  requires std::is_arithmetic_v<T>
std::string show(T value) {
  return fmt::format("{}", value);
}
template <class T>
std::string show(const std::optional<T>& value) {
  return value ? fmt::format("{}", *value) : "none";
}
template <class T>
std::string show(const std::vector<T>& value) {
  return value.empty() ? "none" : fmt::format("{}", fmt::join(value, ","));
}

std::string environment_name(std::string name) {
  for (char& c : name) c = c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return "QUIRE_" + name;
}

// "" when it is one of the choices.
std::string not_among(const std::string& value, const std::vector<std::string>& choices) {
  if (std::find(choices.begin(), choices.end(), value) != choices.end()) return {};
  return fmt::format("'{}' is not one of {}", value, fmt::join(choices, ", "));
}

// "" when the whole text is a T. CLI11 would take -1 for an unsigned number and not tell the range.
template <class T>
  requires std::is_arithmetic_v<T>
std::string not_a(const std::string& text) {
  T value{};
  const char* const end = text.data() + text.size();
  const auto read = std::from_chars(text.data(), end, value);
  if (read.ec == std::errc() && read.ptr == end) return {};
  return fmt::format("'{}' is not {}", text, wanted(T{}));
}

// CLI11 reads 010 as eight and 08 not at all: it gets numbers without zeros in front. What is none stays as it was given.
std::string without_leading_zeros(std::string number) {
  const size_t digits = number.starts_with('-') ? 1 : 0;
  if (number.find_first_not_of("0123456789", digits) != std::string::npos) return number;
  size_t first = digits;
  while (first + 1 < number.size() && number[first] == '0') ++first;
  return number.erase(digits, first - digits);
}

std::string not_a_switch(const std::string& text) {
  static const std::set<std::string_view> kSwitches = {"true",  "on",  "yes", "enable",  "t", "y", "1",
                                                       "false", "off", "no",  "disable", "f", "n", "0"};
  std::string lower = text;
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return kSwitches.contains(lower) ? std::string() : fmt::format("'{}' is not true or false", text);
}

// What is wrong with a text as a value of T; nothing where any text will do.
using Problem = std::function<std::string(const std::string&)>;
template <class T>
Problem problem_of(const T&) {
  if constexpr (std::is_same_v<T, bool>)
    return not_a_switch;
  else if constexpr (std::is_arithmetic_v<T>)
    return not_a<T>;
  else
    return {};
}
template <class T>
Problem problem_of(const std::optional<T>&) {
  return problem_of(T{});
}
template <class T>
Problem problem_of(const std::vector<T>&) {  // of an entry
  return problem_of(T{});
}

// A text without a letter; nothing else is.
template <class T>
bool is_empty(const T& value) {
  if constexpr (std::is_same_v<T, std::string>)
    return value.empty();
  else
    return false;
}

bool has_empty_entry(const std::string& list) {
  return list.starts_with(',') || list.ends_with(',') || list.find(",,") != std::string::npos;
}

// Kubernetes sets QUIRE_PORT=tcp://10.0.0.1:50051 in every container beside a service named quire.
bool is_service_link(const std::string& variable, const std::string& value) {
  return variable.ends_with("_PORT") &&
         (value.starts_with("tcp://") || value.starts_with("udp://") || value.starts_with("sctp://"));
}

bool is_on_line(const std::string& name, const std::vector<std::string>& arguments) {
  const std::string option = "--" + name;
  return std::ranges::any_of(arguments, [&](const std::string& argument) {
    return argument == option || argument.starts_with(option + "=");
  });
}

bool is_in_environment(const std::string& name) {
  const char* const value = std::getenv(environment_name(name).c_str());
  return value != nullptr && *value != 0;
}

// "--name TYPE" on the left; default and environment stand in the description.
class HelpFormatter final : public CLI::Formatter {
 public:
  std::string make_option_opts(const CLI::Option* option) const override {
    return option->get_type_size() == 0 ? "" : " " + option->get_type_name();
  }
};

}  // namespace

struct Flags::State {
  struct Bound {
    CLI::Option* option = nullptr;
    std::function<bool(const Json&)> read;
    std::string wanted;
    std::vector<std::string> choices;  // empty = free
    bool in_file = false;
    Problem problem;  // of one value; none = any text will do
    bool is_list = false;
    std::vector<std::string> rivals;  // of which at most one may be given
    std::function<bool()> is_empty;
    bool required = false;
  };

  CLI::App app;
  std::map<std::string, Bound> bound;
  std::string config_path;
  bool takes_config = false;

  std::string told(const CLI::ParseError& problem) const;

  template <class T>
  Bound& bind(const std::string& name, CLI::Option* option, T& target, const std::string& help) {
    option->envname(environment_name(name));
    option->description(
        fmt::format("{} [default: {}] [env: {}]", help, show(target), environment_name(name)));
    option->multi_option_policy(CLI::MultiOptionPolicy::Throw);
    return bound[name] = Bound{.option = option,
                               .read = [&target](const Json& json) { return read_json(json, target); },
                               .wanted = wanted(target),
                               .problem = problem_of(target),
                               .is_empty = [&target] { return is_empty(target); }};
  }
  template <class T>
  Bound& bind_value(const std::string& name, T& target, const std::string& help, const char* type) {
    CLI::Option* option = app.add_option("--" + name, target)->type_name(type);
    Bound& bound = bind(name, option, target, help);
    if (bound.problem) option->check(bound.problem, "")->transform(without_leading_zeros);
    return bound;
  }
  template <class T>
  void bind_list(const std::string& name, std::vector<T>& target, const std::string& help, const char* type) {
    Bound& list = bind_value(name, target, help, type);
    list.is_list = true;
    CLI::Option* option = list.option;
    option->delimiter(',')->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)->expected(1, 1 << 20);
  }

  Status check_lists(const std::vector<std::string>& arguments) const;
  Status check_environment(const std::vector<std::string>& arguments) const;
  void forget_overruled_environment(const std::vector<std::string>& arguments) const;
  Status read_config_file(const std::vector<std::string>& arguments);
  Status apply(const std::string& path, const Json& json, const std::vector<std::string>& arguments);
};

Flags::Flags(const std::string& command, const std::string& description) : state_(std::make_unique<State>()) {
  state_->app.description(description);
  state_->app.name(command);
  auto formatter = std::make_shared<HelpFormatter>();
  formatter->column_width(38);
  state_->app.formatter(formatter);
  state_->app.get_help_ptr()->description("Print this help and exit");
}
Flags::~Flags() = default;

void Flags::add(const std::string& n, std::string& t, const std::string& h) {
  state_->bind_value(n, t, h, "TEXT");
}
void Flags::add(const std::string& n, int32_t& t, const std::string& h) {
  state_->bind_value(n, t, h, "INT");
}
void Flags::add(const std::string& n, int64_t& t, const std::string& h) {
  state_->bind_value(n, t, h, "INT");
}
void Flags::add(const std::string& n, uint64_t& t, const std::string& h) {
  state_->bind_value(n, t, h, "INT");
}
void Flags::add(const std::string& n, double& t, const std::string& h) {
  state_->bind_value(n, t, h, "NUMBER");
}
void Flags::add(const std::string& n, std::optional<uint64_t>& t, const std::string& h) {
  state_->bind_value(n, t, h, "INT");
}
void Flags::add(const std::string& n, std::optional<int64_t>& t, const std::string& h) {
  state_->bind_value(n, t, h, "INT");
}
void Flags::add(const std::string& n, std::optional<std::string>& t, const std::string& h) {
  state_->bind_value(n, t, h, "TEXT");
}
void Flags::add(const std::string& n, std::vector<int32_t>& t, const std::string& h) {
  state_->bind_list(n, t, h, "INT,...");
}
void Flags::add(const std::string& n, std::vector<int64_t>& t, const std::string& h) {
  state_->bind_list(n, t, h, "INT,...");
}

void Flags::add(const std::string& n, bool& t, const std::string& h) {
  state_->bind(n, state_->app.add_flag("--" + n, t), t, h).option->disable_flag_override(false);
}

void Flags::add(const std::string& n, std::vector<std::string>& t, const std::string& h) {
  CLI::Option* option = state_->bind_value(n, t, h, "TEXT").option;
  option->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)->allow_extra_args(false);
}

void Flags::add_choice(const std::string& n, std::string& t, const std::vector<std::string>& choices,
                       const std::string& h) {
  State::Bound& bound = state_->bind_value(n, t, h, "");
  bound.choices = choices;
  bound.wanted = fmt::format("one of {}", fmt::join(choices, ", "));
  bound.option->type_name(fmt::format("{}", fmt::join(choices, "|")));
  bound.problem = [choices](const std::string& value) { return not_among(value, choices); };
  bound.option->check(bound.problem, "");
}

void Flags::add_positional(const std::string& n, std::string& t, const std::string& h) {
  state_->bind(n, state_->app.add_option(n, t)->type_name("TEXT"), t, h);
}

void Flags::require(const std::string& name) {
  State::Bound& bound = state_->bound.at(name);
  bound.option->required();
  bound.required = true;
}

void Flags::exclude(const std::string& name, const std::string& other) {
  State::Bound &one = state_->bound.at(name), &two = state_->bound.at(other);
  one.option->excludes(two.option);
  one.rivals.push_back(other);
  two.rivals.push_back(name);
}

void Flags::add_config() {
  state_->takes_config = true;
  state_->app.add_option("--config", state_->config_path)
      ->type_name("FILE")
      ->envname("QUIRE_CONFIG")
      ->description(
          "JSON object of these flags by name, for example {\"max_sequences\": 64} [default: none] [env: "
          "QUIRE_CONFIG]");
}

// CLI11 blames the flag for what the environment says.
Status Flags::State::check_environment(const std::vector<std::string>& arguments) const {
  for (const auto& [name, flag] : bound) {
    if (!is_in_environment(name) || !flag.problem || is_on_line(name, arguments)) continue;
    const std::string variable = environment_name(name), value = std::getenv(variable.c_str());
    if (is_service_link(variable, value)) {
      log_line(
          LogLevel::kWarn, "environment_ignored",
          {{"name", variable}, {"value", value}, {"why", "Kubernetes sets it for a service of that name"}});
      unsetenv(variable.c_str());
      continue;
    }
    if (flag.is_list && has_empty_entry(value))
      return invalid(fmt::format("{}: '{}' has an empty entry", variable, value));
    for (const std::string& entry : flag.is_list ? CLI::detail::split(value, ',') : std::vector{value})
      if (const std::string problem = flag.problem(entry); !problem.empty())
        return invalid(fmt::format("{}: {}", variable, problem));
  }
  return ok();
}

// CLI11 compares the rivals of line and environment as if both were the line.
void Flags::State::forget_overruled_environment(const std::vector<std::string>& arguments) const {
  for (const auto& [name, flag] : bound)
    if (!is_on_line(name, arguments) &&
        std::ranges::any_of(flag.rivals, [&](const auto& rival) { return is_on_line(rival, arguments); }))
      unsetenv(environment_name(name).c_str());
}

// CLI11 drops an empty entry of a list.
Status Flags::State::check_lists(const std::vector<std::string>& arguments) const {
  for (size_t i = 0; i < arguments.size(); ++i) {
    const size_t equals = arguments[i].find('=');
    const std::string option = arguments[i].substr(0, equals);
    const auto found = option.starts_with("--") ? bound.find(option.substr(2)) : bound.end();
    if (found == bound.end() || !found->second.is_list) continue;
    const std::string value = equals != std::string::npos ? arguments[i].substr(equals + 1)
                              : i + 1 < arguments.size()  ? arguments[i + 1]
                                                          : std::string();
    if (has_empty_entry(value)) return invalid(fmt::format("{} '{}' has an empty entry", option, value));
  }
  return ok();
}

// The file comes first: it moves the defaults that environment and command line then override.
Status Flags::State::read_config_file(const std::vector<std::string>& arguments) {
  std::string path = std::getenv("QUIRE_CONFIG") ? std::getenv("QUIRE_CONFIG") : "";
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (arguments[i] == "--config" && i + 1 < arguments.size()) path = arguments[i + 1];
    if (arguments[i].starts_with("--config=")) path = arguments[i].substr(9);
  }
  if (path.empty()) return ok();
  const Result<std::string> text = read_file(path, "--config", kMaxConfigBytes);
  if (!text) return text.error();
  const Result<Json> json = parse_unambiguous_json(*text);
  if (!json) return invalid(fmt::format("--config {}: {}", path, json.error().message));
  if (!json->is_object()) return invalid(fmt::format("--config {}: not a JSON object", path));
  return apply(path, *json, arguments);
}

Status Flags::State::apply(const std::string& path, const Json& json,
                           const std::vector<std::string>& arguments) {
  for (const auto& [key, value] : json.items()) {
    std::string name = key;
    std::replace(name.begin(), name.end(), '_', '-');
    const auto found = bound.find(name);
    if (found == bound.end()) return invalid(fmt::format("--config {}: unknown key '{}'", path, key));
    if (found->second.in_file)
      return invalid(fmt::format("--config {}: '{}' is there twice, with a dash and with _", path, key));
    const std::vector<std::string>& rivals = found->second.rivals;
    for (const std::string& rival : rivals)
      if (bound.at(rival).in_file)
        return invalid(fmt::format("--config {}: '{}' and '{}' exclude each other", path, rival, key));
    if (std::ranges::any_of(rivals, [&](const std::string& rival) {
          return is_on_line(rival, arguments) || is_in_environment(rival);
        }))
      continue;
    if (!found->second.read(value))
      return invalid(fmt::format("--config {}: '{}' is {}; it must be {}", path, key, shown(value),
                                 found->second.wanted));
    if (const auto& choices = found->second.choices; !choices.empty())
      if (const std::string problem = not_among(value.get<std::string>(), choices); !problem.empty())
        return invalid(fmt::format("--config {}: '{}': {}", path, key, problem));
    found->second.option->required(false);
    found->second.in_file = true;
  }
  return ok();
}

// CLI11's words, but where they are hard to read: "--n: At Most 1 required but received 2", and what it does not know backwards.
std::string Flags::State::told(const CLI::ParseError& problem) const {
  if (dynamic_cast<const CLI::ExtrasError*>(&problem) != nullptr)
    return fmt::format("not understood: {}", fmt::join(app.remaining(), " "));
  const bool is_mismatch = dynamic_cast<const CLI::ArgumentMismatch*>(&problem) != nullptr;
  for (const auto& [name, flag] : bound)
    if (is_mismatch && flag.option->get_multi_option_policy() == CLI::MultiOptionPolicy::Throw &&
        flag.option->count() > 1)
      return fmt::format("{} is given {} times; it takes one value", flag.option->get_name(),
                         flag.option->count());
  return problem.what();
}

Result<bool> Flags::parse(const std::vector<std::string>& arguments) {
  state_->forget_overruled_environment(arguments);
  if (state_->takes_config)
    if (Status read = state_->read_config_file(arguments); !read) return read.error();
  if (Status lists = state_->check_lists(arguments); !lists) return lists.error();
  if (Status environment = state_->check_environment(arguments); !environment) return environment.error();
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());  // as CLI11 wants a vector
  try {
    state_->app.parse(reversed);
  } catch (const CLI::CallForHelp&) {
    std::fputs(state_->app.help().c_str(), stdout);
    return false;
  } catch (const CLI::ParseError& problem) {
    return invalid(
        fmt::format("{}; {} --help lists the flags", state_->told(problem), state_->app.get_name()));
  }
  for (const auto& [name, flag] : state_->bound)
    if (flag.required && flag.is_empty()) return invalid(fmt::format("{} is empty", flag.option->get_name()));
  return true;
}

bool Flags::given(const std::string& name) const {
  const State::Bound& bound = state_->bound.at(name);
  return bound.in_file || bound.option->count() > 0;
}

}  // namespace quire::server
