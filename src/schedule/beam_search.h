// Beam search as one pure step: the likeliest continuations of every beam in, the beams that go on and those
// that end out. The rules are those of Hugging Face transformers' beam search (generation/utils.py,
// _beam_search), so that both give the same hypotheses:
//   - of each beam max(2, 1 + number of ending ids) * width candidates are looked at; all compete by sum of logprobs;
//   - a candidate that ends (an ending id, or max_tokens reached) becomes a hypothesis only if it is among the best `width`;
//     its score is sum of logprobs / length ^ length_penalty, length counted in generated tokens with the ending id;
//   - the best `width` that do not end go on; the `width` best hypotheses are kept;
//   - early_stopping: done once `width` hypotheses exist. Otherwise done once the best running sum, divided by the length it
//     has then to the power of length_penalty, cannot beat the worst of `width` hypotheses.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "src/request/sequence_group.h"

namespace quire {

struct BeamRow {
  double sum_logprob = 0;                                 // of the beam so far
  std::span<const std::pair<TokenId, float>> candidates;  // likeliest first
};

struct BeamStep {
  int32_t width = 1;
  double length_penalty = 1.0;
  bool early_stopping = false;
  std::span<const TokenId> end_ids;  // sorted
  int32_t length = 0;                // generated tokens, the candidate counted
  bool at_limit = false;             // max_tokens reached: every candidate ends
};

struct BeamPick {
  int32_t parent = 0;     // row
  int32_t candidate = 0;  // index into its candidates
  double sum_logprob = 0;
};

struct BeamEnd {
  BeamPick pick;
  double score = 0;
  bool by_id = false;  // ended by an id, not by length
};

struct BeamChoice {
  std::vector<BeamPick> next;  // best first; empty at the limit
  std::vector<BeamEnd> ended;
};

// How many of each beam's likeliest continuations a step needs to see.
int32_t beam_candidates(int32_t width, size_t num_end_ids);
// rows: the beams that run, each with that many candidates, or with all that it may choose. Equal sums go by the order of rows.
BeamChoice choose_beams(std::span<const BeamRow> rows, const BeamStep& step);
// length: generated tokens, the ending id counted.
double beam_score(double sum_logprob, int32_t length, double length_penalty);

// finished: the `width` best at most, best first. best_running: the largest sum of logprobs among the beams that go on.
bool beams_done(std::span<const BeamHypothesis> finished, double best_running, const BeamStep& step);

}  // namespace quire
