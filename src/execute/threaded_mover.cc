#include "src/execute/threaded_mover.h"

#include <algorithm>
#include <array>
#include <span>

#include "src/execute/copy_worker.h"

namespace quire {
namespace {

// The first copies of `copies` that continue each other on both sides, at most so many.
size_t run_length(std::span<const TierCopy> copies, size_t first, size_t most) {
  size_t end = first + 1;
  const auto next = [](const TierCopy& a, const TierCopy& b) {
    return value(b.device) == value(a.device) + 1 && value(b.host) == value(a.host) + 1;
  };
  while (end < copies.size() && end - first < most && next(copies[end - 1], copies[end])) ++end;
  return end - first;
}

// The disk is told so many blocks ahead what will be read out of its order; in order the kernel's own read-ahead
// is faster (benchmarks/disk_io_bench.cc).
constexpr size_t kBlocksAhead = 4;

// What one thread works with.
class BlockCopier {
 public:
  BlockCopier(std::unique_ptr<CopyStream> stream, const MoverMemory& memory, DiskStore* disk)
      : stream_(std::move(stream)), memory_(memory), disk_(disk) {}

  TransferEnd in_memory(const BlockTransfer& transfer) {
    const bool stopped = !copy_in_memory(transfer.copies, transfer);
    stream_->wait();
    return stopped ? stopped_transfer(transfer.id, 0) : TransferEnd{.id = transfer.id};
  }

  // Those from host memory among them too.
  TransferEnd from_disk(const BlockTransfer& transfer) {
    TransferEnd end{.id = transfer.id};
    const auto split =
        std::ranges::find_if(transfer.copies, [](const TierCopy& c) { return c.disk != kNotOnDisk; });
    bool stopped = !copy_in_memory({transfer.copies.begin(), split}, transfer);
    const std::span<const TierCopy> copies(split, transfer.copies.end());
    int64_t num_read = 0;
    for (size_t i = 0; i < kBlocksAhead; ++i) expect(copies, i);
    for (size_t i = 0; !stopped && i < copies.size(); i += batch()) {
      const std::span<const TierCopy> some = copies.subspan(i, std::min(batch(), copies.size() - i));
      for (size_t k = 0; k < some.size(); ++k) {
        if ((stopped = transfer.unwanted.stop_requested())) break;
        expect(copies, i + k + kBlocksAhead);
        read(some[k], staged(some[k], k), end);
        ++num_read;
      }
      if (stopped || memory_.staging == nullptr) continue;
      for (size_t k = 0; k < some.size(); ++k)
        stream_->copy_to_device(arena_at(some[k]), staged(some[k], k), memory_.block_bytes);
      stream_->wait();
    }
    stream_->wait();
    return stopped && end.status ? stopped_transfer(transfer.id, num_read) : end;
  }

  TransferEnd to_disk(const BlockTransfer& transfer) {
    TransferEnd end{.id = transfer.id};
    const std::span<const TierCopy> copies(transfer.copies);
    for (size_t i = 0; end.status && i < copies.size(); i += batch()) {
      const std::span<const TierCopy> some = copies.subspan(i, std::min(batch(), copies.size() - i));
      for (size_t k = 0; memory_.staging != nullptr && k < some.size(); ++k)
        if (some[k].host == kNotOnHost)
          stream_->copy_to_host(staged(some[k], k), arena_at(some[k]), memory_.block_bytes);
      stream_->wait();
      for (size_t k = 0; end.status && k < some.size(); ++k) {
        const char* from = some[k].host == kNotOnHost ? staged(some[k], k) : host_at(some[k]);
        end.status = disk_->write(*some[k].record, from);
      }
    }
    return end;
  }

 private:
  size_t batch() const {
    return memory_.staging == nullptr ? 1 : static_cast<size_t>(memory_.staging_blocks);
  }
  char* arena_at(const TierCopy& c) const { return memory_.arena + value(c.device) * memory_.block_bytes; }
  char* host_at(const TierCopy& c) const { return memory_.host + value(c.host) * memory_.block_bytes; }
  // Where the k-th of a batch lies in host memory on its way: in the device's own if that is the host's.
  char* staged(const TierCopy& c, size_t k) const {
    return memory_.staging == nullptr ? arena_at(c)
                                      : memory_.staging + static_cast<int64_t>(k) * memory_.block_bytes;
  }

