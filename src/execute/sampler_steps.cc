#include "src/execute/sampler_steps.h"

#include <algorithm>

namespace quire {
namespace {

bool joins_now(const BatchPlan& plan, SequenceId sequence) {
  return std::any_of(plan.joins.begin(), plan.joins.end(),
                     [&](const PlannedJoin& j) { return j.sequence == sequence; });
}

bool is_beam(const PlannedSequence& s) {
  return std::any_of(s.samples.begin(), s.samples.end(), [&](const PlannedSample& sample) {
    return sample.beam && sample.sequence == s.sequence;
  });
}

}  // namespace

void apply_to_sampler(const BatchPlan& plan, Sampler& sampler) {
  for (const SequenceId sequence : plan.leaves) sampler.leave(sequence);
  for (const PlannedJoin& join : plan.joins) sampler.join(join);
  for (const PlannedSequence& s : plan.sequences) {
    if (!is_beam(s) || joins_now(plan, s.sequence)) continue;  // a join brings its whole history
    for (const TokenId token : s.tokens) sampler.append(s.sequence, token);
  }
}

}  // namespace quire
