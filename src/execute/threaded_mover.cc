#include "src/execute/threaded_mover.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "src/base/check.h"

namespace quire {
namespace {

// The first copies of `copies` that continue each other on both sides.
size_t run_length(const std::vector<TierCopy>& copies, size_t first) {
  size_t end = first + 1;
  const auto next = [](const TierCopy& a, const TierCopy& b) {
    return value(b.device) == value(a.device) + 1 && value(b.host) == value(a.host) + 1;
  };
  while (end < copies.size() && next(copies[end - 1], copies[end])) ++end;
  return end - first;
}

class ThreadedMover final : public BlockMover {
 public:
  ThreadedMover(std::unique_ptr<CopyStream> stream, const MoverMemory& memory)
      : stream_(std::move(stream)), memory_(memory), thread_([this] { serve(); }) {}

  ~ThreadedMover() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    submitted_.notify_one();
    thread_.join();
  }

  void submit(BlockTransfer transfer) override {
    {
      const std::lock_guard lock(mutex_);
      transfers_.push_back(std::move(transfer));
      ++num_under_way_;
    }
    submitted_.notify_one();
  }

  void poll(std::vector<TransferEnd>& ends) override {
    const std::lock_guard lock(mutex_);
    num_under_way_ -= ends_.size();
    for (TransferEnd& end : ends_) ends.push_back(std::move(end));
    ends_.clear();
  }

  void wait() override {
    std::unique_lock lock(mutex_);
    check(num_under_way_ > 0, "mover: nothing was submitted");
    ended_.wait(lock, [this] { return !ends_.empty(); });
  }

  void set_on_end(std::function<void()> on_end) override {
    const std::lock_guard lock(mutex_);
    on_end_ = std::move(on_end);
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
      carry_out(transfer);
      end(transfer.id);
    }
  }

  void carry_out(const BlockTransfer& transfer) {
    const std::vector<TierCopy>& copies = transfer.copies;
    for (size_t i = 0; i < copies.size();) {
      const size_t count = run_length(copies, i);
      const auto bytes = static_cast<int64_t>(count) * memory_.block_bytes;
      char* device = memory_.arena + value(copies[i].device) * memory_.block_bytes;
      char* host = memory_.host + value(copies[i].host) * memory_.block_bytes;
      if (transfer.direction == TransferDirection::kToHost)
        stream_->copy_to_host(host, device, bytes);
      else
        stream_->copy_to_device(device, host, bytes);
      i += count;
    }
    stream_->wait();
  }

  void end(uint64_t id) {
    std::function<void()> on_end;
    {
      const std::lock_guard lock(mutex_);
      ends_.push_back({.id = id});
      on_end = on_end_;
    }
    ended_.notify_one();
    if (on_end) on_end();
  }

  std::unique_ptr<CopyStream> stream_;
  const MoverMemory memory_;
  std::mutex mutex_;
  std::condition_variable submitted_, ended_;
  std::deque<BlockTransfer> transfers_;
  std::vector<TransferEnd> ends_;
  size_t num_under_way_ = 0;  // submitted and not polled yet
  std::function<void()> on_end_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<BlockMover> make_threaded_mover(std::unique_ptr<CopyStream> stream,
                                                const MoverMemory& memory) {
  return std::make_unique<ThreadedMover>(std::move(stream), memory);
}

}  // namespace quire
