// What a client asks for, and what it gets back, event by event. Plain values; std only.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "quire/sampling_params.h"

namespace quire {

using RequestId = uint64_t;  // given by the engine, never reused

struct ChatMessage {
  std::string role;
  std::string content;
};

// A prompt is text, token ids, or chat messages rendered by the model's chat template.
using Prompt = std::variant<std::string, std::vector<int32_t>, std::vector<ChatMessage>>;

// What a request says about the entries it leaves in the prefix cache; orders what nobody uses.
struct KvRetention {
  int32_t retention_class = 0;    // higher stays longer
  std::optional<int64_t> ttl_ms;  // [1, 2^40] from the last request that renewed it; past it it goes first
  double cost = 1;                // of computing it again, relative to other entries
};

struct Request {
  std::string client_request_id;  // echoed and logged; may be empty
  Prompt prompt;
  bool add_special_tokens = true;  // text prompts: let the tokenizer add BOS
  // read special tokens that stand in the text as plain text, so text cannot forge a role
  bool special_as_text = true;
  SamplingParams sampling;
  bool fit_max_tokens = false;  // max_tokens gives way to what the context has left after the prompt
  // "window:size=128", "stream:sinks=4,recent=124", ...; "none" keeps all; "" = the engine's default_kv_policy.
  std::string kv_policy;
  bool dump_kv = false;  // report the positions still visible at the end
  bool bypass_prefix_cache = false;
  std::string cache_salt;  // tenants with different salts never share cache entries
  KvRetention kv_retention;
  std::string tenant;                  // fair shares are counted per tenant
  int32_t priority = 0;                // lower runs first
  std::optional<int64_t> deadline_ms;  // [1, 2^40] from submission; past it it ends with deadline_exceeded
  bool stream = true;                  // false: one event per sequence, at its end
};

enum class FinishReason { kNone, kLength, kStop, kCancelled, kDeadline, kFailed };
const char* to_string(FinishReason reason);  // "", "length", "stop", "cancelled", "deadline", "failed"

struct TokenLogprob {
  int32_t token_id = 0;
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top;  // (id, logprob), likeliest first
};

struct Usage {
  int32_t prompt_tokens = 0;
  int32_t completion_tokens = 0;  // over all sequences of the request
  int32_t cached_tokens = 0;      // prompt tokens taken from the prefix cache
};

// What the cache did for one request.
struct KvUsage {
  int32_t blocks_peak = 0;  // most blocks its sequences held at once, shared ones counted once
  // most blocks held by more than one of its sequences, or by another request too
  int32_t blocks_shared_peak = 0;
  int32_t copies_on_write = 0;
  double waste_percent = 0;  // slots reserved and not filled, at the peak
  // How its prompt ran under its kv_policy: "full" attention, "full_then_cut" at the prompt's end, or "windowed", each chunk over what the
  // policy keeps.
  std::string prefill_mode;
};

struct Timings {          // ms from submission; -1 = did not happen
  double queued_ms = -1;  // to the first step that ran a token of it
  double first_token_ms = -1;
  double total_ms = -1;
};

// kv_dump[layer][head] = positions still visible after the last step; one list where the heads share it.
using KvDump = std::vector<std::vector<std::vector<int32_t>>>;

// One delivery for one sequence of a request. Events of one request come in order from one thread.
struct TokenEvent {
  RequestId request = 0;
  int32_t index = 0;                   // which of the n sequences
  std::string text;                    // new text; empty where the engine runs without a tokenizer
  std::vector<int32_t> token_ids;      // new ids
  std::vector<TokenLogprob> logprobs;  // one per new id, when asked for
  FinishReason finish = FinishReason::kNone;
  std::string stop_text;  // the stop string that ended it, if one did
  std::optional<int32_t> stop_token_id;
  std::optional<Error> error;  // with kFailed and kDeadline

  // In the first event of a request, when asked for; [0] has no logprob (NaN).
  std::vector<TokenLogprob> prompt_logprobs;
  std::vector<int32_t> prompt_token_ids;  // in the first event of a request

  // In the last event of a request (last == true).
  bool last = false;
  Usage usage;
  KvUsage kv;
  Timings timings;
  KvDump kv_dump;  // of sequence `index`, in its finishing event
};

// Where a request's events go. Called from the engine's delivery thread; must not block.
class TokenSink {
 public:
  virtual ~TokenSink() = default;
  virtual void on_event(const TokenEvent& event) = 0;
};

}  // namespace quire
