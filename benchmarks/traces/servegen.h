// ServeGen's client profiles (Alibaba, "ServeGen: workload characterization and generation of LLM serving", 2025): per client and
// ten-minute window a rate with a gap distribution, per six hours histograms of prompt and output lengths.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "benchmarks/traces/trace.h"

namespace quire {

// files: "chunk-N-trace.csv" and "chunk-N-dataset.json" pairs. Draws options.max_seconds of arrivals from options.seed.
Result<Trace> draw_servegen(const std::vector<std::pair<std::string, std::string>>& files,
                            const std::string& path, const TraceOptions& options);

}  // namespace quire
