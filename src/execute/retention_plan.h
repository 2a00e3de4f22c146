// What both keepers of lists that go by scores (retention_runner on the host, device_retention on a device) read from a plan.
#pragma once

#include <fmt/format.h>

#include <string>

#include "quire/result.h"
#include "src/policy/policy_spec.h"
#include "src/schedule/batch_plan.h"

namespace quire {

inline bool goes_by_scores(const PlannedSequence& s) {
  return traits(s.policy).row_logits;
}
inline bool in_prompt(const PlannedSequence& s) {
  return s.first_position < s.num_prompt_tokens;
}
inline bool ends_prompt(const PlannedSequence& s) {
  return in_prompt(s) && s.first_position + static_cast<int32_t>(s.tokens.size()) >= s.num_prompt_tokens;
}

// A plan that does not fit the lists that were kept for its sequence.
inline Error misfit(const PlannedSequence& s, const std::string& what) {
  return error(Code::kInternal,
               fmt::format("plan, sequence {} under {}: {}", value(s.sequence), to_string(s.policy), what));
}

inline Error misfit(const PolicyFork& f) {
  return error(Code::kInternal, fmt::format("plan, sequence {} begins as {} is, of which no lists were kept",
                                            value(f.target), value(f.source)));
}

}  // namespace quire
