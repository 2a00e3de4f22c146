// A gRPC server on one address: credentials, limits, health, reflection. Built and stopped by one thread.
//
// Safety rule (CVE history of inference servers: sockets on all interfaces): an address that is not loopback
// needs TLS, or the operator's word (behind_proxy) that something in front ends it.
#pragma once

#include <grpcpp/server.h>

#include <memory>
#include <string>

#include "quire/result.h"
#include "server/connection_acceptor.h"

namespace quire::server {

struct ListenOptions {
  std::string host = "127.0.0.1";  // address, name, or unix:PATH
  int32_t port = 50051;            // 0 = any free one
  bool behind_proxy = false;
  std::string tls_cert, tls_key;  // PEM files; both or neither
  std::string tls_client_ca;      // PEM file: clients must show a certificate signed by it
  int64_t max_message_bytes = 4 << 20;
  int32_t max_metadata_bytes = 16 << 10;
  int32_t max_connections = 4096;
  int32_t max_streams_per_connection = 1024;
  int64_t idle_connection_ms = 300'000;
  int64_t max_connection_age_ms = 3'600'000;  // gRPC spreads it by 10 %
  bool reflection = true;
};

bool is_loopback(const std::string& host);
std::string format_address(const std::string& host, int32_t port);  // [::1]:50051

class Listener {
 public:
  // Errors: a public address without TLS, TLS files that cannot be read, an address that cannot be bound.
  static Result<std::unique_ptr<Listener>> open(const ListenOptions& options, grpc::Service& service);
  ~Listener();

  const std::string& address() const { return address_; }  // with the real port
  // Readiness of a service for health checks; "" is live from the start.
  void set_serving(const std::string& service, bool serving);
  // Takes no new calls, lets running ones go on for grace_ms, then cancels them.
  void shut_down(int64_t grace_ms);

 private:
  Listener(std::unique_ptr<grpc::Server> server, std::unique_ptr<ConnectionAcceptor> acceptor,
           std::string address);

  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<ConnectionAcceptor> acceptor_;  // hands connections to the server, so it ends first
  std::string address_;
};

}  // namespace quire::server
