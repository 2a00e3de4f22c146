#include "src/base/progress.h"

#include <algorithm>
#include <atomic>
#include <mutex>

namespace quire {
namespace {

std::atomic<bool> g_observed{false};
std::mutex g_mutex;  // of g_observer, and held while it is called
ProgressObserver g_observer;

void tell(const ProgressReport& report) {
  if (!g_observed.load(std::memory_order_relaxed)) return;
  const std::lock_guard lock(g_mutex);
  if (g_observer) g_observer(report);
}

}  // namespace

void set_progress_observer(ProgressObserver observer) {
  const std::lock_guard lock(g_mutex);
  g_observed = static_cast<bool>(observer);
  g_observer = std::move(observer);
}

Progress::Progress(std::string_view what, int64_t total, std::string_view unit)
    : report_{.what = what, .done = 0, .total = total, .unit = unit} {
  tell(report_);
}

void Progress::advance(int64_t count) {
  report_.done = std::min(report_.total, report_.done + count);
  tell(report_);
}

Progress::~Progress() {
  if (report_.done == report_.total) return;
  report_.done = report_.total;
  tell(report_);
}

}  // namespace quire
