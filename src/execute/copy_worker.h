// A thread that carries out transfers one after the other, in the order submitted. What was submitted is done
// before it goes.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "src/base/threads.h"
#include "src/execute/transfer_ends.h"

namespace quire {

class CopyWorker {
 public:
  using Work = std::function<TransferEnd(const BlockTransfer&)>;
  CopyWorker(Work work, TransferEnds& ends) : work_(std::move(work)), ends_(ends) {}
  ~CopyWorker() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    submitted_.notify_one();
    if (thread_.joinable()) thread_.join();
  }
  CopyWorker(const CopyWorker&) = delete;
  CopyWorker& operator=(const CopyWorker&) = delete;

  Status start() {  // once, before the first transfer
    Result<std::jthread> thread = start_thread("copies between tiers", [this] { serve(); });
    if (!thread) return thread.error();
    thread_ = std::move(*thread);
    return ok();
  }

  void submit(BlockTransfer transfer) {
    ends_.begin();
    {
      const std::lock_guard lock(mutex_);
      transfers_.push_back(std::move(transfer));
    }
    submitted_.notify_one();
  }

  // Those that nobody wants any more and that it has not begun: they do not stand behind the one that it is at.
  void end_unwanted() {
    std::vector<uint64_t> ids;
    {
      const std::lock_guard lock(mutex_);
      std::erase_if(transfers_, [&](const BlockTransfer& transfer) {
        if (!transfer.unwanted.stop_requested()) return false;
        ids.push_back(transfer.id);
        return true;
      });
    }
    for (const uint64_t id : ids) ends_.push(stopped_transfer(id, 0));
  }

 private:
  void serve() {
    for (;;) {
      BlockTransfer transfer;
      {
        std::unique_lock lock(mutex_);
        submitted_.wait(lock, [this] { return stopping_ || !transfers_.empty(); });
        if (transfers_.empty()) return;
        transfer = std::move(transfers_.front());
        transfers_.pop_front();
      }
      ends_.push(work_(transfer));
    }
  }

  Work work_;
  TransferEnds& ends_;
  std::mutex mutex_;
  std::condition_variable submitted_;
  std::deque<BlockTransfer> transfers_;
  bool stopping_ = false;
  std::jthread thread_;
};

}  // namespace quire
