// Flags of a small benchmark: each takes a value, a list's one more each time, all are optional. --help prints what the program is and its flags; whatever is
// not understood ends the program with exit code 2 before anything is measured.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

namespace quire {

struct BenchFlag {
  std::string_view name;  // with its dashes
  std::variant<int32_t*, int64_t*, std::string*, std::vector<int64_t>*> target;
  int64_t least = 0;  // of a number
  std::string_view help = {};
};

namespace bench_flags {

[[noreturn]] inline void refuse(const std::string& what) {
  fmt::print(stderr, "{}; --help lists the flags\n", what);
  std::exit(2);
}

inline void take(const BenchFlag&, std::string_view text, std::string& target) {
  target = text;
}
template <class Int>
  requires std::is_integral_v<Int>
void take(const BenchFlag& flag, std::string_view text, Int& target) {
  const char* const end = text.data() + text.size();
  const auto read = std::from_chars(text.data(), end, target);
  if (read.ec != std::errc() || read.ptr != end || target < flag.least)
    refuse(fmt::format("{} '{}' is not an integer from {}", flag.name, text, flag.least));
}

inline void take(const BenchFlag& flag, std::string_view text, std::vector<int64_t>& target) {
  take(flag, text, target.emplace_back());
}

inline void print_help(std::string_view about, const std::vector<BenchFlag>& flags) {
  fmt::print("{}\n\n", about);
  for (const BenchFlag& flag : flags)
    std::visit(
        [&](const auto* value) { fmt::print("  {:16} {} [default: {}]\n", flag.name, flag.help, *value); },
        flag.target);
}

}  // namespace bench_flags

inline void read_bench_flags(int argc, char** argv, std::string_view about,
                             const std::vector<BenchFlag>& flags) {
  for (int i = 1; i < argc; i += 2) {
    const std::string_view name = argv[i];
    if (name == "--help" || name == "-h") {
      bench_flags::print_help(about, flags);
      std::exit(0);
    }
    const BenchFlag* found = nullptr;
    for (const BenchFlag& flag : flags)
      if (flag.name == name) found = &flag;
    if (found == nullptr) bench_flags::refuse(fmt::format("'{}' is no flag of this benchmark", name));
    if (i + 1 == argc) bench_flags::refuse(fmt::format("{} has no value", name));
    std::visit([&](auto* target) { bench_flags::take(*found, argv[i + 1], *target); }, found->target);
  }
}

}  // namespace quire
