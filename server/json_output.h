// Results of commands as JSON, in the forms that scripts rely on. One line each, keys in the order of the
// documentation.
#pragma once

#include <string>

#include "server/collector.h"

namespace quire::server {

// {"prompt_token_ids":[..],"outputs":[{"index":0,"text":"..",..}],"usage":{..},"kv":{..},"timings":{..}}
std::string to_json(const Completion& completion);

// {"error":{"code":"INVALID_ARGUMENT","message":"..","field":"sampling.top_p","retry_delay_ms":..}}
std::string to_json(const Error& error);

}  // namespace quire::server
