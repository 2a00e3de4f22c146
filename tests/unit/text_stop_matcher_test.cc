// The stop matcher against a plain statement: the first end of any stop string in the whole text, however it
// is cut into pushes.
#include <gtest/gtest.h>

#include "src/base/random.h"
#include "src/text/stop_matcher.h"

namespace quire {
namespace {

struct Found {
  std::string text;
  std::optional<std::string> stop;
  bool operator==(const Found&) const = default;
};

// The definition, on the whole text.
Found expected(const std::string& text, const std::vector<std::string>& stops, bool include_stop) {
  for (size_t end = 0; end <= text.size(); ++end) {
    const std::string_view so_far = std::string_view(text).substr(0, end);
    std::optional<std::string> longest;
    for (const std::string& stop : stops)
      if (!stop.empty() && so_far.ends_with(stop) && (!longest || longest->size() < stop.size()))
        longest = stop;
    if (longest) return {std::string(so_far.substr(0, end - (include_stop ? 0 : longest->size()))), longest};
  }
  return {text, std::nullopt};
}

// The longest end of text that begins a stop string.
size_t longest_beginning(const std::string& text, const std::vector<std::string>& stops) {
  size_t longest = 0;
  for (const std::string& stop : stops)
    for (size_t length = 1; length < stop.size() && length <= text.size(); ++length)
      if (text.ends_with(stop.substr(0, length))) longest = std::max(longest, length);
  return longest;
}

TEST(StopMatcher, FindsAStopAcrossPushes) {
  StopMatcher matcher({"END"}, false);
  EXPECT_EQ(matcher.push("one E").text, "one ");
  EXPECT_EQ(matcher.push("N").text, "");
  const StopMatcher::Step step = matcher.push("D two");
  EXPECT_EQ(step.text, "");
  EXPECT_EQ(step.stop, "END");
  EXPECT_TRUE(matcher.stopped());
  EXPECT_EQ(matcher.push("more").text, "");
  EXPECT_EQ(matcher.flush(), "");
}

TEST(StopMatcher, LetsGoOfTextThatCannotStop) {
  StopMatcher matcher({"aab"}, false);
  EXPECT_EQ(matcher.push("aa").text, "");
  EXPECT_EQ(matcher.push("a").text, "a");  // "aa" may still begin it
  EXPECT_EQ(matcher.push("c").text, "aac");
  EXPECT_EQ(matcher.push("a").text, "");
  EXPECT_EQ(matcher.flush(), "a");
}

TEST(StopMatcher, KeepsTheStopWhenAsked) {
  StopMatcher matcher({"\n\n"}, true);
  EXPECT_EQ(matcher.push("a\n").text, "a");
  EXPECT_EQ(matcher.push("\nb").text, "\n\n");
}

TEST(StopMatcher, TheLongestOfThoseThatEndTogetherWins) {
  StopMatcher matcher({"b", "ab"}, false);
  const StopMatcher::Step step = matcher.push("xab");
  EXPECT_EQ(step.text, "x");
  EXPECT_EQ(step.stop, "ab");
}

TEST(StopMatcher, PassesStopsOnBeforeTheyMayStop) {
  StopMatcher matcher({"END"}, false);
  EXPECT_EQ(matcher.push("END", false).text, "END");
  EXPECT_EQ(matcher.push("EN", false).text, "");
  EXPECT_EQ(matcher.push("D", true).stop, "END");  // it ends where it may
}

TEST(StopMatcher, AStopMayBeginInsideOneThatWasPassedOn) {
  StopMatcher matcher({"abab"}, false);
  EXPECT_EQ(matcher.push("abab", false).text, "ab");
  const StopMatcher::Step step = matcher.push("ab", true);
  EXPECT_EQ(step.text, "");
  EXPECT_EQ(step.stop, "abab");
}

TEST(StopMatcher, WithoutStopsHoldsNothing) {
  StopMatcher matcher({"", ""}, false);
  EXPECT_EQ(matcher.push("text").text, "text");
}

TEST(StopMatcher, AgreesWithTheDefinitionHoweverTheTextIsCut) {
  Random random(7);
  const auto word = [&](size_t most) {
    std::string text(random.below(most + 1), ' ');
    for (char& c : text) c = static_cast<char>('a' + random.below(2));
    return text;
  };
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stops(random.below(4));
    for (std::string& stop : stops) stop = word(5);
    const std::string text = word(30);
    const bool include_stop = random.chance(0.5);
    StopMatcher matcher(stops, include_stop);
    Found found;
    for (size_t at = 0; at < text.size() && !found.stop;) {
      const size_t bytes = 1 + random.below(4);
      StopMatcher::Step step = matcher.push(std::string_view(text).substr(at, bytes));
      found.text += step.text;
      found.stop = step.stop;
      at = std::min(at + bytes, text.size());
      if (!found.stop) {
        ASSERT_EQ(at - found.text.size(), longest_beginning(text.substr(0, at), stops)) << "round " << round;
      }
    }
    found.text += matcher.flush();
    const Found wanted = expected(text, stops, include_stop);
    ASSERT_EQ(found.text, wanted.text) << "round " << round;
    ASSERT_EQ(found.stop, wanted.stop) << "round " << round;
  }
}

}  // namespace
}  // namespace quire
