// Copies between the tiers that have begun and whose end has not been told: lists of preempted sequences on their
// way to the host and back, and prefixes on their way down and up. Each holds what it reads and what it writes;
// one that is a sequence's counts among its submitted steps (num_in_flight). Also what is learnt of the disk on
// the way: how fast it reads, and whether it still takes writes. Engine thread; part of the Scheduler.
//
// A copy that nobody waits for any more ends between two blocks: its requests have ended, or would compute its prefix
// sooner. It may take for ever all the same: an I/O call that does not return. Nobody waits for one that is overdue; what
// it holds stays held until it returns. A mover carries out those of one queue one after the other, so time behind others is no
// sign: only the first of a queue can stall, which is that it takes longer than it may since the one before it ended.
// While it does, no more are put behind it.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "src/cache/kv_cache.h"
#include "src/request/sequence_group.h"
#include "src/schedule/block_transfer.h"
#include "src/schedule/preemption_cost.h"

namespace quire {

struct TierCounters {  // since start
  // Prompt tokens found there, blocks written, copies that failed.
  struct Tier {
    int64_t hit_tokens = 0, writes = 0, write_failures = 0, read_failures = 0;
  };
  Tier host, disk;
  int64_t blocks_from_device = 0, blocks_to_device = 0, blocks_host_to_disk = 0;  // copies begun
  int64_t corrupt_blocks = 0;  // of the disk: not what had been written
  int64_t waits_given_up = 0;  // of requests, for a prefix that did not come in time
  int64_t met = 0;             // prefixes that began to come while what stands before them was computed
};

// A request waits for its prefix as long as computing it would take, after the prompts of those that run; but not less
// and not more than:
inline constexpr int64_t kLeastTierWaitUs = 100'000, kLongestTierWaitUs = 10'000'000;
// The latter, since something of its queue has ended, is also when a copy that no request waits for is overdue, and when
// one that is overdue hangs: till then whoever cannot run without the room that it holds waits for that.

// Whoever can have room from others waits for such a copy so long, since something of its queue has ended: then it is slow.
// With a tenth of it 32 of the first 600 Mooncake requests gave way where 6 do, and the slowest hundredth's later tokens took
// 174 ms each instead of 132 (20 GB of cache, a disk of 1 TB).
inline constexpr int64_t kLongestRoomWaitUs = 1'000'000;

class TierTransfers {
 public:
  TierTransfers(KvCache& cache, const PreemptionCosts& costs);

  // ---- lists of preempted sequences, one or those that go together (KvCache::swap_out, swap_in_the_rest) ----
  // Takes their tables, and holds them.
  void swap_out(std::span<Sequence* const> sequences, std::vector<TierCopy> copies);
  void swap_in(std::span<Sequence* const> sequences, std::vector<TierCopy> copies);

  // ---- prefixes ----
  // While those that run wait for room nothing goes down from the device, nor what follows in parts: what a part holds it
  // holds with all that stands before it.
  void set_room_is_short(bool is_short) { room_is_short_ = is_short; }
  // Ahead of eviction: what is cached of `tokens` goes down, if that may be now.
  void write_behind(NamespaceId ns, std::span<const TokenId> tokens, const Retention& retention,
                    int64_t now_us);
  // Those that could not begin when they were asked for, as far as they may now.
  void write_owed(int64_t now_us);
  // What the tiers below have beyond a table's prefix, where it is there sooner than it would be computed, which waits
  // for the prompts of others: tokens_before; the table
  // has room for it then (KvCache::read_from_below). Where there is time to spare, of which nobody else has use, and the
  // two take about as long, only the tail comes: what stands before it is for the reader to compute meanwhile. To be
  // started.
  struct Fetch {
    TierRead read;
    std::vector<TierCopy> copies;
    int32_t had_tokens = 0;  // of the prefix, before
    double others_us = 0;    // that computing would have waited for
    BlockTable tail;         // of a tail that comes alone, which begins there:
    int32_t tail_from = 0;
  };
  std::optional<Fetch> fetch(NamespaceId ns, std::span<const TokenId> wanted, BlockTable& table,
                             bool time_to_spare, int64_t tokens_before, int64_t now_us,
                             std::vector<BlockId>& deferred);
  void start(Fetch fetch, Sequence& sequence, int64_t now_us);

  // ---- ends ----
  std::vector<BlockTransfer> take_new();  // begun since the last call
  struct Ended {
    std::vector<Sequence*> sequences;  // whose it was, if anybody's
    TransferDirection direction = TransferDirection::kToHost;
    bool is_fetch = false, is_tail = false;
    int64_t hit_tokens = 0;   // of a fetch for a request that came for the first time
    int64_t blocks_lost = 0;  // of a fetch: found no more, since the disk did not have what was written
  };
  // What it held is given back; what has arrived below may go further down, and what follows it may follow.
  Ended end(const TransferEnd& end, int64_t now_us);

