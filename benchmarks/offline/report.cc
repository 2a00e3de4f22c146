// An OfflineReport as JSON and as text.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "benchmarks/offline/offline.h"

namespace quire {
namespace {

using nlohmann::ordered_json;

ordered_json figures(const OfflineRound& r) {
  return {{"prefill_tokens_per_s", r.prefill_tokens_per_s},
          {"decode_tokens_per_s", r.decode_tokens_per_s},
          {"ms_per_decode_step", r.ms_per_decode_step},
          {"prefill_ms", r.prefill_ms},
          {"decode_ms", r.decode_ms},
          {"decode_steps", r.decode_steps}};
}

// What one decode step reads of the weights, over its time: at batch 1 the share of the memory bandwidth.
double weight_gb_per_s(const OfflineReport& r) {
  return static_cast<double>(r.weight_bytes) / (r.median.ms_per_decode_step * 1e6);
}

}  // namespace

std::string to_json(const OfflineReport& r) {
  ordered_json out = figures(r.median);
  out.erase("decode_steps");
  out["kv_bytes_peak"] = r.kv_bytes_peak;
  out["device"] = r.device;
  out["model"] = r.model;
  out["architecture"] = r.architecture;
  out["weights"] = r.options.engine.weights;
  out["dtype"] = r.dtype;
  out["kv_dtype"] = r.kv_dtype;
  out["batch"] = r.options.batch;
  out["prompt_tokens"] = r.options.prompt_tokens;
  out["new_tokens"] = r.options.new_tokens;
  out["threads"] = r.options.engine.threads;
  out["max_step_tokens"] = r.options.engine.max_step_tokens;
  out["weight_bytes"] = r.weight_bytes;
  out["weight_gb_per_s"] = weight_gb_per_s(r);
  out["rounds"] = ordered_json::array();
  for (const OfflineRound& round : r.rounds) out["rounds"].push_back(figures(round));
  return out.dump(1);
}

std::string to_text(const OfflineReport& r) {
  return fmt::format(
      "{} ({}), {}\nactivations {}, cache {}; batch {}, {} prompt + {} new tokens, median of {} rounds\n"
      "prefill {:10.1f} tokens/s  ({:.1f} ms)\ndecode  {:10.1f} tokens/s  ({:.3f} ms a step, weights at "
      "{:.1f} GB/s)\n"
      "cache   {:10.1f} MiB at its peak\n",
      r.model, r.architecture, r.device, r.dtype, r.kv_dtype, r.options.batch, r.options.prompt_tokens,
      r.options.new_tokens, r.rounds.size(), r.median.prefill_tokens_per_s, r.median.prefill_ms,
      r.median.decode_tokens_per_s, r.median.ms_per_decode_step, weight_gb_per_s(r),
      static_cast<double>(r.kv_bytes_peak) / (1 << 20));
}

}  // namespace quire
