#include "benchmarks/sim/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>

namespace quire {
namespace {

constexpr double kWidth = 480, kHeight = 296, kTop = 56;  // of a panel; kTop: the title of all
constexpr double kLeft = 62, kRight = 16, kAbove = 46, kBelow = 46;
constexpr std::array kColours = {"#2a62b8", "#d1701f", "#3b8f5a", "#8a4fa8"};

using Text = std::back_insert_iterator<std::string>;

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else
      out += c;
  }
  return out;
}

const char* colour_of(size_t series) {
  return kColours[series % kColours.size()];
}

// From values to pixels along one side of a panel.
class Axis {
 public:
  Axis(double low, double high, bool log, double from, double to)
      : log_(log), low_(of(low)), high_(of(high)), from_(from), to_(to) {
    if (high_ <= low_) high_ = low_ + 1;
  }
  bool shows(double value) const { return std::isfinite(value) && (!log_ || value > 0); }
  double at(double value) const { return from_ + (of(value) - low_) / (high_ - low_) * (to_ - from_); }

  // Round numbers: powers of ten, or steps of 1, 2 or 5 times one, about five of them.
  std::vector<double> ticks() const {
    std::vector<double> all;
    const double step = log_ ? std::max(1.0, std::ceil((high_ - low_) / 6)) : step_of((high_ - low_) / 5);
    for (double v = std::ceil(low_ / step - 1e-9) * step; v <= high_ + step * 1e-9; v += step)
      all.push_back(log_ ? std::pow(10, v) : std::abs(v) < step * 1e-9 ? 0 : v);
    return all;
  }

 private:
  double of(double value) const { return log_ ? std::log10(value) : value; }
  static double step_of(double rough) {
    const double power = std::pow(10, std::floor(std::log10(rough)));
    for (const double by : {1.0, 2.0, 5.0})
      if (rough <= by * power) return by * power;
    return 10 * power;
  }

  bool log_;
  double low_, high_, from_, to_;
};

struct Range {
  double low = INFINITY, high = -INFINITY;
  void take(double value) { low = std::min(low, value), high = std::max(high, value); }
  bool empty() const { return low > high; }
};

class PanelDrawing {
 public:
  PanelDrawing(const PlotPanel& panel, double left, double top, std::string& out)
      : panel_(panel), left_(left), top_(top), out_(out) {}

  void draw() {
    text(left_ + kLeft, top_ + 18, "start", "font-weight=\"bold\"", panel_.title);
    const Range x = x_range();
    if (x.empty()) return text(left_ + kWidth / 2, top_ + kHeight / 2, "middle", "fill=\"#667\"", "no data");
    const Axis across(x.low, x.high, panel_.log_x, left_ + kLeft, left_ + kWidth - kRight);
    const Axis up(0, y_high(), false, top_ + kHeight - kBelow, top_ + kAbove);
    draw_axes(across, up);
    for (size_t i = 0; i < panel_.series.size(); ++i) draw_series(i, across, up);
    draw_legend();
  }

 private:
  Range x_range() const {
    Range range;
    for (const PlotSeries& s : panel_.series)
      for (const auto& [x, y] : s.points)
        if (!panel_.log_x || x > 0) range.take(x);
    if (!range.empty() && !panel_.log_x) range.take(0);
    return range;
  }
  double y_high() const {
    if (panel_.y_max > 0) return panel_.y_max;
    Range range;
    for (const PlotSeries& s : panel_.series)
      for (const auto& [x, y] : s.points) range.take(y);
    return range.high > 0 ? range.high * 1.05 : 1;
  }

  void draw_axes(const Axis& across, const Axis& up) {
    const double floor = top_ + kHeight - kBelow, right = left_ + kWidth - kRight;
    for (const double y : up.ticks()) {
      line(left_ + kLeft, up.at(y), right, up.at(y), "#dde");
      text(left_ + kLeft - 6, up.at(y) + 4, "end", "", fmt::format("{:g}", y));
    }
    for (const double x : across.ticks()) {
      line(across.at(x), floor, across.at(x), floor + 4, "#889");
      text(across.at(x), floor + 18, "middle", "", fmt::format("{:g}", x));
    }
    line(left_ + kLeft, floor, right, floor, "#889");
    text((left_ + kLeft + right) / 2, floor + 36, "middle", "fill=\"#556\"", panel_.x_label);
    text(right, top_ + 18, "end", "fill=\"#556\"", panel_.y_label);
  }

  void draw_series(size_t i, const Axis& across, const Axis& up) {
    const PlotSeries& series = panel_.series[i];
    out_ += "<polyline fill=\"none\" stroke-width=\"1.6\" stroke=\"";
    out_ += colour_of(i);
    out_ += "\" points=\"";
    for (const auto& [x, y] : series.points)
      if (across.shows(x) && up.shows(y))
        fmt::format_to(Text(out_), "{:.1f},{:.1f} ", across.at(x), up.at(y));
    out_ += "\"/>\n";
  }

  void draw_legend() {
    double x = left_ + kLeft;
    for (size_t i = 0; i < panel_.series.size(); ++i) {
      const std::string& label = panel_.series[i].label;
      line(x, top_ + 32, x + 16, top_ + 32, colour_of(i), 2);
      text(x + 21, top_ + 36, "start", "", label);
      x += 45 + 6.5 * static_cast<double>(label.size());  // about how wide its letters are
    }
  }

  void line(double x1, double y1, double x2, double y2, const char* colour, double width = 1) {
    fmt::format_to(Text(out_),
                   "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\" "
                   "stroke-width=\"{:g}\"/>\n",
                   x1, y1, x2, y2, colour, width);
  }
  void text(double x, double y, const char* anchor, const std::string& style, const std::string& what) {
    fmt::format_to(Text(out_), "<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" {}>{}</text>\n", x, y,
                   anchor, style, escaped(what));
  }

  const PlotPanel& panel_;
  double left_, top_;
  std::string& out_;
};

}  // namespace

std::string to_svg(const std::string& title, const std::vector<PlotPanel>& panels) {
  const double width = 2 * kWidth, height = kTop + kHeight * static_cast<double>((panels.size() + 1) / 2);
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {:g} {:g}\" width=\"{:g}\" height=\"{:g}\" "
      "font-family=\"Helvetica,Arial,sans-serif\" font-size=\"12\" fill=\"#223\">\n"
      "<rect width=\"{:g}\" height=\"{:g}\" fill=\"#fff\"/>\n<text x=\"{:g}\" y=\"32\" "
      "font-size=\"15\">{}</text>\n",
      width, height, width, height, width, height, kLeft, escaped(title));
  for (size_t i = 0; i < panels.size(); ++i)
    PanelDrawing(panels[i], kWidth * static_cast<double>(i % 2), kTop + kHeight * static_cast<double>(i / 2),
                 out)
        .draw();
  return out + "</svg>\n";
}

PlotSeries cumulative_share(std::string label, std::vector<float> values) {
  constexpr size_t kPoints = 200;
  std::sort(values.begin(), values.end());
  PlotSeries series{std::move(label), {}};
  const size_t count = std::min(values.size(), kPoints);
  for (size_t i = 1; i <= count; ++i) {
    const size_t rank = i * values.size() / count;  // 1-based
    series.points.emplace_back(values[rank - 1],
                               static_cast<double>(rank) / static_cast<double>(values.size()));
  }
  return series;
}

}  // namespace quire
