// Cases of a family's tiny model (tests/golden/families) for the whole engine. Its golden is one prompt of 40 tokens and its answer of
// 64: the case as it is, and asked again from further on, so that prompts share and outgrow blocks. Beside them are prompts of other
// tokens and lengths, and some that leave the first inside a block, answered by the float64 reference with no cache and no scheduler
// (model_runner.h), which golden_families holds against the same golden: one that reads another's tokens is seen.
#pragma once

#include <algorithm>
#include <functional>

#include "tests/golden/engine_rig.h"
#include "tests/golden/model_runner.h"

namespace quire::golden {

// Ten times what f32 may move a logit by (families_test.cc): an answer ends before a step whose two likeliest lie nearer.
constexpr float kLeastFamilyMargin = 1e-3F;

inline Case answered_by_reference(ModelRunner& runner, std::vector<int32_t> prompt, size_t most_tokens) {
  Case made{.prompt = std::move(prompt)};
  runner.clear();
  std::vector<float> row = runner.extend_last(made.prompt);
  while (made.greedy.size() < most_tokens) {
    const int32_t likeliest = argmax(row);
    std::partial_sort(row.begin(), row.begin() + 2, row.end(), std::greater<>());
    if (row[0] - row[1] < kLeastFamilyMargin) break;
    made.greedy.push_back(likeliest);
    row = runner.extend_last(std::span(&made.greedy.back(), 1));
  }
  return made;
}

inline std::vector<Case> read_family_cases(const std::string& dir) {
  std::ifstream file(dir + "/golden.json");
  const nlohmann::json golden = nlohmann::json::parse(file);
  const auto prompt = golden["prompt_ids"].get<std::vector<int32_t>>();
  const auto answer = golden["greedy_ids"].get<std::vector<int32_t>>();
  std::vector<Case> cases;
  for (const std::ptrdiff_t done : {0, 9, 24, 47}) {
    Case& made = cases.emplace_back(Case{.prompt = prompt, .greedy = {answer.begin() + done, answer.end()}});
    made.prompt.insert(made.prompt.end(), answer.begin(), answer.begin() + done);
  }
  Result<std::unique_ptr<ModelRunner>> runner = ModelRunner::open(dir, {});
  EXPECT_TRUE(runner.has_value()) << runner.error().message;
  const auto add = [&](std::vector<int32_t> other) {
    cases.push_back(answered_by_reference(**runner, std::move(other), answer.size()));
  };
  for (const std::ptrdiff_t length : {1, 2, 7, 16, 17, 29}) {
    std::vector<int32_t> other(prompt.rbegin() + length, prompt.rend());
    other.resize(static_cast<size_t>(length), other.front());
    add(std::move(other));
  }
  for (const std::ptrdiff_t shared : {5, 21, 37}) {
    std::vector<int32_t> other(prompt.begin(), prompt.begin() + shared);
    other.insert(other.end(), prompt.begin(), prompt.begin() + 8);
    add(std::move(other));
  }
  return cases;
}

}  // namespace quire::golden
