#include "benchmarks/sim/shrink.h"

#include <algorithm>
#include <cctype>

namespace quire {
namespace {

class Shrinker {
 public:
  Shrinker(SimScript script, const SimTrial& fails, int32_t max_trials)
      : best_(std::move(script)), fails_(fails), trials_left_(max_trials) {}

  SimScript run() {
    drop_late();
    drop_events();
    lighten_requests();
    drop_events();
    drop_late();
    return std::move(best_);
  }

 private:
  bool keep_if_fails(SimScript candidate) {
    if (trials_left_-- <= 0 || !fails_(candidate)) return false;
    best_ = std::move(candidate);
    return true;
  }
  // Ticks are cheap, but fewer read better.
  void drop_late() {
    for (int64_t cut = best_.num_ticks / 2; cut > 0 && best_.num_ticks > 1; cut /= 2) {
      SimScript candidate = best_;
      candidate.num_ticks = std::max<int64_t>(1, best_.num_ticks - cut);
      std::erase_if(candidate.events, [&](const SimEvent& e) { return e.tick >= candidate.num_ticks; });
      keep_if_fails(std::move(candidate));
    }
  }
  void drop_events() {
    size_t chunk = std::max<size_t>(1, best_.events.size() / 2);
    for (;;) {
      bool dropped = false;
      for (size_t at = 0; at < best_.events.size();) {
        SimScript candidate = best_;
        const auto begin = candidate.events.begin() + static_cast<std::ptrdiff_t>(at);
        candidate.events.erase(
            begin, begin + static_cast<std::ptrdiff_t>(std::min(chunk, best_.events.size() - at)));
        if (keep_if_fails(std::move(candidate)))
          dropped = true;
        else
          at += chunk;
      }
      if (trials_left_ <= 0 || (chunk == 1 && !dropped)) return;
      chunk = std::max<size_t>(1, std::min(chunk / 2, best_.events.size() / 2));
    }
  }
  void lighten_requests() {
    for (size_t i = 0; i < best_.events.size(); ++i)
      if (best_.events[i].submit != nullptr)
        while (lighten(i, [](CoreRequest& r, SamplingParams&) { r.prompt.resize(r.prompt.size() / 2); }) ||
               lighten(i, [](CoreRequest&, SamplingParams& p) { p.max_tokens /= 2; })) {
        }
  }
  template <typename Change>
  bool lighten(size_t event, Change change) {
    CoreRequest request = *best_.events[event].submit;
    SamplingParams sampling = *request.sampling;
    if (request.prompt.size() <= 1 || sampling.max_tokens <= 1) return false;
    change(request, sampling);
    request.sampling = std::make_shared<const SamplingParams>(sampling);
    SimScript candidate = best_;
    candidate.events[event].submit = std::make_shared<const CoreRequest>(std::move(request));
    return keep_if_fails(std::move(candidate));
  }

  SimScript best_;
  const SimTrial& fails_;
  int32_t trials_left_;
};

}  // namespace

SimScript shrink(SimScript script, const SimTrial& fails, int32_t max_trials) {
  return Shrinker(std::move(script), fails, max_trials).run();
}

std::string kind_of_violation(const std::string& violation) {
  const size_t start = violation.starts_with("step ") ? violation.find(": ") + 2 : 0;
  std::string kind;
  for (const char c : violation.substr(start)) {
    if (std::isdigit(static_cast<unsigned char>(c)) == 0)
      kind += c;
    else if (kind == "invariant ")
      kind += c;  // its number tells which
  }
  return kind.substr(0, kind.find(':'));
}

}  // namespace quire
