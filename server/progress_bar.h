// Draws progress reports on a terminal: nothing in the first second, then one line that is redrawn in place and wiped at the end.
#pragma once

#include <cstdio>
#include <string>

#include "src/base/clock.h"
#include "src/base/progress.h"

namespace quire::server {

class ProgressBar {
 public:
  ProgressBar(std::FILE* terminal, const Clock& clock) : terminal_(terminal), clock_(clock) {}
  void on_report(const ProgressReport& report);

 private:
  void draw(const ProgressReport& report, int64_t now_us);
  void wipe();

  std::FILE* terminal_;
  const Clock& clock_;
  int64_t start_us_ = 0, drawn_us_ = 0;
  bool drawn_ = false;
};

// "[#####...............]  25 %  1.5 of 6.0 GB, 12 s, 36 s left"; the time left is that of the rate so far.
std::string progress_line(const ProgressReport& report, int64_t elapsed_us);

// From here on long works of this process are drawn on standard error, if it is a terminal.
void show_progress();

}  // namespace quire::server
