#include "server/commands/common_flags.h"

#include <fmt/format.h>

#include <charconv>

#include "server/commands/command.h"
#include "src/base/log.h"
#include "src/base/utf8.h"

namespace quire::server {
namespace {

void bind_model_flags(Flags& flags, EngineConfig& c) {
  flags.add("model", c.model_dir, "Model directory in Hugging Face layout");
  flags.require("model");
  flags.add("served-model-name", c.served_model_name, "Name on the wire; none = the directory's name");
  flags.add("weights", c.weights, "checkpoint, or random[:SEED] (then DIR needs only a config.json)");
  flags.add_choice("device", c.device, {"auto", "cpu", "cuda", "cuda-host"}, "Where the model runs");
  flags.add_choice(
      "dtype", c.dtype, {"auto", "f32", "bf16", "f16"},
      "Element type of activations; auto = f32 on the CPU, the checkpoint's on cuda; f16 on cuda only");
  flags.add_choice("kv-cache-dtype", c.kv_cache_dtype, {"auto", "f32", "bf16", "f16"},
                   "Element type of the KV cache; auto = dtype's; on cuda no other");
  flags.add("max-context-tokens", c.max_context_tokens,
            "Prompt and output of a sequence, tokens; 0 = the model's");
  flags.add("threads", c.threads, "Threads of the CPU back end; 0 = all cores");
}

void bind_cache_flags(Flags& flags, EngineConfig& c) {
  flags.add("block-tokens", c.block_tokens, "Tokens of a KV block: 8, 16, 32 or 64");
  flags.add("kv-cache-bytes", c.kv_cache_bytes,
            "Size of the KV cache, bytes; 0 = sized from the memory that is left");
  flags.add("gpu-memory-utilization", c.gpu_memory_utilization, "Share of the GPU's memory to take, (0, 1]");
  flags.add("prefix-cache", c.prefix_cache,
            "Keep finished prefixes and reuse them; --prefix-cache=false turns it off");
  flags.add("host-kv-bytes", c.host_kv_bytes,
            "Pinned host memory for cached prefixes that the device evicts, bytes; 0 = they are lost");
  flags.add(
      "disk-kv-dir", c.disk_kv_dir,
      "Directory for cached prefixes that device and host memory evict; they outlive the server; none = they "
      "are lost");
  flags.add("disk-kv-bytes", c.disk_kv_bytes, "Size of the files there, bytes; with disk-kv-dir");
  flags.add_choice("disk-kv-on-error", c.disk_kv_on_error, {"fail", "ignore"},
                   "Where they cannot be used (missing, full, another model's or version's): do not start, "
                   "or run without them");
  flags.add("swap-space-bytes", c.swap_space_bytes,
            "Pinned host memory for the KV cache of preempted sequences, bytes; 0 = they are computed again");
  flags.add_choice(
      "preemption-mode", c.preemption_mode, {"auto", "swap", "recompute"},
      "What becomes of a preempted sequence's KV cache: to host memory, or computed again, all of it "
      "or the last blocks; auto = the cheapest");
  flags.add("cascade-min-saved-bytes", c.cascade_min_saved_bytes,
            "Read shared blocks once for all sequences of a decode step where that saves the time of so many "
            "bytes from memory a layer; 0 = wherever they share enough, -1 = never");
  flags.add_choice(
      "eviction", c.eviction, {"lru", "pgdsf"},
      "Which cached prefix goes first: least recently used, or by frequency x cost with a clock");
  flags.add("max-kv-retention-class", c.max_kv_retention_class,
            "Highest kv_retention class a request may ask for");
  flags.add("max-kv-retention-cost", c.max_kv_retention_cost,
            "Highest kv_retention cost a request may ask for");
  flags.add("kv-policy-bytes", c.kv_policy_bytes,
            "Memory for lists and scores of requests under tova and h2o, bytes; who finds no room waits; 0 = "
            "2 % of what is free, but no less than one request of the whole context, or all "
            "under the default policy, may need, and no more than all may");
  flags.add("kv-policies-allowed", c.kv_policies_allowed,
            "A KV policy's name that requests may ask for, repeated; none = all");
  flags.add("default-kv-policy", c.default_kv_policy,
            "KV policy of requests that name none, as name:key=value,...");
}

void bind_step_flags(Flags& flags, EngineConfig& c) {
  flags.add("max-step-tokens", c.max_step_tokens, "Tokens of one step, prefill chunks and decodes together");
  flags.add("max-sequences", c.max_sequences, "Sequences running at once");
  flags.add("max-prefill-chunk-tokens", c.max_prefill_chunk_tokens,
            "Tokens of one prefill chunk; 0 = max-step-tokens");
  flags.add(
      "max-graph-tokens", c.max_graph_tokens,
      "On CUDA, capture steps in which prompts run as graphs up to so many tokens; 0 = decode steps alone");
  flags.add(
      "gemm-tuning-ms", c.gemm_tuning_ms,
      "On CUDA, time at the start for timing cuBLASLt's ways to multiply, ms; 0 = its own first choice");
  flags.add("max-queued-requests", c.max_queued_requests, "Requests waiting at once");
  flags.add("max-queued-kv-factor", c.max_queued_kv_factor,
            "Waiting tokens, at most this many times the cache's");
  flags.add("max-priority-wait-ms", c.max_priority_wait_ms,
            "Time after which a request runs as if of the highest priority, ms: none starves");
  flags.add("drain-timeout-ms", c.drain_timeout_ms, "Time running requests get at SIGTERM, ms");
  flags.add("check-invariants", c.check_invariants,
            "Audit every invariant after every step (slow; for tests)");
}

void bind_limit_flags(Flags& flags, SamplingLimits& limits) {
  flags.add("max-n", limits.max_n, "Most continuations a request may ask for");
  flags.add("max-beam-width", limits.max_beam_width, "Most beams a request may ask for");
  flags.add("max-stop-strings", limits.max_stop_strings, "Most stop texts of a request");
  flags.add("max-stop-bytes", limits.max_stop_bytes, "Longest stop text, bytes");
  flags.add("max-logprobs", limits.max_logprobs, "Most logprobs a token a request may ask for");
  flags.add("max-logit-bias", limits.max_logit_bias, "Most logit_bias entries of a request");
  flags.add("max-bad-words", limits.max_bad_words, "Most bad_words sequences of a request");
  flags.add("max-bad-word-tokens", limits.max_bad_word_tokens, "Longest sequence of bad_words, tokens");
  flags.add("max-stop-token-ids", limits.max_stop_token_ids, "Most stop_token_ids of a request");
}

// The defaults of temperature, top_k, top_p, min_p, typical_p and repetition_penalty give way to the model's
// (take_model_defaults).
void bind_sampling_flags(Flags& flags, SamplingParams& p) {
  flags.add("max-tokens", p.max_tokens, "Most new tokens of a continuation");
  flags.add("min-tokens", p.min_tokens, "New tokens before anything may end it");
  flags.add("temperature", p.temperature, "[0, 100]; 0 = greedy");
  flags.add("top-k", p.top_k, "Keep the K likeliest tokens; 0 = all");
  flags.add("top-p", p.top_p, "Keep the likeliest tokens up to this probability, (0, 1]");
  flags.add("min-p", p.min_p, "Drop tokens less likely than this share of the likeliest, [0, 1]");
  flags.add("typical-p", p.typical_p, "Keep the most typical tokens up to this probability, (0, 1]");
  flags.add("repetition-penalty", p.repetition_penalty, "Factor on tokens of prompt and output, (0, 100]");
  flags.add("presence-penalty", p.presence_penalty, "Taken from the logit of tokens in the output, [-2, 2]");
  flags.add("frequency-penalty", p.frequency_penalty, "The same, for each occurrence, [-2, 2]");
  flags.add("no-repeat-ngram", p.no_repeat_ngram, "No n-gram of this many tokens twice; 0 = off");
  flags.add("allowed-token-ids", p.allowed_token_ids, "Only these token ids; none = all");
  flags.add("forced-token-ids", p.forced_token_ids, "The output begins with these token ids; none = off");
  flags.add("seed", p.seed, "Same seed, same tokens; none = drawn");
  flags.add("stop", p.stop, "Text that ends the output, repeated");
  flags.add("stop-token-ids", p.stop_token_ids, "Token ids that end the output");
  flags.add("include-stop", p.include_stop, "Keep the stop text, or the stop id's, in the output");
  flags.add("ignore-eos", p.ignore_eos, "Go on past the model's end-of-sequence ids");
  flags.add("n", p.n, "Continuations");
  flags.add("best-of", p.best_of, "Continuations made, of which the best n are returned; 0 = n");
  flags.add("beam-width", p.beam_width, "Beams of a beam search; 0 = off");
  flags.add("length-penalty", p.length_penalty, "A beam's score is its logprob / length^this");
  flags.add("early-stopping", p.early_stopping, "End when beam-width finished beams exist");
  flags.add("logprobs", p.logprobs,
            "Logprobs of each new token: -1 none, 0 chosen only, K also of the K likeliest");
  flags.add("prompt-logprobs", p.prompt_logprobs, "The same over the prompt's tokens");
  flags.add("skip-special-tokens", p.skip_special_tokens,
            "Leave special tokens out of the text; =false keeps them");
}

Result<std::pair<int32_t, double>> parse_bias(const std::string& text) {
  const size_t colon = text.find(':');
  std::pair<int32_t, double> out{};
  const char* end = text.data() + text.size();
  if (colon != std::string::npos) {
    const auto id = std::from_chars(text.data(), text.data() + colon, out.first);
    const auto bias = std::from_chars(text.data() + colon + 1, end, out.second);
    if (id.ec == std::errc() && id.ptr == text.data() + colon && bias.ec == std::errc() && bias.ptr == end)
      return out;
  }
  return invalid(fmt::format("--logit-bias '{}' is not ID:BIAS, for example 42:-1.5", text));
}

}  // namespace

void bind_engine_flags(Flags& flags, EngineConfig& config) {
  bind_model_flags(flags, config);
  bind_cache_flags(flags, config);
  bind_step_flags(flags, config);
  bind_limit_flags(flags, config.sampling_limits);
}

void bind_log_flags(Flags& flags, LogOptions& options) {
  flags.add_choice("log-format", options.format, {"text", "json"},
                   "Log lines on standard error, key=value or JSON");
  flags.add_choice("log-level", options.level, {"debug", "info", "warn", "error"},
                   "Least level that is logged");
}

void apply(const LogOptions& options) {
  const LogLevel level = options.level == "debug"  ? LogLevel::kDebug
                         : options.level == "info" ? LogLevel::kInfo
                         : options.level == "warn" ? LogLevel::kWarn
                                                   : LogLevel::kError;
  configure_log(options.format == "json" ? LogFormat::kJson : LogFormat::kKeyValue, level);
}

void bind_request_flags(Flags& flags, RequestFlags& out) {
  bind_sampling_flags(flags, out.request.sampling);
  flags.add("logit-bias", out.logit_bias, "ID:BIAS added to a token's logit, repeated");
  flags.add("bad-words", out.bad_words, "Token ids, as 1,2,3, that must not come in this order, repeated");
  flags.add("no-special-tokens", out.no_special_tokens, "Add no BOS or EOS to a text prompt");
  flags.add("special-as-text", out.request.special_as_text,
            "Read special tokens in a text as plain text; =false reads them as such");
  flags.add("kv-policy", out.request.kv_policy,
            "What of the KV cache stays, as name:key=value,...; none = all");
  flags.add("dump-kv", out.request.dump_kv, "Report the positions the cache still holds at the end");
  flags.add("bypass-prefix-cache", out.request.bypass_prefix_cache, "Neither read nor fill the prefix cache");
  flags.add("cache-salt", out.request.cache_salt, "Requests with different salts share no cache entries");
  flags.add("kv-retention-class", out.request.kv_retention.retention_class,
            "Cached prefixes of a higher class are evicted later");
  flags.add("kv-retention-ttl-ms", out.request.kv_retention.ttl_ms,
            "What it leaves in the prefix cache goes first after this time, ms");
  flags.add("kv-retention-cost", out.request.kv_retention.cost,
            "What computing that again costs, relative to other entries");
  flags.add("tenant", out.request.tenant, "Whose fair share it counts against");
  flags.add("priority", out.request.priority, "Lower runs first");
  flags.add("deadline-ms", out.request.deadline_ms, "Ends the request after this time, ms");
}

Status check_output(const RequestFlags& flags, const std::string& output) {
  const Request& request = flags.request;
  for (const auto& [flag, is_asked] : {std::pair{"--dump-kv", request.dump_kv},
                                       {"--logprobs", request.sampling.logprobs >= 0},
                                       {"--prompt-logprobs", request.sampling.prompt_logprobs >= 0}})
    if (is_asked && output == "text")
      return invalid(fmt::format("{} is not shown as text; it needs --output json or jsonl", flag));
  return ok();
}

Status check_utf8(const std::string& flag, const std::string& text) {
  if (const auto offset = find_invalid_utf8(text))
    return invalid(fmt::format("{} is not UTF-8 at byte {}", flag, *offset));
  return ok();
}

Result<Request> finish(const RequestFlags& flags) {
  Request request = flags.request;
  request.add_special_tokens = !flags.no_special_tokens;
  for (const std::string& text : request.sampling.stop)
    if (Status utf8 = check_utf8("--stop", text); !utf8) return utf8.error();
  if (Status utf8 = check_utf8("--tenant", request.tenant); !utf8) return utf8.error();
  if (Status utf8 = check_utf8("--cache-salt", request.cache_salt); !utf8) return utf8.error();
  for (const std::string& text : flags.logit_bias) {
    const auto bias = parse_bias(text);
    if (!bias) return bias.error();
    for (const auto& [id, amount] : request.sampling.logit_bias)
      if (id == bias->first) return invalid(fmt::format("--logit-bias has token id {} more than once", id));
    request.sampling.logit_bias.push_back(*bias);
  }
  for (const std::string& text : flags.bad_words) {
    auto ids = parse_ids(text, "--bad-words");
    if (!ids) return ids.error();
    request.sampling.bad_words.push_back(std::move(ids).value());
  }
  return request;
}

void take_model_defaults(const Flags& flags, const SamplingParams& model, SamplingParams& sampling) {
  const auto take = [&](const char* flag, auto SamplingParams::* field) {
    if (!flags.given(flag)) sampling.*field = model.*field;
  };
  take("temperature", &SamplingParams::temperature);
  take("top-k", &SamplingParams::top_k);
  take("top-p", &SamplingParams::top_p);
  take("min-p", &SamplingParams::min_p);
  take("typical-p", &SamplingParams::typical_p);
  take("repetition-penalty", &SamplingParams::repetition_penalty);
}

Result<std::vector<int32_t>> parse_ids(const std::string& text, const std::string& flag) {
  std::vector<int32_t> ids;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at < end) {
    int32_t id = 0;
    const auto read = std::from_chars(at, end, id);
    if (read.ec != std::errc() || (read.ptr != end && *read.ptr != ',') || read.ptr + 1 == end)
      return invalid(fmt::format("{} '{}' is not a list of token ids like 1,2,3", flag, text));
    ids.push_back(id);
    at = read.ptr == end ? end : read.ptr + 1;
  }
  return ids;
}

}  // namespace quire::server
