// Sockets that listen on one address, as gRPC would make them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "quire/result.h"

namespace quire::server {

// kInvalidArgument: a host that is no address, no name of one and no unix:PATH.
Status check_host(const std::string& host);

// Owns the descriptors, and the file of a Unix socket.
class ListeningSockets {
 public:
  // host: an address, a name (every address it stands for is listened on) or unix:PATH; port 0 takes a free one. Errors: a name that
  // does not resolve, a port that is taken, with the system's reason.
  static Result<ListeningSockets> open(const std::string& host, int32_t port);

  ListeningSockets(ListeningSockets&& other) noexcept;
  ListeningSockets& operator=(ListeningSockets&&) = delete;
  ~ListeningSockets();

  const std::vector<int>& descriptors() const { return descriptors_; }  // they do not block
  int32_t port() const { return port_; }                                // 0 for a Unix socket
  void close();

 private:
  ListeningSockets() = default;
  Status listen_on_path(const std::string& path);
  Status listen_on_name(const std::string& host, int32_t port);

  std::vector<int> descriptors_;
  int32_t port_ = 0;
  std::string path_;
};

}  // namespace quire::server
