// How long the lists of a request are, counted in its bytes: before an object is made of each entry, which took 170 ms and more for the
// 250,000 of logit_bias that a message of 4 MiB has room for. Counting takes a hundredth of that. Any thread.
#pragma once

#include <string_view>

#include "quire/sampling_params.h"

namespace quire::server {

struct WireRequest {
  ListCounts lists;
  std::string_view request_id;  // as it came: UTF-8 or not
};

// Of an encoded GenerateRequest, or of the one in an encoded DumpKvRequest. An entry that comes again counts again. What is not well
// formed is counted up to there: the parser names it.
WireRequest look_at_generate(std::string_view bytes);
WireRequest look_at_dump_kv(std::string_view bytes);

}  // namespace quire::server
