// Results of commands as JSON, in the forms that scripts rely on. One line each, keys in the order of the
// documentation.
#pragma once

#include <string>
#include <string_view>

#include "server/collector.h"

namespace quire::server {

// {"prompt_token_ids":[..],"outputs":[{"index":0,"text":"..",..}],"usage":{..},"kv":{..},"timings":{..}}, and before them
// "request_id" where the client gave one.
std::string to_json(const Completion& completion, std::string_view request_id = "");

// The double of the float's own shortest digits, which is how JSON is to show it: 0.1f as 0.1, not 0.10000000149011612.
double shortest(float value);

// {"error":{"code":"INVALID_ARGUMENT","message":"..","field":"sampling.top_p","retry_delay_ms":..}}, likewise.
std::string to_json(const Error& error, std::string_view request_id = "");

}  // namespace quire::server
