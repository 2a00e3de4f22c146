// Plays an episode to its end, whatever breaks; and what makes a failing one a short script.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "benchmarks/sim/episode.h"

namespace quire {

// Calls f. A check that fails inside ends f, not the process; gives what it said. What f was working on is in
// no state to be used or destroyed then: its owner lets it lie.
std::optional<std::string> until_check_fails(const std::function<void()>& f);

// Steps while `go_on` says so and something can happen, then drains. The first violation, if any. A failed
// check is one too; the episode is let go of then.
std::optional<std::string> play(std::unique_ptr<Episode>& episode,
                                const std::function<bool(const Episode&)>& go_on);
std::optional<std::string> play(const SimScript& script);

// The episode that `make` gives anew, played for num_ticks again and shrunk to the shortest script found that
// breaks in the same way.
SimScript shortest_script(const SimSetup& setup, const std::function<std::unique_ptr<Episode>()>& make,
                          int64_t num_ticks, const std::string& violation);

}  // namespace quire
