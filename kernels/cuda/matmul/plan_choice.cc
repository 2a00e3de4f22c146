#include "kernels/cuda/matmul/plan_choice.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace quire {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

double median_of(std::vector<double> times) {
  const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

// Every candidate's times, by turns, so that what slows the card for a while slows all alike. False: time is spent.
bool time_all(const TuningRules& rules, const TimeCandidate& time, std::vector<std::vector<double>>& times) {
  for (size_t i = 0; i < times.size(); ++i)
    if (!time(static_cast<int>(i))) return false;
  double best = kNever;
  for (int round = 0; round < rules.rounds; ++round) {
    const double slowest = best * rules.hopeless;
    for (size_t i = 0; i < times.size(); ++i) {
      if (round > 0 && !(times[i].front() <= slowest)) continue;
      const std::optional<double> us = time(static_cast<int>(i));
      if (!us) return false;
      times[i].push_back(*us);
    }
    if (round == 0)
      for (const std::vector<double>& t : times) best = std::min(best, t.front());
  }
  return true;
}

}  // namespace

int choose_plan(int count, const TuningRules& rules, const TimeCandidate& time) {
  if (count <= 1 || rules.rounds < 1) return 0;
  std::vector<std::vector<double>> times(static_cast<size_t>(count));
  if (!time_all(rules, time, times)) return 0;
  const double first = median_of(times.front());
  int chosen = 0;
  double least = first;
  for (int i = 1; i < count; ++i) {
    const double us = median_of(times[static_cast<size_t>(i)]);
    if (us < least) chosen = i, least = us;
  }
  return least < first * (1 - rules.least_gain) ? chosen : 0;
}

int32_t plan_rows(int32_t rows) {
  if (rows <= 256) return (rows + 31) / 32 * 32;
  const auto unit = static_cast<int32_t>(std::bit_ceil(static_cast<uint32_t>(rows)) / 8);
  return (rows + unit - 1) / unit * unit;
}

std::vector<int32_t> plan_row_classes(int32_t least, int32_t most) {
  std::vector<int32_t> classes;
  for (int32_t rows = least + 1; rows <= most; rows = classes.back() + 1) classes.push_back(plan_rows(rows));
  return classes;
}

}  // namespace quire
