// Whose request it is, and what it may cost: what the limits of a client go by. Pure functions, any thread.
#pragma once

#include <cstdint>
#include <string>

#include "quire/request.h"
#include "quire/sampling_params.h"

namespace quire::server {

// "tenant:NAME"; of a request that names none, "clientip:ADDRESS" of the connection it came by: without the port, and of IPv6 the network
// (/64), of whose addresses a client has as many as it likes. Behind a proxy that is the proxy's; on a Unix socket it is "clientip:unix".
// peer: as gRPC tells it, "ipv4:127.0.0.1:4711", "ipv6:%5B::1%5D:4711", "unix:/run/quire.sock".
std::string client_of(const std::string& tenant, const std::string& peer);

// Most tokens it may use, prompt and all its continuations. A prompt that is text is not tokenised yet: it counts a token for each 4 bytes.
int64_t most_tokens(const Request& request, const SamplingLimits& limits);

}  // namespace quire::server
