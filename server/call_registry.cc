#include "server/call_registry.h"

#include <fmt/format.h>

#include <chrono>
#include <random>

#include "src/base/clock.h"
#include "src/base/threads.h"

namespace quire::server {

CallRegistry::CallRegistry(int64_t watch_interval_ms)
    : watch_interval_ms_(watch_interval_ms), prefix_(fmt::format("q{:08x}", std::random_device{}())) {}

CallRegistry::~CallRegistry() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stopping_changed_.notify_all();
  if (watcher_.joinable()) watcher_.join();
}

Status CallRegistry::start() {
  Result<std::jthread> watcher = start_thread("the watch over stalled calls", [this] { watch(); });
  if (!watcher) return watcher.error();
  watcher_ = std::move(*watcher);
  return ok();
}

bool CallRegistry::add(const std::string& name, const std::shared_ptr<RunningCall>& call) {
  const std::lock_guard lock(mutex_);
  return calls_.emplace(name, call).second;
}

void CallRegistry::finishing(const std::string& name) {
  const std::lock_guard lock(mutex_);
  num_finishing_ += calls_.erase(name);
}

void CallRegistry::finished() {
  const std::lock_guard lock(mutex_);
  --num_finishing_;
}

bool CallRegistry::abort(const std::string& name) {
  std::shared_ptr<RunningCall> call;
  {
    const std::lock_guard lock(mutex_);
    const auto found = calls_.find(name);
    if (found != calls_.end()) call = found->second.lock();
  }
  if (!call) return false;
  call->abort();
  return true;
}

// A call takes its own lock, and takes ours when it ends.
std::vector<std::shared_ptr<RunningCall>> CallRegistry::running() const {
  std::vector<std::shared_ptr<RunningCall>> calls;
  calls.reserve(calls_.size());
  for (const auto& [name, call] : calls_)
    if (auto held = call.lock()) calls.push_back(std::move(held));
  return calls;
}

void CallRegistry::end_all() {
  std::vector<std::shared_ptr<RunningCall>> calls;
  {
    const std::lock_guard lock(mutex_);
    calls = running();
  }
  for (const auto& call : calls) call->end_with_server();
}

size_t CallRegistry::size() const {
  const std::lock_guard lock(mutex_);
  return calls_.size() + num_finishing_;
}

std::string CallRegistry::make_name() {
  const std::lock_guard lock(mutex_);
  return fmt::format("{}-{}", prefix_, ++names_made_);
}

void CallRegistry::watch() {
  const SteadyClock clock;
  std::unique_lock lock(mutex_);
  while (!stopping_changed_.wait_for(lock, std::chrono::milliseconds(watch_interval_ms_),
                                     [this] { return stopping_; })) {
    std::vector<std::shared_ptr<RunningCall>> calls = running();
    lock.unlock();
    for (const auto& call : calls) call->end_if_stalled(clock.now_us());
    calls.clear();
    lock.lock();
  }
}

}  // namespace quire::server
