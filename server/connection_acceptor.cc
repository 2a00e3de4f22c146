#include "server/connection_acceptor.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <vector>

#include "src/base/check.h"
#include "src/base/log.h"
#include "src/base/threads.h"

namespace quire::server {
namespace {

// Descriptors for what is opened later: files of the disk tier, event queues, a client's own connections.
constexpr int64_t kOtherDescriptors = 128;
constexpr int kPauseMs = 100;
constexpr int64_t kReportEveryMs = 60'000, kCountEveryMs = 1'000;

int64_t now_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

struct Descriptors {
  int64_t open = 0, connected = 0;  // of the former: sockets with a peer
};

// Without the directory that is read for it.
Descriptors count_descriptors() {
  std::error_code problem;
  Descriptors count{.open = -1};
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd", problem)) {
    sockaddr_storage peer{};
    socklen_t size = sizeof peer;
    const int fd = std::atoi(entry.path().filename().c_str());
    ++count.open;
    if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &size) == 0) ++count.connected;
  }
  return problem ? Descriptors{.open = 64} : count;
}

// How many descriptors the process may have once its limit is raised to `wanted`, where it is lower and may be.
int64_t raise_descriptor_limit(int64_t wanted) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return wanted;
  const auto want = static_cast<rlim_t>(wanted);
  if (limit.rlim_cur < want) {
    limit.rlim_cur = std::min(limit.rlim_max, want);
    setrlimit(RLIMIT_NOFILE, &limit);
  }
  return static_cast<int64_t>(std::min<rlim_t>(limit.rlim_cur, INT32_MAX));
}

}  // namespace

Result<std::unique_ptr<ConnectionAcceptor>> ConnectionAcceptor::start(ListeningSockets sockets,
                                                                      std::unique_ptr<GrpcAcceptor> grpc,
                                                                      int32_t max_connections) {
  std::unique_ptr<ConnectionAcceptor> acceptor(
      new ConnectionAcceptor(std::move(sockets), std::move(grpc), max_connections));
  if (Status started = acceptor->start_thread_of_its_own(); !started) return started.error();
  return acceptor;
}

ConnectionAcceptor::ConnectionAcceptor(ListeningSockets sockets, std::unique_ptr<GrpcAcceptor> grpc,
                                       int32_t max_connections)
    : sockets_(std::move(sockets)), grpc_(std::move(grpc)), connections_(max_connections) {
  const Descriptors now = count_descriptors();
  inherited_ = now.connected;
  const int64_t limit = raise_descriptor_limit(now.open + max_connections + kOtherDescriptors);
  most_descriptors_ = limit - kOtherDescriptors;
  connections_ = static_cast<int32_t>(std::clamp<int64_t>(most_descriptors_ - now.open, 1, max_connections));
  if (connections_ < max_connections)
    log_line(LogLevel::kWarn, "connections_limited",
             {{"max_connections", int64_t{max_connections}},
              {"taken", int64_t{connections_}},
              {"rlimit_nofile", limit}});
  first_refused_fd_ = static_cast<int>(now.open + connections_);
}

ConnectionAcceptor::~ConnectionAcceptor() {
  stop();
  if (stop_event_ >= 0) close(stop_event_);
}

Status ConnectionAcceptor::start_thread_of_its_own() {
  stop_event_ = eventfd(0, EFD_CLOEXEC);
  if (stop_event_ < 0)
    return error(Code::kResourceExhausted,
                 fmt::format("no eventfd for connections: {}", std::strerror(errno)));
  Result<std::jthread> thread = start_thread("connections", [this] { run(); });
  if (!thread) return thread.error();
  thread_ = std::move(*thread);
  return ok();
}

void ConnectionAcceptor::stop() {
  if (!thread_.joinable()) return;
  const uint64_t one = 1;
  check(write(stop_event_, &one, sizeof one) == sizeof one, "the acceptor cannot be woken");
  thread_.join();
  sockets_.close();
}

void ConnectionAcceptor::run() {
  std::vector<pollfd> watched{{.fd = stop_event_, .events = POLLIN, .revents = 0}};
  for (const int fd : sockets_.descriptors()) watched.push_back({.fd = fd, .events = POLLIN, .revents = 0});
  for (;;) {
    if (poll(watched.data(), watched.size(), -1) < 0) {
      wait_out(errno);
      continue;
    }
    if (watched[0].revents != 0) return;
    for (const pollfd& w : watched)
      if (w.revents != 0) take_all(w.fd);
  }
}

void ConnectionAcceptor::take_all(int listening) {
  for (;;) {
    const int fd = accept4(listening, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0 && is_too_many(fd)) {
      refuse(fd);
    } else if (fd >= 0) {
      GrpcAcceptor::NewConnectionParameters connection;
      connection.listener_fd = listening;
      connection.fd = fd;
      grpc_->HandleNewConnection(&connection);
    } else if (errno != EINTR && errno != ECONNABORTED) {
      // No descriptor or no memory: what waits is still there later.
      if (errno != EAGAIN) wait_out(errno);
      return;
    }
  }
}

// The kernel gives the lowest free descriptor, so one of this number or more says that so many are open. Nobody tells when gRPC closes a
// connection, and nobody need. What else is open changes (a model is loaded after the first connection may have come), so that is
// counted again, though not for each of a crowd that comes in vain.
bool ConnectionAcceptor::is_too_many(int fd) {
  if (fd < first_refused_fd_) return false;
  if (now_ms() >= next_count_ms_) {
    next_count_ms_ = now_ms() + kCountEveryMs;
    const Descriptors now = count_descriptors();
    const int64_t own = now.open - now.connected + inherited_;
    // What was opened since takes no connection away, unless there are no more descriptors.
    first_refused_fd_ = static_cast<int>(std::max(own + 1, std::min(own + connections_, most_descriptors_)));
  }
  return fd >= first_refused_fd_;
}

void ConnectionAcceptor::refuse(int fd) {
  close(fd);
  ++refused_;
  if (now_ms() < next_report_ms_) return;
  next_report_ms_ = now_ms() + kReportEveryMs;
  log_line(LogLevel::kWarn, "connection_refused", {{"reason", "max_connections"}, {"refused", refused_}});
}

// What the system refused now (a descriptor, memory) it may give later. To be stopped is not waited out.
void ConnectionAcceptor::wait_out(int reason) {
  if (reason == EINTR) return;
  if (now_ms() >= next_failure_report_ms_) {
    next_failure_report_ms_ = now_ms() + kReportEveryMs;
    log_line(LogLevel::kWarn, "accept_failed", {{"why", std::strerror(reason)}});
  }
  pollfd stop{.fd = stop_event_, .events = POLLIN, .revents = 0};
  if (poll(&stop, 1, kPauseMs) < 0) std::this_thread::sleep_for(std::chrono::milliseconds(kPauseMs));
}

}  // namespace quire::server
