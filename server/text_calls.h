// The unary calls that wait for a text of theirs (Tokenize, Detokenize). Any thread. What always holds: each is finished once, by the
// thread that read its text or by whoever ends them all; from then on gRPC's objects of the call are gone.
#pragma once

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>

namespace quire::server {

class TextCalls {
 public:
  using Id = uint64_t;

  // Nothing once they are closed.
  std::optional<Id> add(grpc::CallbackServerContext& context);
  // False once it has ended, or its client has gone.
  bool is_wanted(Id id) const;
  // The call is the caller's to finish; nullptr if it has ended.
  grpc::ServerUnaryReactor* take(Id id);

  void close();
  void end_all(const grpc::Status& status);

 private:
  struct Call {
    grpc::CallbackServerContext* context;
    grpc::ServerUnaryReactor* reactor;
  };

  mutable std::mutex mutex_;
  bool closed_ = false;
  Id last_id_ = 0;
  std::map<Id, Call> calls_;
};

}  // namespace quire::server
