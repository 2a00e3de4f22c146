#include "src/schedule/beam_search.h"

#include <algorithm>
#include <cmath>

namespace quire {
namespace {

struct Candidate {
  BeamPick pick;
  TokenId token = -1;
};

// The best of all rows' candidates, best sum first; equal sums keep the order of rows, so the choice is the
// same on every run.
std::vector<Candidate> ranked(std::span<const BeamRow> rows, int32_t keep) {
  std::vector<Candidate> all;
  all.reserve(rows.size() * rows.front().candidates.size());
  for (size_t r = 0; r < rows.size(); ++r)
    for (size_t c = 0; c < rows[r].candidates.size(); ++c) {
      const auto& [token, logprob] = rows[r].candidates[c];
      all.push_back({{static_cast<int32_t>(r), static_cast<int32_t>(c),
                      rows[r].sum_logprob + static_cast<double>(logprob)},
                     token});
    }
  const auto better = [](const Candidate& a, const Candidate& b) {
    if (a.pick.sum_logprob != b.pick.sum_logprob) return a.pick.sum_logprob > b.pick.sum_logprob;
    return a.pick.parent != b.pick.parent ? a.pick.parent < b.pick.parent
                                          : a.pick.candidate < b.pick.candidate;
  };
  const auto kept = static_cast<std::ptrdiff_t>(std::min(all.size(), static_cast<size_t>(keep)));
  std::partial_sort(all.begin(), all.begin() + kept, all.end(), better);
  all.resize(static_cast<size_t>(kept));
  return all;
}

}  // namespace

int32_t beam_candidates(int32_t width, size_t num_end_ids) {
  return std::max<int32_t>(2, 1 + static_cast<int32_t>(num_end_ids)) * width;
}

double beam_score(double sum_logprob, int32_t length, double length_penalty) {
  return sum_logprob / std::pow(static_cast<double>(length), length_penalty);
}

BeamChoice choose_beams(std::span<const BeamRow> rows, const BeamStep& step) {
  BeamChoice choice;
  choice.next.reserve(step.at_limit ? 0 : static_cast<size_t>(step.width));
  const std::vector<Candidate> best = ranked(rows, beam_candidates(step.width, step.end_ids.size()));
  for (size_t rank = 0; rank < best.size(); ++rank) {
    const Candidate& c = best[rank];
    const bool by_id = std::binary_search(step.end_ids.begin(), step.end_ids.end(), c.token);
    if (!by_id && !step.at_limit) {
      if (static_cast<int32_t>(choice.next.size()) < step.width) choice.next.push_back(c.pick);
    } else if (rank < static_cast<size_t>(step.width)) {
      choice.ended.push_back(
          {c.pick, beam_score(c.pick.sum_logprob, step.length, step.length_penalty), by_id});
    }
  }
  return choice;
}

bool beams_done(std::span<const BeamHypothesis> finished, double best_running, const BeamStep& step) {
  if (static_cast<int32_t>(finished.size()) < step.width) return false;
  if (step.early_stopping) return true;
  return beam_score(best_running, step.length, step.length_penalty) <= finished.back().score;
}

}  // namespace quire
