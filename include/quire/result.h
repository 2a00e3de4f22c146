// What an operation gives back when the caller or the world can be at fault: a value or an Error.
// Our own faults are not errors but quire::check (src/base/check.h), which ends the process.
// Plain values, any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace quire {

// Numbered like gRPC's status codes, so the wire needs no table.
enum class Code : int {
  kOk = 0,
  kCancelled = 1,
  kInvalidArgument = 3,
  kDeadlineExceeded = 4,
  kNotFound = 5,
  kAlreadyExists = 6,
  kPermissionDenied = 7,
  kResourceExhausted = 8,
  kFailedPrecondition = 9,
  kAborted = 10,
  kOutOfRange = 11,
  kUnimplemented = 12,
  kInternal = 13,
  kUnavailable = 14,
  kDataLoss = 15,
  kUnauthenticated = 16,
};

struct Error {
  Code code = Code::kInternal;
  std::string message;                    // names the thing, the value and the limit
  std::string field;                      // request field at fault ("sampling.top_p"), or empty
  std::optional<int64_t> retry_delay_ms;  // when trying again makes sense
};

inline Error invalid(std::string message, std::string field = {}) {
  return Error{.code = Code::kInvalidArgument,
               .message = std::move(message),
               .field = std::move(field),
               .retry_delay_ms = {}};
}
inline Error error(Code code, std::string message) {
  return Error{.code = code, .message = std::move(message), .field = {}, .retry_delay_ms = {}};
}

// A result asked for what it does not hold: our own fault, which ends the process as a failed quire::check does, with
// the error's message where an error was taken for a value (null where a value was taken for an error).
[[noreturn]] void result_misused(const Error* held);

// Shaped like std::expected, which gcc 12 lacks; but where that is undefined or throws, this ends the process.
template <class T>
class [[nodiscard]] Result {
 public:
  // Implicit, so that a function returns its value, or an error, as it is.
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

  bool has_value() const { return state_.index() == 0; }
  explicit operator bool() const { return has_value(); }
  T& value() & { return held(state_); }
  const T& value() const& { return held(state_); }
  T&& value() && { return std::move(held(state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  const Error& error() const {
    const Error* error = std::get_if<1>(&state_);
    if (error == nullptr) [[unlikely]]
      result_misused(nullptr);
    return *error;
  }

 private:
  template <class State>
  static auto& held(State& state) {
    auto* value = std::get_if<0>(&state);
    if (value == nullptr) [[unlikely]]
      result_misused(std::get_if<1>(&state));
    return *value;
  }

  std::variant<T, Error> state_;
};

struct Unit {};
using Status = Result<Unit>;
inline Status ok() {
  return Unit{};
}

}  // namespace quire
