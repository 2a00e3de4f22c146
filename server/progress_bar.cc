#include "server/progress_bar.h"

#include <fmt/format.h>
#include <unistd.h>

#include <memory>

namespace quire::server {
namespace {

constexpr int64_t kQuietUs = 1'000'000;  // works shorter than this show nothing
constexpr int64_t kRedrawUs = 100'000;
constexpr int kCells = 20;

std::string amounts(const ProgressReport& r) {
  if (r.unit != "bytes") return fmt::format("{} of {} {}", r.done, r.total, r.unit);
  const bool giga = r.total >= 1'000'000'000;
  const double scale = giga ? 1e-9 : 1e-6;
  return fmt::format("{:.1f} of {:.1f} {}", static_cast<double>(r.done) * scale,
                     static_cast<double>(r.total) * scale, giga ? "GB" : "MB");
}

}  // namespace

std::string progress_line(const ProgressReport& r, int64_t elapsed_us) {
  const double share = r.total > 0 ? static_cast<double>(r.done) / static_cast<double>(r.total) : 1;
  const auto full = static_cast<size_t>(share * kCells);
  const double elapsed_s = static_cast<double>(elapsed_us) * 1e-6;
  std::string line = fmt::format("{:<18} [{}{}] {:3.0f} %  {}, {:.0f} s", r.what, std::string(full, '#'),
                                 std::string(kCells - full, '.'), share * 100, amounts(r), elapsed_s);
  if (r.done > 0) line += fmt::format(", {:.0f} s left", elapsed_s * (1 - share) / share);
  return line;
}

void ProgressBar::on_report(const ProgressReport& report) {
  const int64_t now_us = clock_.now_us();
  if (report.done == 0) start_us_ = now_us, drawn_us_ = 0;
  if (report.done == report.total) return wipe();
  if (now_us - start_us_ >= kQuietUs && now_us - drawn_us_ >= kRedrawUs) draw(report, now_us);
}

void ProgressBar::draw(const ProgressReport& report, int64_t now_us) {
  fmt::print(terminal_, "\r{}\033[K", progress_line(report, now_us - start_us_));
  std::fflush(terminal_);
  drawn_us_ = now_us;
  drawn_ = true;
}

void ProgressBar::wipe() {
  if (!drawn_) return;
  fmt::print(terminal_, "\r\033[K");
  std::fflush(terminal_);
  drawn_ = false;
}

void show_progress() {
  if (isatty(STDERR_FILENO) == 0) return;
  static const SteadyClock clock;
  set_progress_observer(
      [bar = std::make_shared<ProgressBar>(stderr, clock)](const ProgressReport& r) { bar->on_report(r); });
}

}  // namespace quire::server
