#include "src/base/threads.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <atomic>
#include <limits>
#include <memory>
#include <string>
#include <system_error>
#include <utility>

#include "src/base/cgroup_limit.h"

namespace quire {
namespace {

std::string limit_of(int resource, const char* name) {
  rlimit limit{};
  if (getrlimit(static_cast<__rlimit_resource>(resource), &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
    return {};
  return fmt::format("; {} is {}", name, limit.rlim_cur);
}

// Those that are set, of what decides whether there may be one more.
std::string limits() {
  constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  const int64_t pids =
      least_cgroup_limit({.controller = "pids", .file = "pids.max", .file_v1 = "pids.max"}, kNone);
  const std::string all = limit_of(RLIMIT_NPROC, "RLIMIT_NPROC (ulimit -u, of all the user's)") +
                          (pids == kNone ? "" : fmt::format("; pids.max of the cgroup is {}", pids)) +
                          limit_of(RLIMIT_AS, "RLIMIT_AS (ulimit -v)");
  return all.empty() ? "; no limit of the process is set" : all;
}

Error refused(std::string_view name, const std::system_error& why) {
  return error(Code::kResourceExhausted,
               fmt::format("the system starts no thread for {}: {}{}", name, why.code().message(), limits()));
}

}  // namespace

Result<std::jthread> start_thread(std::string_view name, std::function<void()> body) {
  try {
    return std::jthread(std::move(body));
  } catch (const std::system_error& why) {
    return refused(name, why);
  }
}

Status check_thread_room(std::string_view name, int32_t count) {
  std::atomic<bool> over = false;
  std::vector<std::jthread> threads;
  const std::shared_ptr<void> let_go(nullptr, [&over](void*) {  // before they are joined, whatever is thrown
    over = true;
    over.notify_all();
  });
  Status room = ok();
  for (int32_t i = 0; room && i < count; ++i) {
    Result<std::jthread> thread =
        start_thread(fmt::format("{} ({} of {})", name, i + 1, count), [&over] { over.wait(false); });
    if (thread)
      threads.push_back(std::move(*thread));
    else
      room = thread.error();
  }
  return room;
}

}  // namespace quire
