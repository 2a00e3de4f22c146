// The numbered invariants of src/engine/README.md as checks. Each gives the first one broken, with its number
// and the values. check_cheap is O(1) and runs after every step, always. check_plan, check_held and check_follows cost
// what one plan names, check_all everything; for tests, simulation and --check-invariants.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "src/cache/kv_cache.h"
#include "src/schedule/batch_plan.h"

namespace quire {

class EngineCore;
struct SubmittedStep;

std::optional<std::string> check_cheap(const EngineCore& core);
std::optional<std::string> check_all(const EngineCore& core);
// Of a plan at the moment it is submitted. `written` is scratch, kept from step to step: which slots of each
// block the step writes, so that the check costs what the plan writes and allocates nothing.
struct SlotsWritten {
  uint64_t step = 0, slots = 0;  // a bit for each slot; a block has at most 64
};
std::optional<std::string> check_plan(const BatchPlan& plan, const KvCache& cache,
                                      std::vector<SlotsWritten>& written);
// Where nothing has run, with no step and no copy under way, though somebody asked for it: invariant 12 (standing.cc).
std::optional<std::string> check_standing(const EngineCore& core);
// Of a submitted plan whose result is about to be taken in: invariant 6.
std::optional<std::string> check_held(const BatchPlan& plan, const KvCache& cache);
// Of the same: each row follows on all that is computed of its sequence.
std::optional<std::string> check_follows(const SubmittedStep& step);

}  // namespace quire
