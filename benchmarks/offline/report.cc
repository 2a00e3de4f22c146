// An OfflineReport as JSON and as text.
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "benchmarks/offline/offline.h"

namespace quire {
namespace {

using nlohmann::ordered_json;

ordered_json figures(const OfflineRound& r) {
  ordered_json out = {{"prefill_tokens_per_s", r.prefill_tokens_per_s},
                      {"decode_tokens_per_s", r.decode_tokens_per_s},
                      {"ms_per_decode_step", r.ms_per_decode_step},
                      {"prefill_ms", r.prefill_ms},
                      {"decode_ms", r.decode_ms},
                      {"total_ms", r.total_ms},
                      {"output_tokens_per_s", r.output_tokens_per_s},
                      {"decode_steps", r.decode_steps}};
  if (r.read_gb_s > 0) out["read_gb_s"] = r.read_gb_s;
  return out;
}

// What one decode step reads of the weights, over its time: at batch 1 the share of the memory bandwidth.
double weight_gb_per_s(const OfflineReport& r) {
  if (r.median.decode_steps == 0) return 0;
  return static_cast<double>(r.weight_bytes) / (r.median.ms_per_decode_step * 1e6);
}

// The rounds' median.
double weight_share_of_read(const OfflineReport& r) {
  std::vector<double> shares;
  for (const OfflineRound& round : r.rounds) {
    if (round.read_gb_s > 0 && round.decode_steps > 0)
      shares.push_back(static_cast<double>(r.weight_bytes) / (round.ms_per_decode_step * 1e6) /
                       round.read_gb_s);
  }
  if (shares.empty()) return 0;
  std::nth_element(shares.begin(), shares.begin() + static_cast<std::ptrdiff_t>(shares.size() / 2),
                   shares.end());
  return shares[shares.size() / 2];
}

}  // namespace

std::string to_json(const OfflineReport& r) {
  ordered_json out;
  if (!r.options.name.empty()) out["name"] = r.options.name;
  out.update(figures(r.median));
  out["kv_bytes_peak"] = r.kv_bytes_peak;
  out["kv_bytes_per_token"] = r.kv_bytes_per_token;
  out["device"] = r.device;
  out["model"] = r.model;
  out["architecture"] = r.architecture;
  out["weights"] = r.options.engine.weights;
  out["dtype"] = r.dtype;
  out["kv_dtype"] = r.kv_dtype;
  if (r.options.requests.empty()) {
    out["batch"] = r.options.batch;
    out["prompt_tokens"] = r.options.prompt_tokens;
    out["new_tokens"] = r.options.new_tokens;
  } else {
    out["batch"] = r.options.requests.size();
  }
  out["n"] = r.options.n;
  out["shared_prefix_tokens"] = r.options.shared_prefix_tokens;
  out["shared_read_tokens_per_step"] = r.shared_read_tokens;
  out["uploaded_bytes_per_step"] = r.uploaded_bytes;
  out["cached_tokens"] = r.cached_tokens;
  out["open_ms"] = r.open_ms;
  out["start_to_first_token_ms"] = r.start_to_first_token_ms;
  out["host_us_per_step"] = r.host_us_per_step;
  if (r.options.engine.time_device_idle) out["device_idle_us_per_step"] = r.device_idle_us;
  out["threads"] = r.options.engine.threads;
  out["max_step_tokens"] = r.options.engine.max_step_tokens;
  out["weight_bytes"] = r.weight_bytes;
  out["weight_gb_per_s"] = weight_gb_per_s(r);
  // Each round against the bandwidth measured just after it: a shared machine's moves from second to second.
  if (r.options.probe_read) out["weight_share_of_read"] = weight_share_of_read(r);
  out["rounds"] = ordered_json::array();
  for (const OfflineRound& round : r.rounds) out["rounds"].push_back(figures(round));
  return out.dump(1);
}

std::string to_text(const OfflineReport& r) {
  const OfflineOptions& o = r.options;
  const std::string work = o.requests.empty() ? fmt::format("batch {}, {} prompt + {} new tokens", o.batch,
                                                            o.prompt_tokens, o.new_tokens)
                                              : fmt::format("{} requests of a list", o.requests.size());
  const std::string read =
      o.probe_read ? fmt::format("read    {:10.1f} GB/s by the machine; the weights took {:.0f} % of it\n",
                                 r.median.read_gb_s, 100 * weight_share_of_read(r))
                   : "";
  return fmt::format(
      "{} ({}), {}\nactivations {}, cache {}; {}, median of {} rounds\n"
      "n {}, shared prefix of {} tokens; {} prompt tokens of a round came from the cache\n"
      "prefill {:10.1f} tokens/s  ({:.1f} ms)\ndecode  {:10.1f} tokens/s  ({:.3f} ms a step, weights at "
      "{:.1f} GB/s)\n"
      "whole   {:10.1f} tokens/s  ({:.1f} ms)\n"
      "cache   {:10.1f} MiB at its peak\n"
      "{}"
      "start to first token {:.0f} ms, of them {:.0f} ms to open; host {:.1f} us a step\n",
      r.model, r.architecture, r.device, r.dtype, r.kv_dtype, work, r.rounds.size(), o.n,
      o.shared_prefix_tokens, r.cached_tokens, r.median.prefill_tokens_per_s, r.median.prefill_ms,
      r.median.decode_tokens_per_s, r.median.ms_per_decode_step, weight_gb_per_s(r),
      r.median.output_tokens_per_s, r.median.total_ms, static_cast<double>(r.kv_bytes_peak) / (1 << 20), read,
      r.start_to_first_token_ms, r.open_ms, r.host_us_per_step);
}

}  // namespace quire