  // Copies of requests that have all ended, and for whose prefix nobody else waits.
  void stop_unwanted();

  // Those that wait for copies which are overdue by now: each has the prefix back that it had on the device, and
  // its table no part of the copy. They may have ended meanwhile.
  std::vector<Sequence*> give_up_overdue(int64_t now_us);
  int64_t next_overdue_us() const;  // or hangs; kNoDeadline: none will
  bool may_give_room() const;  // some that hold blocks of the device are overdue or slow, but do not hang yet

  // ---- figures ----
  int32_t size() const { return static_cast<int32_t>(under_way_.size()); }
  int32_t num_overdue() const;
  int32_t num_behind_stalled_disk() const;  // to or from the disk, the one that stalls among them
  int32_t num_hanging() const;              // that hold blocks of the device
  bool some_hang() const;                   // of any kind
  int32_t num_of_device() const;            // that hold blocks of the device and are neither overdue nor slow
  const TierCounters& counters() const { return counters_; }
  // Why the disk tier is written no more; empty while it is.
  const std::string& disk_write_error() const { return disk_write_error_; }
  // For the invariants: all that they hold.
  TierTraffic traffic() const;
  void append_tables(std::vector<const BlockTable*>& tables) const;
  void append_deferred(std::vector<BlockId>& blocks) const;

 private:
  struct UnderWay {
    uint64_t id = 0;
    std::vector<Sequence*> sequences;  // none: a write, of one that may be gone
    TransferDirection direction = TransferDirection::kToHost;
    std::vector<BlockTable> sources;  // swapped out
    std::optional<TierWrite> write;
    std::optional<TierRead> read;
    int32_t had_tokens = 0;   // of the prefix that is read: those before what comes
    bool is_tail = false;     // what stands before it is computed meanwhile
    int64_t disk_blocks = 0;  // read
    int64_t started_us = 0, wait_us = 0, overdue_us = kNoDeadline;  // no wait: it is never overdue
    bool is_overdue = false, is_slow = false, stalls = false, hangs = false;
    bool was_given_up = false;                    // by a request that went on without it
    std::stop_source unwanted{std::nostopstate};  // of what requests wait for
  };
  enum class Queue : uint8_t { kToHost, kFromHost, kFromDisk, kToDisk };  // of the mover
  static Queue queue_of(const UnderWay& transfer);
  // When the mover may have begun with it: nothing of its queue has ended since.
  int64_t begun_us(const UnderWay& transfer) const;
  bool is_first(const UnderWay& transfer) const;  // of its queue
  void queue_goes_on(Queue queue, int64_t now_us);
  UnderWay& begin(std::span<Sequence* const> sequences, TransferDirection direction,
                  std::vector<TierCopy> copies);
  TierWritesAllowed writes_allowed() const;
  void begin_writes(std::vector<TierWrite> writes, int64_t now_us);
  void begin_write(TierWrite&& write, int64_t now_us);
  void end_write(TierWrite&& write, const Status& status, int64_t now_us);
  void end_read(UnderWay& transfer, const TransferEnd& end, int64_t now_us, Ended& ended);
  void learn_disk_rate(int64_t blocks, int64_t us);
  int64_t count_hits(const UnderWay& transfer);
  bool stalls(Queue queue) const;
  double waits_for_disk_us(int64_t now_us) const;
  struct Below {  // tokens of a prefix that are there
    int32_t on_host = 0, anywhere = 0;
  };
  double computed_us(int32_t from, int32_t to) const;
  double others_us(int64_t tokens) const {
    return 1e6 * static_cast<double>(tokens) * costs_.flops_per_token / costs_.flops_per_s;
  }
  double copied_us(CacheTier tier, int32_t tokens, int64_t now_us) const;
  std::optional<CacheTier> worth_fetching_from(const Below& below, int32_t here, double others_us,
                                               int64_t now_us);
  struct Meeting {
    CacheTier tier = CacheTier::kHost;
    int32_t at = 0;  // tokens, whole blocks
  };
  std::optional<Meeting> meeting_of(const Below& below, int32_t here, int64_t now_us) const;
  void leave_front(Fetch& fetch, BlockTable& table, int32_t at, int64_t now_us);
  bool holds_device_blocks(const UnderWay& transfer) const;
  TierCounters::Tier& counters_of(CacheTier tier);
  void count(TransferDirection direction, std::span<const TierCopy> copies);
  int64_t token_bytes() const { return cache_.spec().groups.front().token_bytes(); }

  KvCache& cache_;
  const PreemptionCosts costs_;
  std::vector<UnderWay> under_way_;
  std::vector<BlockTransfer> new_;  // of these, not taken yet
  uint64_t next_id_ = 1;
  bool room_is_short_ = false;
  TierCounters counters_;
  DiskRate disk_rate_;
  std::array<int64_t, 4> last_end_us_{};  // by queue
  int32_t disk_writes_failed_ = 0;        // in a row
  std::string disk_write_error_;
};

}  // namespace quire
