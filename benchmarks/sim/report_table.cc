// A simulation's report for the eyes: one table, a group of figures to each two lines.
#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "benchmarks/sim/sim.h"

namespace quire {
namespace {

struct Figure {
  std::string_view name;
  std::string value;
};

// Names above their values, right-aligned in columns that all groups have, unless a value is too long for one.
class Table {
 public:
  explicit Table(std::string& out) : out_(out) {}
  void add(std::string_view group, const std::vector<Figure>& figures) {
    std::string names = fmt::format("{:<16}", group), values(16, ' ');
    for (const Figure& f : figures) {
      const size_t width = std::max<size_t>(14, f.value.size() + 1);
      names += fmt::format("{:>{}}", f.name, width);
      values += fmt::format("{:>{}}", f.value, width);
    }
    out_ += names + "\n" + values + "\n";
  }

 private:
  std::string& out_;
};

std::string whole(double value) {
  return fmt::format("{:.0f}", value);
}

std::vector<Figure> percentiles(const SimPercentiles& p, int digits) {
  const auto ms = [digits](double value) { return fmt::format("{:.{}f}", value, digits); };
  return {{"p50", ms(p.p50)},
          {"p90", ms(p.p90)},
          {"p99", ms(p.p99)},
          {"of", fmt::format("{}", p.count)},
          {"drawn evenly", fmt::format("{}", p.sampled)}};
}

}  // namespace

std::string to_table(const SimReport& r) {
  std::string out;
  Table table(out);
  const auto count = [](int64_t n) { return fmt::format("{}", n); };
  const auto rate = [](double value) { return fmt::format("{:.4f}", value); };
  table.add("simulated", {{"seed", r.seed ? fmt::format("{}", *r.seed) : "unknown"},
                          {"steps", count(r.steps)},
                          {"to drain", count(r.drain_steps)},
                          {"steps/s", whole(r.steps_per_s)},
                          {"faults", count(r.faults)},
                          {"seconds", fmt::format("{:.1f}", r.simulated_s)},
                          {"running", fmt::format("{:.1f}", r.running_mean)}});
  table.add("requests", {{"submitted", count(r.submitted)},
                         {"finished", count(r.finished)},
                         {"refused", count(r.refused)},
                         {"cancelled", count(r.cancelled)},
                         {"failed", count(r.failed)}});
  table.add("first token, ms", percentiles(r.ttft_ms, 1));
  table.add("later tokens, ms", percentiles(r.tpot_ms, 2));
  table.add("a second", {{"requests", fmt::format("{:.3f}", r.requests_per_s)},
                         {"goodput", fmt::format("{:.3f}", r.goodput_per_s)},
                         {"output tokens", whole(r.output_tokens_per_s)}});
  table.add("prefix hit rate", {{"all", rate(r.hit_rate)},
                                {"device", rate(r.hit_rate - r.host_hit_rate - r.disk_hit_rate)},
                                {"host", rate(r.host_hit_rate)},
                                {"disk", rate(r.disk_hit_rate)}});
  table.add("cache", {{"waste %", fmt::format("{:.2f}", r.waste_percent)},
                      {"copies", count(r.copies_on_write)},
                      {"evictions", count(r.evictions)},
                      {"leaked", count(r.blocks_leaked)}});
  table.add("preemptions", {{"all", count(r.preemptions)},
                            {"tail drops", count(r.tail_drops)},
                            {"swapped out", count(r.swap_outs)},
                            {"swapped in", count(r.swap_ins)}});
  table.add("fairness, tokens",
            {{"max gap", whole(r.fairness_max_gap)}, {"dearest", whole(r.dearest_request)}});
  for (const std::string& v : r.violations) out += fmt::format("VIOLATION {}\n", v);
  if (!r.script.empty())
    out += fmt::format("shrunk to {} events; play it again: quire bench sim --script {}\n", r.script_events,
                       r.script);
  return out;
}

}  // namespace quire
