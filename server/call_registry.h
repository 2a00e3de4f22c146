// The calls that run now, by request name: what Abort and the stall watch act on. Any thread.
//
// A watch thread looks at every call a few times per stall limit, so that a reader that stopped reading costs
// no timer per write.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "quire/result.h"

namespace quire::server {

class RunningCall {
 public:
  virtual ~RunningCall() = default;
  // Ends the request; its call finishes with CANCELLED.
  virtual void abort() = 0;
  // The server ends: its call finishes with CANCELLED and a retry delay.
  virtual void end_with_server() = 0;
  // Ends the call when its reader has taken nothing for longer than the limit.
  virtual void end_if_stalled(int64_t now_us) = 0;
};

class CallRegistry {
 public:
  explicit CallRegistry(int64_t watch_interval_ms);
  ~CallRegistry();
  CallRegistry(const CallRegistry&) = delete;
  CallRegistry& operator=(const CallRegistry&) = delete;

  Status start();  // the watch thread; once

  // False if a call of this name runs already.
  bool add(const std::string& name, const std::shared_ptr<RunningCall>& call);
  // The call has its last status: its name is free before its client can have read that, so a retry at once may have it.
  void finishing(const std::string& name);
  // Nothing of it is on its way any more. After finishing().
  void finished();
  // False if no call of this name runs.
  bool abort(const std::string& name);
  void end_all();
  size_t size() const;  // those that run and those that are finishing

  // From here on a request that is cancelled without its client's word ends because the server does.
  void set_draining() { draining_ = true; }
  bool is_draining() const { return draining_; }

  // A name that no client chose: unique within this process, told apart between processes.
  std::string make_name();

 private:
  std::vector<std::shared_ptr<RunningCall>> running() const;  // with mutex_ held; let go of without it
  void watch();

  mutable std::mutex mutex_;
  std::condition_variable stopping_changed_;
  bool stopping_ = false;
  std::atomic<bool> draining_ = false;
  std::map<std::string, std::weak_ptr<RunningCall>> calls_;
  size_t num_finishing_ = 0;
  const int64_t watch_interval_ms_;
  const std::string prefix_;
  uint64_t names_made_ = 0;
  std::jthread watcher_;
};

}  // namespace quire::server
