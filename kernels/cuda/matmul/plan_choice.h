// Which of a library's ways to make a product is taken, by timing them: rules alone, without the library, so that they are tested without
// a card. Host only.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

namespace quire {

struct TuningRules {
  int candidates = 8;     // the first of the library's own order
  int rounds = 3;         // timed runs of each, by turns
  double hopeless = 1.3;  // who is so many times slower than the best after one round is timed no more
  double least_gain =
      0.03;  // by which another must beat the library's first: less is noise, and another choice next time
};

// Microseconds of one run of a candidate; infinity where it does not run; nothing once the time for tuning is spent.
using TimeCandidate = std::function<std::optional<double>(int candidate)>;

// The candidate to take: the library's first unless another's median is better by least_gain, or time is spent before all rounds are over.
// Each runs once before it is timed: a kernel's code is loaded then.
int choose_plan(int count, const TuningRules& rules, const TimeCandidate& time);

// Row counts that share a plan, by their largest: those to which steps are padded (src/execute/step_graphs.h, token_bucket).
int32_t plan_rows(int32_t rows);
// All of them above `least` rows, up to the one that holds `most`.
std::vector<int32_t> plan_row_classes(int32_t least, int32_t most);

}  // namespace quire
