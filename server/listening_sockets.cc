#include "server/listening_sockets.h"

#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <utility>

#include "server/socket_path.h"

namespace quire::server {
namespace {

using Addresses = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

// [::1] is written so in an address; the resolver wants ::1.
std::string without_brackets(const std::string& host) {
  return host.starts_with("[") && host.ends_with("]") ? host.substr(1, host.size() - 2) : host;
}

Result<Addresses> resolve(const std::string& host, int32_t port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int code = getaddrinfo(without_brackets(host).c_str(), std::to_string(port).c_str(), &hints, &found);
  if (code != 0)
    return invalid(fmt::format("--host '{}' names no address: {}", host, gai_strerror(code)), "host");
  return Addresses(found, freeaddrinfo);
}

void set_option(int fd, int level, int option, int value) {
  setsockopt(fd, level, option, &value, sizeof value);
}

int32_t port_of(int fd) {
  sockaddr_storage address{};
  socklen_t bytes = sizeof address;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &bytes) != 0) return 0;
  return ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&address)->sin6_port
                                             : reinterpret_cast<sockaddr_in*>(&address)->sin_port);
}

void set_port(sockaddr* address, int32_t port) {
  const auto wire = htons(static_cast<uint16_t>(port));
  if (address->sa_family == AF_INET6)
    reinterpret_cast<sockaddr_in6*>(address)->sin6_port = wire;
  else
    reinterpret_cast<sockaddr_in*>(address)->sin_port = wire;
}

// A descriptor that listens, or -1 with errno. What is accepted takes over TCP_NODELAY: tokens are small and wait for nobody.
int listen_at(const sockaddr* address, socklen_t bytes) {
  const int fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  if (address->sa_family != AF_UNIX) {
    set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  }
  if (address->sa_family == AF_INET6) set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
  if (bind(fd, address, bytes) == 0 && listen(fd, SOMAXCONN) == 0) return fd;
  const int reason = errno;
  close(fd);
  errno = reason;
  return -1;
}

// A name may stand for addresses that this machine does not have, such as ::1 where there is no IPv6.
bool is_of_another_machine(int reason) {
  return reason == EADDRNOTAVAIL || reason == EAFNOSUPPORT;
}

}  // namespace

Status check_host(const std::string& host) {
  if (host.starts_with("unix:")) return ok();
  const Result<Addresses> addresses = resolve(host, 0);
  return addresses ? ok() : addresses.error();
}

Result<ListeningSockets> ListeningSockets::open(const std::string& host, int32_t port) {
  ListeningSockets sockets;
  const bool is_unix = host.starts_with("unix:");
  Status listening = is_unix ? sockets.listen_on_path(host.substr(5)) : sockets.listen_on_name(host, port);
  if (!listening) return listening.error();
  return sockets;
}

ListeningSockets::ListeningSockets(ListeningSockets&& other) noexcept
    : descriptors_(std::exchange(other.descriptors_, {})),
      port_(other.port_),
      path_(std::exchange(other.path_, {})) {}

ListeningSockets::~ListeningSockets() {
  close();
}

void ListeningSockets::close() {
  for (const int fd : std::exchange(descriptors_, {})) ::close(fd);
  if (!path_.empty()) unlink(std::exchange(path_, {}).c_str());
}

Status ListeningSockets::listen_on_path(const std::string& path) {
  if (Status usable = check_socket_path(path); !usable) return usable;
  unlink(path.c_str());  // left behind by a server that is gone, or nothing
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size());
  const int fd = listen_at(reinterpret_cast<const sockaddr*>(&address), sizeof address);
  if (fd < 0)
    return error(Code::kUnavailable, fmt::format("cannot listen on unix:{}: {}", path, std::strerror(errno)));
  descriptors_.push_back(fd);
  path_ = path;
  return ok();
}

Status ListeningSockets::listen_on_name(const std::string& host, int32_t port) {
  const auto cannot = [&](const char* reason) {
    return error(Code::kUnavailable, fmt::format("cannot listen on {}:{}: {}", host, port, reason));
  };
  const Result<Addresses> addresses = resolve(host, port);
  if (!addresses) return addresses.error();
  int reason = EADDRNOTAVAIL;
  for (const addrinfo* a = addresses->get(); a != nullptr; a = a->ai_next) {
    if (port_ != 0) set_port(a->ai_addr, port_);  // one port for all
    const int fd = listen_at(a->ai_addr, a->ai_addrlen);
    if (fd < 0) reason = errno;
    if (fd < 0 && !is_of_another_machine(reason)) return cannot(std::strerror(reason));
    if (fd < 0) continue;
    descriptors_.push_back(fd);
    port_ = port_of(fd);
  }
  return descriptors_.empty() ? cannot(std::strerror(reason)) : ok();
}

}  // namespace quire::server
