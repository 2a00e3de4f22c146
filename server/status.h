// quire::Error as a gRPC status with google.rpc details. Pure functions, any thread.
#pragma once

#include <grpcpp/support/status.h>

#include <span>
#include <string>

#include "quire/result.h"

namespace quire::server {

// A status travels in the trailing metadata, of which clients take 8 KB by default: its message escaped (up to three times as long)
// and twice more among the details (in base64).
inline constexpr size_t kMaxMessageBytes = 1024;

// A limit of one client that a request went against.
struct QuotaViolation {
  std::string subject;      // whose: "tenant:NAME", "clientip:ADDRESS"
  std::string description;  // what was asked for, and what may be
  const char* limit = "";   // its name, as the flag with _
  int64_t value = 0;
};

// BadRequest.FieldViolation where the error names a field, RetryInfo where it names a delay, QuotaFailure where there are violations.
// A longer message is cut.
grpc::Status to_grpc_status(const Error& error, std::span<const QuotaViolation> violations = {});

// The name of a code as gRPC writes it: "INVALID_ARGUMENT".
const char* code_name(Code code);

}  // namespace quire::server
