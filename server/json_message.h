// JSON as a message of the wire, strictly: an unknown field, a wrong type and a number out of range are
// errors that name the field's path. Used for jsonl input, so that each line takes the fields of the wire.
//
// Differences from the wire's shape, for people who write lines by hand:
//   - a message that only wraps a list is written as the list: "messages": [{"role": .., "content": ..}],
//   "token_ids": [1, 2];
//   - "prompt" may be a text or a list of ids; "prompt_ids" and "prompt_token_ids" are token_ids;
//   - fields of "sampling" may stand at the top.
#pragma once

#include <google/protobuf/message.h>

#include <string_view>

#include "quire/result.h"
#include "quire/v1/generation.pb.h"

namespace quire::server {

Result<v1::GenerateRequest> request_from_json(std::string_view text);

}  // namespace quire::server
