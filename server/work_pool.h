// A few threads of our own for texts: rendering, tokenising and detokenising take a second for 4 MB, and gRPC's threads, which also
// answer health checks and write every stream, are two on a small machine. Work waits in a bounded queue, oldest first; the first
// thread takes none that is long, so that a few long texts do not hold up the short ones. Any thread may submit.
//
// Tokenising takes about 120 bytes of memory for each byte that is read at once, in pieces of which the allocator keeps most when they are
// freed: a text of 4 MB that could not be read in parts (Tokenizer::reads_in_parts) left 500 MB behind. So when the last of the large
// texts is done its thread has the freed memory given back.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "quire/result.h"

namespace quire::server {

struct WorkPoolOptions {
  int32_t threads = 0;  // 0 = a quarter of the cores, from 2 to 8
  int32_t max_queued = 1024;
  int64_t max_queued_bytes = 64 << 20;
};

struct WorkPoolStats {
  int64_t waiting = 0;  // without those that run
  int64_t refused_total = 0;
};

class WorkPool {
 public:
  explicit WorkPool(const WorkPoolOptions& options) : options_(options) {}
  ~WorkPool();  // runs what still waits
  WorkPool(const WorkPool&) = delete;
  WorkPool& operator=(const WorkPool&) = delete;

  Status start();  // once, before the first work
  // `text_bytes`: of the text that `work` is about. kResourceExhausted, with a delay to retry after, when the
  // queue is full.
  Status submit(int64_t text_bytes, std::function<void()> work);
  WorkPoolStats stats() const;
  size_t num_queued() const;
  size_t num_unfinished() const;  // those that wait and those that run
  int32_t num_threads() const { return static_cast<int32_t>(threads_.size()); }

 private:
  struct Item {
    int64_t text_bytes = 0;
    std::function<void()> work;
  };
  std::deque<Item>::iterator next_for(bool takes_long);  // with mutex_ held
  void run(bool takes_long);
  // With mutex_ held.
  std::optional<std::string> what_is_full(int64_t text_bytes) const;
  Error refuse(std::string message);
  bool should_trim();

  const WorkPoolOptions options_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Item> queue_;
  int64_t queued_bytes_ = 0, refused_total_ = 0;
  double us_per_byte_ = 0.5;  // of late; at first what a slow tokenizer takes
  bool stopping_ = false;
  size_t num_running_ = 0;
  int32_t num_large_running_ = 0;
  bool trim_wanted_ = false;
  std::vector<std::jthread> threads_;
};

}  // namespace quire::server
