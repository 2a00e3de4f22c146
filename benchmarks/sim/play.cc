#include "benchmarks/sim/play.h"

#include <fmt/format.h>

#include <csetjmp>

#include "benchmarks/sim/shrink.h"
#include "src/base/check.h"

namespace quire {
namespace {

std::jmp_buf before_episode;
std::string failed_check;

[[noreturn]] void leave_episode(std::string_view what, const char* file, int line) {
  failed_check = fmt::format("check failed: {} ({}:{})", what, file, line);
  std::longjmp(before_episode, 1);
}

}  // namespace

// A jump and not an exception: an exception would run destructors of what has just been found inconsistent,
// whose own checks would end the process. That no destructor runs is what leaks here, and all that the jump
// skips.
std::optional<std::string> until_check_fails(const std::function<void()>& f) {
  set_check_handler(
      [](std::string_view what, const char* file, int line) { leave_episode(what, file, line); });
  const bool failed = setjmp(before_episode) != 0;
  if (!failed) f();
  set_check_handler(nullptr);
  if (!failed) return {};
  return failed_check;
}

std::optional<std::string> play(std::unique_ptr<Episode>& episode,
                                const std::function<bool(const Episode&)>& go_on) {
  Episode& e = *episode;
  const std::optional<std::string> failed = until_check_fails([&] {
    while (!e.broken() && go_on(e) && e.step()) {
    }
    if (!e.broken()) e.drain();
  });
  if (failed) {
    [[maybe_unused]] Episode* lost = episode.release();
    return failed;
  }
  if (e.broken()) return e.violations().front();
  return {};
}

std::optional<std::string> play(const SimScript& script) {
  auto episode = std::make_unique<Episode>(script);
  return play(episode, [](const Episode&) { return true; });
}

SimScript shortest_script(const SimSetup& setup, const std::function<std::unique_ptr<Episode>()>& make,
                          int64_t num_ticks, const std::string& violation) {
  std::unique_ptr<Episode> episode = make();
  Episode& again = *episode;
  again.record();
  play(episode, [&](const Episode& e) { return e.num_ticks() < num_ticks; });
  SimScript script{setup, std::max<int64_t>(1, again.num_ticks()), again.take_events()};
  const std::string kind = kind_of_violation(violation);
  return shrink(std::move(script), [&kind](const SimScript& candidate) {
    const std::optional<std::string> found = play(candidate);
    return found && kind_of_violation(*found) == kind;
  });
}

}  // namespace quire
