// quire::Error as a gRPC status with google.rpc details. Pure functions, any thread.
#pragma once

#include <grpcpp/support/status.h>

#include "quire/result.h"

namespace quire::server {

// A status travels in the trailing metadata, of which clients take 8 KB by default: its message escaped (up to three times as long)
// and twice more among the details (in base64).
inline constexpr size_t kMaxMessageBytes = 1024;

// BadRequest.FieldViolation where the error names a field, RetryInfo where it names a delay. A longer message is cut.
grpc::Status to_grpc_status(const Error& error);

// The name of a code as gRPC writes it: "INVALID_ARGUMENT".
const char* code_name(Code code);

}  // namespace quire::server
