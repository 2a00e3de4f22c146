#include "src/text/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace quire {
namespace {

std::vector<size_t> borders_of(std::string_view pattern) {
  std::vector<size_t> border(pattern.size(), 0);
  for (size_t i = 1; i < pattern.size(); ++i) {
    size_t length = border[i - 1];
    while (length > 0 && pattern[i] != pattern[length]) length = border[length - 1];
    border[i] = pattern[i] == pattern[length] ? length + 1 : 0;
  }
  return border;
}

}  // namespace

StopMatcher::StopMatcher(const std::vector<std::string>& stops, bool include_stop)
    : include_stop_(include_stop) {
  for (const std::string& stop : stops)
    if (!stop.empty()) patterns_.push_back({.text = stop, .border = borders_of(stop)});
}

const StopMatcher::Pattern* StopMatcher::advance(char byte, bool may_stop) {
  const Pattern* found = nullptr;
  for (Pattern& pattern : patterns_) {
    while (pattern.matched > 0 && pattern.text[pattern.matched] != byte)
      pattern.matched = pattern.border[pattern.matched - 1];
    if (pattern.text[pattern.matched] == byte) ++pattern.matched;
    if (pattern.matched < pattern.text.size()) continue;
    if (may_stop && (found == nullptr || found->text.size() < pattern.text.size())) found = &pattern;
    pattern.matched = pattern.border.back();
  }
  return found;
}

StopMatcher::Step StopMatcher::push(std::string_view text, bool may_stop) {
  if (stopped_) return {};
  for (const char byte : text) {
    held_ += byte;
    if (const Pattern* found = advance(byte, may_stop)) {
      stopped_ = true;
      if (!include_stop_) held_.resize(held_.size() - found->text.size());
      return {.text = std::exchange(held_, {}), .stop = found->text};
    }
  }
  size_t could_begin = 0;
  for (const Pattern& pattern : patterns_) could_begin = std::max(could_begin, pattern.matched);
  Step step{.text = held_.substr(0, held_.size() - could_begin), .stop = {}};
  held_.erase(0, step.text.size());
  return step;
}

std::string StopMatcher::flush() {
  return std::exchange(held_, {});
}

}  // namespace quire
