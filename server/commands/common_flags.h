// Flags that several commands take.
#pragma once

#include <string>

#include "quire/config.h"
#include "quire/request.h"
#include "server/flags.h"

namespace quire::server {

// Model, device, cache, steps, queue and limits: every field of EngineConfig.
void bind_engine_flags(Flags& flags, EngineConfig& config);

struct LogOptions {
  std::string format = "text";
  std::string level = "warn";
};
void bind_log_flags(Flags& flags, LogOptions& options);
void apply(const LogOptions& options);

// Sampling and KV policy of a request given on the command line.
struct RequestFlags {
  Request request;
  std::vector<std::string> logit_bias;  // "ID:BIAS"
  std::vector<std::string> bad_words;   // "1,2"
  bool no_special_tokens = false;
};
void bind_request_flags(Flags& flags, RequestFlags& out);
// The request that the flags describe, without its prompt.
Result<Request> finish(const RequestFlags& flags);
// Takes from the model's own sampling what no flag says.
void take_model_defaults(const Flags& flags, const SamplingParams& model, SamplingParams& sampling);

// Whether --output text would leave out what the flags ask for.
Status check_output(const RequestFlags& flags, const std::string& output);
Status check_utf8(const std::string& flag, const std::string& text);
// "1,2,3"
Result<std::vector<int32_t>> parse_ids(const std::string& text, const std::string& flag);

}  // namespace quire::server
