// Stop strings in a growing text, also across token edges. Holds back only the longest end of the text that
// could begin a stop string. The match that ends first wins; among those that end together, the longest. One
// sequence, one thread; O(bytes).
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace quire {

class StopMatcher {
 public:
  // Empty strings in stops are ignored. include_stop: the stop string stays at the end of the text.
  StopMatcher(const std::vector<std::string>& stops, bool include_stop);

  struct Step {
    std::string text;                 // may be sent: no stop string can begin in it
    std::optional<std::string> stop;  // the stop string that was found; nothing after it will come
  };
  // may_stop false (min_tokens not reached): a stop string that ends in this text is passed on as text.
  Step push(std::string_view text, bool may_stop = true);
  // At an end for another reason: what was held back.
  std::string flush();

  bool stopped() const { return stopped_; }

 private:
  struct Pattern {
    std::string text;
    // border[i]: bytes of the longest proper prefix that text[0..i] ends with (Knuth, Morris, Pratt 1977).
    std::vector<size_t> border;
    size_t matched = 0;  // bytes of text that the end of what was pushed spells
  };
  const Pattern* advance(char byte, bool may_stop);

  std::vector<Pattern> patterns_;
  bool include_stop_;
  bool stopped_ = false;
  std::string held_;
};

}  // namespace quire