  // Queues them; false: it is unwanted, and not all of them are.
  bool copy_in_memory(std::span<const TierCopy> copies, const BlockTransfer& transfer) {
    const auto most = static_cast<size_t>(std::max<int64_t>(1, kMostBytesQueued / memory_.block_bytes));
    size_t queued = 0;
    for (size_t i = 0; i < copies.size();) {
      if (transfer.unwanted.stop_requested()) return false;
      const size_t count = run_length(copies, i, most);
      const auto bytes = static_cast<int64_t>(count) * memory_.block_bytes;
      if (queued + count > most) {
        stream_->wait();
        queued = 0;
      }
      queued += count;
      if (transfer.direction == TransferDirection::kToHost)
        stream_->copy_to_host(host_at(copies[i]), arena_at(copies[i]), bytes);
      else
        stream_->copy_to_device(arena_at(copies[i]), host_at(copies[i]), bytes);
      i += count;
    }
    return true;
  }

  void expect(std::span<const TierCopy> copies, size_t index) {
    if (index >= copies.size()) return;
    const bool follows = index > 0 && value(copies[index].disk) == value(copies[index - 1].disk) + 1;
    if (!follows) disk_->expect(copies[index].disk);
  }

  void read(const TierCopy& copy, char* to, TransferEnd& end) {
    std::string what;
    const DiskStore::Read result = disk_->read(copy.disk, copy.serial, to, what);
    if (result == DiskStore::Read::kOk) return;
    if (result == DiskStore::Read::kCorrupt) end.corrupt.push_back(copy.disk);
    if (end.status) end.status = error(Code::kUnavailable, std::move(what));
  }

  std::unique_ptr<CopyStream> stream_;
  MoverMemory memory_;
  DiskStore* disk_;
};

// What goes up has threads of its own: a request waits for it, and for what goes down nobody or only who needs the room.
class ThreadedMover final : public BlockMover {
 public:
  ThreadedMover(const MakeCopyStream& make_stream, const MoverMemory& memory, std::unique_ptr<DiskStore> disk)
      : disk_(std::move(disk)),
        to_host_(make_worker(make_stream, memory, &BlockCopier::in_memory)),
        from_host_(make_worker(make_stream, memory, &BlockCopier::in_memory)) {
    if (disk_ == nullptr) return;
    reader_ = make_worker(make_stream, memory, &BlockCopier::from_disk);
    MoverMemory of_writer = memory;
    if (memory.staging != nullptr) of_writer.staging += memory.staging_blocks * memory.block_bytes;
    writer_ = make_worker(make_stream, of_writer, &BlockCopier::to_disk);
  }

  Status start() {
    for (CopyWorker* worker : workers()) {
      if (worker == nullptr) continue;
      if (Status started = worker->start(); !started) return started;
    }
    return ok();
  }

  void submit(BlockTransfer transfer) override {
    const auto on_disk = [](const TierCopy& c) { return c.disk != kNotOnDisk; };
    const bool uses_disk = std::ranges::any_of(transfer.copies, on_disk);
    const bool goes_up = transfer.direction == TransferDirection::kToDevice;
    CopyWorker& worker = uses_disk ? (goes_up ? *reader_ : *writer_) : (goes_up ? *from_host_ : *to_host_);
    worker.submit(std::move(transfer));
  }
  void poll(std::vector<TransferEnd>& ends) override {
    for (CopyWorker* worker : workers())
      if (worker != nullptr) worker->end_unwanted();
    ends_.poll(ends);
  }
  void wait() override { ends_.wait(); }
  void set_on_end(std::function<void()> on_end) override { ends_.set_on_end(std::move(on_end)); }

 private:
  std::array<CopyWorker*, 4> workers() const {
    return {to_host_.get(), from_host_.get(), reader_.get(), writer_.get()};
  }
  using Step = TransferEnd (BlockCopier::*)(const BlockTransfer&);
  std::unique_ptr<CopyWorker> make_worker(const MakeCopyStream& make_stream, const MoverMemory& memory,
                                          Step step) {
    auto copier = std::make_shared<BlockCopier>(make_stream(), memory, disk_.get());
    return std::make_unique<CopyWorker>(
        [copier, step](const BlockTransfer& transfer) { return (*copier.*step)(transfer); }, ends_);
  }

  TransferEnds ends_;  // outlives the workers
  std::unique_ptr<DiskStore> disk_;
  std::unique_ptr<CopyWorker> to_host_, from_host_, reader_, writer_;
};

}  // namespace

Result<std::unique_ptr<BlockMover>> make_threaded_mover(const MakeCopyStream& make_stream,
                                                        const MoverMemory& memory,
                                                        std::unique_ptr<DiskStore> disk) {
  auto mover = std::make_unique<ThreadedMover>(make_stream, memory, std::move(disk));
  if (Status started = mover->start(); !started) return started.error();
  return std::unique_ptr<BlockMover>(std::move(mover));
}

}  // namespace quire
