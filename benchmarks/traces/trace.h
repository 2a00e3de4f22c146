// Production serving traces as lists of requests: Azure 2023 (CSV), Mooncake (JSON lines with prefix hashes), ServeGen (an archive
// of client profiles, from which arrivals and lengths are drawn). Files may be gzipped. Errors name the file and the line.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "quire/result.h"

namespace quire {

enum class TraceFormat { kAzure, kMooncake, kServeGen };

struct TraceRequest {
  int64_t arrival_us = 0;  // from the trace's first request
  int32_t prompt_tokens = 0, output_tokens = 0;
  // Prompt in pieces of `prefix_piece_tokens`: equal ids stand for equal text after equal text. Empty: nothing is shared.
  std::vector<uint64_t> prefix_pieces;
};

struct Trace {
  std::vector<TraceRequest> requests;  // by arrival
  int32_t prefix_piece_tokens = 0;
};

struct TraceOptions {
  uint64_t seed = 0;          // ServeGen: what arrivals and lengths are drawn from
  int64_t max_requests = 0;   // 0 = all
  double max_seconds = 3600;  // ServeGen: how long a stretch to draw; its profiles cover a day
};

Result<TraceFormat> parse_trace_format(std::string_view name);  // azure | mooncake | servegen
Result<Trace> read_trace(const std::string& path, TraceFormat format, const TraceOptions& options);

// The prompt a request stands for, as token ids below vocab_size: equal prefix pieces give equal tokens, all else is its own.
std::vector<int32_t> prompt_of(const Trace& trace, size_t request, int32_t vocab_size);

}  // namespace quire
