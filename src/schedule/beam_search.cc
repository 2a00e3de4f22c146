#include "src/schedule/beam_search.h"

#include <algorithm>
#include <cmath>
#include <optional>

namespace quire {
namespace {

struct Candidate {
  BeamPick pick;
  TokenId token = -1;
};

// The best of all rows' candidates, best sum first. A row is in order, so that only the next of each competes. Equal
// sums keep the order of rows: the choice is the same on every run.
class Ranking {
 public:
  explicit Ranking(std::span<const BeamRow> rows) : rows_(rows), next_(rows.size(), 0) {}
  std::optional<Candidate> next() {
    std::optional<Candidate> best;
    for (size_t r = 0; r < rows_.size(); ++r) {
      if (static_cast<size_t>(next_[r]) >= rows_[r].candidates.size()) continue;
      const auto& [token, logprob] = rows_[r].candidates[static_cast<size_t>(next_[r])];
      const double sum = rows_[r].sum_logprob + static_cast<double>(logprob);
      if (!best || sum > best->pick.sum_logprob)
        best = Candidate{{static_cast<int32_t>(r), next_[r], sum}, token};
    }
    if (best) ++next_[static_cast<size_t>(best->pick.parent)];
    return best;
  }

 private:
  std::span<const BeamRow> rows_;
  std::vector<int32_t> next_;  // by row
};

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
  const int32_t looked_at = beam_candidates(step.width, step.end_ids.size());
  Ranking ranking(rows);
  for (int32_t rank = 0; rank < looked_at; ++rank) {
    const bool is_full = step.at_limit || static_cast<int32_t>(choice.next.size()) == step.width;
    if (is_full && rank >= step.width) break;
    const std::optional<Candidate> c = ranking.next();
    if (!c) break;
    const bool by_id = std::binary_search(step.end_ids.begin(), step.end_ids.end(), c->token);
    if (!by_id && !step.at_limit) {
      if (!is_full) choice.next.push_back(c->pick);
    } else if (rank < step.width) {
      choice.ended.push_back(
          {c->pick, beam_score(c->pick.sum_logprob, step.length, step.length_penalty), by_id});
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
