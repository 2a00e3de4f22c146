// How far a long piece of work has come. The work reports; whoever wants to show it sets an observer, once, before the work starts
// (the command line does, where standard error is a terminal). Without an observer a report costs one load.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

namespace quire {

struct ProgressReport {
  std::string_view what;  // "reading weights"
  int64_t done = 0, total = 0;
  std::string_view unit;  // "bytes", "rounds"; one of `done` and `total`
};

using ProgressObserver = std::function<void(const ProgressReport&)>;

// Called from the thread that works; two works at once call it one after the other. Empty: none.
void set_progress_observer(ProgressObserver observer);

// One piece of work: reports 0 when it is made, then each advance. Whoever shows it may take done == total for the end, and the
// destructor says so where an error ended it early.
class Progress {
 public:
  Progress(std::string_view what, int64_t total, std::string_view unit);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void advance(int64_t count = 1);

 private:
  ProgressReport report_;
};

}  // namespace quire
