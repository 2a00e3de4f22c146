// quire::Error as a gRPC status with google.rpc details. Pure functions, any thread.
#pragma once

#include <grpcpp/support/status.h>

#include "quire/result.h"

namespace quire::server {

// BadRequest.FieldViolation where the error names a field, RetryInfo where it names a delay.
grpc::Status to_grpc_status(const Error& error);

// The name of a code as gRPC writes it: "INVALID_ARGUMENT".
const char* code_name(Code code);

}  // namespace quire::server
