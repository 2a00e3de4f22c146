// Accepts connections and hands them to gRPC, at most so many at once.
//
// gRPC 1.51 has no limit of connections, and its own listener ends for good the first time that accept() finds no free descriptor: some
// thousand idle connections, closed again, would leave a server that nobody reaches.
#pragma once

#include <grpcpp/server_builder.h>

#include <cstdint>
#include <memory>
#include <thread>

#include "quire/result.h"
#include "server/listening_sockets.h"

namespace quire::server {

class ConnectionAcceptor {
 public:
  using GrpcAcceptor = grpc::experimental::ExternalConnectionAcceptor;

  // Connections past max_connections are closed at once. Fewer are taken, with a line in the log, where the process may not open so many
  // descriptors (RLIMIT_NOFILE, raised to its hard limit if need be).
  static Result<std::unique_ptr<ConnectionAcceptor>> start(ListeningSockets sockets,
                                                           std::unique_ptr<GrpcAcceptor> grpc,
                                                           int32_t max_connections);
  ~ConnectionAcceptor();
  ConnectionAcceptor(const ConnectionAcceptor&) = delete;
  ConnectionAcceptor& operator=(const ConnectionAcceptor&) = delete;

  void stop();  // connections that were taken go on

 private:
  ConnectionAcceptor(ListeningSockets sockets, std::unique_ptr<GrpcAcceptor> grpc, int32_t max_connections);
  Status start_thread_of_its_own();
  void run();
  void take_all(int listening);
  bool is_too_many(int fd);
  void refuse(int fd);
  void wait_out(int reason);  // an errno

  ListeningSockets sockets_;
  std::unique_ptr<GrpcAcceptor> grpc_;
  int32_t connections_;           // at most
  int64_t most_descriptors_ = 0;  // without those that are kept for others
  int64_t inherited_ = 0;         // sockets with a peer that nobody here accepted: a log's, a parent's
  int first_refused_fd_ = 0;
  int64_t refused_ = 0, next_report_ms_ = 0, next_failure_report_ms_ = 0, next_count_ms_ = 0;
  int stop_event_ = -1;
  std::jthread thread_;
};

}  // namespace quire::server
