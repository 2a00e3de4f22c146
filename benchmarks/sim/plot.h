// Line plots as one SVG file, two panels a row: enough for a run of the simulator, without a plotting library in the server.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "quire/result.h"

namespace quire {

struct PlotSeries {
  std::string label;
  std::vector<std::pair<double, double>> points;  // x, y; x ascending
};

struct PlotPanel {
  std::string title, x_label, y_label;
  bool log_x = false;  // x above 0 only; others are left out
  double y_max = 0;    // 0 = of the data
  std::vector<PlotSeries> series;
};

std::string to_svg(const std::string& title, const std::vector<PlotPanel>& panels);

// The share of values that are at most x, at up to 200 x.
PlotSeries cumulative_share(std::string label, std::vector<float> values);

}  // namespace quire
