// Lines that libraries write to standard error by themselves.
#pragma once

namespace quire::server {

// gRPC's and protobuf's lines become ours, at the level of details: what matters is reported by the code that met it. Once is enough.
void adopt_library_logs();

}  // namespace quire::server
