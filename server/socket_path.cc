#include "server/socket_path.h"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

namespace quire::server {
namespace {

namespace fs = std::filesystem;

bool is_listened_on(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size());
  const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  if (fd < 0) return false;
  const bool answered = connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  close(fd);
  return answered;
}

}  // namespace

Status check_socket_path(const std::string& path) {
  constexpr size_t kMaxBytes = sizeof(sockaddr_un::sun_path) - 1;
  const auto wrong = [&](const std::string& what) {
    return invalid(fmt::format("--host unix:{}: {}", path, what));
  };
  if (path.empty()) return wrong("it has no path; unix:PATH is wanted, for example unix:/run/quire.sock");
  if (path.size() > kMaxBytes)
    return wrong(
        fmt::format("the path has {} bytes; a Unix socket's has at most {}", path.size(), kMaxBytes));
  std::error_code problem;
  const fs::path directory = fs::path(path).has_parent_path() ? fs::path(path).parent_path() : fs::path(".");
  if (!fs::is_directory(directory, problem))
    return wrong(fmt::format("{} is no directory; make it first", directory.string()));
  if (access(directory.c_str(), W_OK | X_OK) != 0)
    return wrong(fmt::format("nothing can be made in {}: {}", directory.string(), std::strerror(errno)));
  const fs::file_status there = fs::symlink_status(path, problem);
  if (there.type() == fs::file_type::not_found) return ok();
  if (there.type() != fs::file_type::socket)
    return wrong(
        "something is there that is no socket; it is left alone, so remove it or choose another path");
  if (is_listened_on(path)) return wrong("another server listens there");
  return ok();  // left behind by one that is gone
}

}  // namespace quire::server
