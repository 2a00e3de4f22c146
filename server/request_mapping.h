// A GenerateRequest of the wire as an engine's Request. Pure; used by the server and by `quire generate
// --input`, so both take the same fields with the same defaults and refuse the same mistakes.
#pragma once

#include "quire/request.h"
#include "quire/result.h"
#include "quire/v1/generation.pb.h"
#include "quire/v1/sampling.pb.h"

namespace quire::server {

inline constexpr size_t kMaxNameBytes = 256;  // request_id, tenant, cache_salt, role of a message

// A default max_tokens fits itself to the context; one that was asked for is refused where it does not.
inline Request wire_defaults() {
  Request request;
  request.fit_max_tokens = true;
  return request;
}

// Checks shape (a prompt is there, names fit, ids lie in [0, vocab_size)); ranges of the sampling values are
// the engine's validate(). vocab_size 0 leaves ids unchecked. What the wire leaves out is taken from
// `defaults`.
Result<Request> to_request(const v1::GenerateRequest& wire, int32_t vocab_size,
                           const Request& defaults = wire_defaults());

// Which field of the wire a prompt came in.
const char* wire_field(const Prompt& prompt);

// "token_ids has id 512 at position 3; ids of this model run from 0 to 511".
Status check_token_ids(const google::protobuf::RepeatedField<int32_t>& ids, int32_t vocab_size,
                       const char* field);

}  // namespace quire::server
