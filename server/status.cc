#include "server/status.h"

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "src/base/utf8.h"

namespace quire::server {
namespace {

google::rpc::QuotaFailure to_quota_failure(std::span<const QuotaViolation> violations) {
  google::rpc::QuotaFailure details;
  for (const QuotaViolation& from : violations) {
    auto* violation = details.add_violations();
    violation->set_subject(from.subject);
    violation->set_description(from.description);
    violation->set_quota_id(from.limit);
    violation->set_quota_value(from.value);
  }
  return details;
}

}  // namespace

grpc::Status to_grpc_status(const Error& error, std::span<const QuotaViolation> violations) {
  const auto code = static_cast<grpc::StatusCode>(error.code);
  const std::string message = cut_text(error.message, kMaxMessageBytes);
  if (error.field.empty() && !error.retry_delay_ms && violations.empty()) return {code, message};
  google::rpc::Status status;
  status.set_code(static_cast<int>(error.code));
  status.set_message(message);
  if (!error.field.empty()) {
    google::rpc::BadRequest details;
    auto* violation = details.add_field_violations();
    violation->set_field(error.field);
    violation->set_description(message);
    status.add_details()->PackFrom(details);
  }
  if (error.retry_delay_ms) {
    google::rpc::RetryInfo details;
    details.mutable_retry_delay()->set_seconds(*error.retry_delay_ms / 1000);
    details.mutable_retry_delay()->set_nanos(static_cast<int32_t>(*error.retry_delay_ms % 1000 * 1'000'000));
    status.add_details()->PackFrom(details);
  }
  if (!violations.empty()) status.add_details()->PackFrom(to_quota_failure(violations));
  return {code, message, status.SerializeAsString()};
}

const char* code_name(Code code) {
  switch (code) {
    case Code::kOk:
      return "OK";
    case Code::kCancelled:
      return "CANCELLED";
    case Code::kInvalidArgument:
      return "INVALID_ARGUMENT";
    case Code::kDeadlineExceeded:
      return "DEADLINE_EXCEEDED";
    case Code::kNotFound:
      return "NOT_FOUND";
    case Code::kAlreadyExists:
      return "ALREADY_EXISTS";
    case Code::kPermissionDenied:
      return "PERMISSION_DENIED";
    case Code::kResourceExhausted:
      return "RESOURCE_EXHAUSTED";
    case Code::kFailedPrecondition:
      return "FAILED_PRECONDITION";
    case Code::kAborted:
      return "ABORTED";
    case Code::kOutOfRange:
      return "OUT_OF_RANGE";
    case Code::kUnimplemented:
      return "UNIMPLEMENTED";
    case Code::kInternal:
      return "INTERNAL";
    case Code::kUnavailable:
      return "UNAVAILABLE";
    case Code::kDataLoss:
      return "DATA_LOSS";
    case Code::kUnauthenticated:
      return "UNAUTHENTICATED";
  }
  return "UNKNOWN";
}

}  // namespace quire::server
