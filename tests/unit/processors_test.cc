// Method: each processor against a plain statement of its definition.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <utility>
#include <vector>

#include "src/base/random.h"
#include "src/sample/ngram_index.h"
#include "src/sample/processors.h"

namespace quire {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

TEST(Processors, BiasAddsAndAllowedIdsMaskTheRest) {
  std::vector<float> row = {1, 2, 3, 4};
  const std::pair<int32_t, double> bias[] = {{1, 5.0}, {3, -1.0}};
  add_bias(row, bias);
  EXPECT_EQ(row, (std::vector<float>{1, 7, 3, 3}));
  const TokenId allowed[] = {2, 0};
  allow_only(row, allowed);
  EXPECT_EQ(row, (std::vector<float>{1, -kInf, 3, -kInf}));
}

TEST(Processors, ABadWordIsForbiddenOnlyWhereItWouldBeCompleted) {
  const std::vector<std::vector<TokenId>> words = {{5, 6, 7}, {3}};
  const TokenId after[] = {1, 5, 6}, elsewhere[] = {5, 6, 1}, brief[] = {6};
  std::vector<float> row(8, 0.0f);
  forbid_bad_words(row, after, words);
  EXPECT_EQ(row[7], -kInf);
  EXPECT_EQ(row[3], -kInf);
  row.assign(8, 0.0f);
  forbid_bad_words(row, elsewhere, words);
  EXPECT_EQ(row[7], 0.0f);
  forbid_bad_words(row, brief, words);
  EXPECT_EQ(row[7], 0.0f);
}

TEST(Processors, PenaltiesFollowTheirDefinitions) {
  std::vector<float> row = {2, -2, 1, 1};
  const TokenCount seen[] = {
      {.token = 0, .in_output = 0}, {.token = 1, .in_output = 3}, {.token = 2, .in_output = 1}};
  penalize(row, seen, {.repetition = 2.0, .presence = 0.5, .frequency = 0.25});
  EXPECT_FLOAT_EQ(row[0], 1.0f);                  // prompt only: repetition
  EXPECT_FLOAT_EQ(row[1], -4.0f - 0.5f - 0.75f);  // negative logits are multiplied
  EXPECT_FLOAT_EQ(row[2], 0.5f - 0.5f - 0.25f);
  EXPECT_FLOAT_EQ(row[3], 1.0f);
}

TEST(NgramIndex, EqualsAScanOfTheWholeHistory) {
  Random random(3);
  for (int n = 1; n <= 4; ++n) {
    NgramIndex index(n);
    std::vector<TokenId> history;
    for (int step = 0; step < 400; ++step) {
      history.push_back(static_cast<TokenId>(random.below(4)));
      index.append(history);
      std::map<TokenId, bool> expected;
      for (size_t at = 0; at + static_cast<size_t>(n) <= history.size(); ++at)
        if (std::equal(history.begin() + static_cast<int64_t>(at),
                       history.begin() + static_cast<int64_t>(at) + n - 1, history.end() - (n - 1)))
          expected[history[at + static_cast<size_t>(n) - 1]] = true;
      std::map<TokenId, bool> found;
      for (const TokenId token : index.repeats(history)) found[token] = true;
      ASSERT_EQ(found, expected) << "n " << n << " step " << step;
    }
  }
}

}  // namespace
}  // namespace quire
