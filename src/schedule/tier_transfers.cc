#include "src/schedule/tier_transfers.h"

#include <algorithm>
#include <utility>

#include "src/base/check.h"

namespace quire {
namespace {

constexpr int32_t kMostFailedDiskWrites = 8;  // in a row; then no more are begun

}  // namespace

TierTransfers::TierTransfers(KvCache& cache, const PreemptionCosts& costs)
    : cache_(cache), costs_(costs), disk_rate_(costs) {}

TierTransfers::UnderWay& TierTransfers::begin(std::span<Sequence* const> sequences,
                                              TransferDirection direction, std::vector<TierCopy> copies) {
  UnderWay& transfer = under_way_.emplace_back();
  transfer.id = next_id_++;
  transfer.sequences.assign(sequences.begin(), sequences.end());
  transfer.direction = direction;
  count(direction, copies);
  if (!sequences.empty()) transfer.unwanted = std::stop_source();
  new_.push_back({transfer.id, direction, std::move(copies), transfer.unwanted.get_token()});
  for (Sequence* sequence : sequences) {
    ++sequence->num_in_flight;
    sequence->copying = true;
  }
  return transfer;
}

std::vector<BlockTransfer> TierTransfers::take_new() {
  return std::exchange(new_, {});
}

TierTransfers::Ended TierTransfers::end(const TransferEnd& end, int64_t now_us) {
  const auto ending = std::ranges::find(under_way_, end.id, &UnderWay::id);
  check(ending != under_way_.end(), "a transfer that ends was under way");
  const bool had_begun = is_first(*ending);  // else it was stopped behind another
  UnderWay transfer = std::move(*ending);
  under_way_.erase(ending);
  Ended ended{.sequences = transfer.sequences,
              .direction = transfer.direction,
              .is_fetch = transfer.read.has_value(),
              .is_tail = transfer.is_tail};
  for (BlockTable& source : transfer.sources) cache_.release(std::move(source), now_us);
  if (transfer.read) end_read(transfer, end, now_us, ended);
  if (had_begun) queue_goes_on(queue_of(transfer), now_us);
  if (transfer.write) end_write(std::move(*transfer.write), end.status, now_us);
  for (Sequence* sequence : transfer.sequences) {
    sequence->copying = sequence->tail_comes = false;
    --sequence->num_in_flight;
  }
  return ended;
}

// ---- lists of preempted sequences ----

void TierTransfers::swap_out(std::span<Sequence* const> sequences, std::vector<TierCopy> copies) {
  UnderWay& transfer = begin(sequences, TransferDirection::kToHost, std::move(copies));
  for (Sequence* s : sequences) transfer.sources.push_back(std::move(s->table));
}

void TierTransfers::swap_in(std::span<Sequence* const> sequences, std::vector<TierCopy> copies) {
  begin(sequences, TransferDirection::kToDevice, std::move(copies));
}

// ---- prefixes down ----

// When room is short the device need not wait for a copy.
void TierTransfers::write_behind(NamespaceId ns, std::span<const TokenId> tokens, const Retention& retention,
                                 int64_t now_us) {
  std::vector<TierWrite> writes;
  cache_.write_below(ns, tokens, retention, writes_allowed(), now_us, writes);
  begin_writes(std::move(writes), now_us);
}

void TierTransfers::write_owed(int64_t now_us) {
  if (!cache_.owes_writes()) return;
  std::vector<TierWrite> writes;
  cache_.write_owed(writes_allowed(), now_us, writes);
  begin_writes(std::move(writes), now_us);
}

// Not while swaps under way hold a quarter of the cache (the cache itself sees to the other writes): those blocks are
// nobody's room.
TierWritesAllowed TierTransfers::writes_allowed() const {
  int64_t swapping = 0;
  for (const UnderWay& t : under_way_)
    for (const BlockTable& source : t.sources) swapping += source.num_blocks();
  return {.from_device = !room_is_short_ && 4 * swapping <= cache_.num_blocks(),
          .to_host = !stalls(Queue::kToHost),
          .to_disk = disk_write_error_.empty() && !stalls(Queue::kToDisk)};
}

void TierTransfers::begin_writes(std::vector<TierWrite> writes, int64_t now_us) {
  for (TierWrite& write : writes) begin_write(std::move(write), now_us);
}

void TierTransfers::begin_write(TierWrite&& write, int64_t now_us) {
  const bool to_disk = write.to == CacheTier::kDisk;
  const TransferDirection direction = to_disk ? TransferDirection::kToDisk : TransferDirection::kToHost;
  UnderWay& transfer = begin({}, direction, std::exchange(write.copies, {}));
  transfer.write = std::move(write);
  transfer.started_us = now_us;
  transfer.wait_us = kLongestTierWaitUs;
  transfer.overdue_us = now_us + kLongestTierWaitUs;
}

void TierTransfers::end_write(TierWrite&& write, const Status& status, int64_t now_us) {
  const CacheTier to = write.to;
  if (status)
    counters_of(to).writes += static_cast<int64_t>(write.read.size());
  else
    ++counters_of(to).write_failures;
  if (to == CacheTier::kDisk) {
    disk_writes_failed_ = status ? 0 : disk_writes_failed_ + 1;
    if (disk_writes_failed_ == kMostFailedDiskWrites) disk_write_error_ = status.error().message;
  }
  std::vector<TierWrite> next;
  cache_.end_write(std::move(write), status.has_value(), writes_allowed(), now_us, next);
  begin_writes(std::move(next), now_us);
  write_owed(now_us);
}

// ---- prefixes up ----

double TierTransfers::computed_us(int32_t from, int32_t to) const {
  return recompute_cost_us(costs_, to) - recompute_cost_us(costs_, from);
}

double TierTransfers::copied_us(CacheTier tier, int32_t tokens, int64_t now_us) const {
  const int64_t bytes = tokens * token_bytes();
  return tier == CacheTier::kDisk ? waits_for_disk_us(now_us) + disk_rate_.read_us(bytes)
                                  : swap_cost_us(costs_, bytes) / 2;
}

// Until the reads that have begun are done, by the rate of those before.
double TierTransfers::waits_for_disk_us(int64_t now_us) const {
  double us = 0;
  for (const UnderWay& t : under_way_) {
    if (queue_of(t) != Queue::kFromDisk) continue;
    const auto passed = static_cast<double>(is_first(t) ? now_us - begun_us(t) : 0);
    us += std::max(0.0, disk_rate_.read_us(t.disk_blocks * token_bytes() * cache_.block_tokens()) - passed);
  }
  return us;
}

// How far down it pays to go. The disk's time counts from where the host's prefix ends, if that is used.
std::optional<CacheTier> TierTransfers::worth_fetching_from(const Below& below, int32_t here,
                                                            double others_us, int64_t now_us) {
  std::optional<CacheTier> deepest;
  if (below.on_host > here && copied_us(CacheTier::kHost, below.on_host - here, now_us) <=
                                  others_us + computed_us(here, below.on_host)) {
    deepest = CacheTier::kHost;
    here = below.on_host;
  }
  if (below.anywhere <= here || below.anywhere == below.on_host || stalls(Queue::kFromDisk)) return deepest;
  if (copied_us(CacheTier::kDisk, below.anywhere - here, now_us) <=
      others_us + computed_us(here, below.anywhere))
    return CacheTier::kDisk;
  disk_rate_.passed_over();
  return deepest;
}

// Where computing from the front and copying from the end meet, if that is sooner than either alone by a quarter: so
// where one takes at most three times as long as the other. Of one tier's blocks: where two have some, the faster has
// those before the slower's.
std::optional<TierTransfers::Meeting> TierTransfers::meeting_of(const Below& below, int32_t here,
                                                                int64_t now_us) const {
  constexpr double kWorthwhile = 0.75;
  const bool from_disk = below.on_host <= here;
  if (below.anywhere <= here || (!from_disk && below.on_host != below.anywhere)) return {};
  if (stalls(from_disk ? Queue::kFromDisk : Queue::kFromHost)) return {};
  Meeting meeting{.tier = from_disk ? CacheTier::kDisk : CacheTier::kHost};
  const int32_t end = below.anywhere, block = cache_.block_tokens();
  const auto copied_from = [&](int32_t at) { return copied_us(meeting.tier, end - at, now_us); };
  int32_t before = here / block,
          after = (end - 1) / block;  // of blocks: computing is sooner up to one, not up to the other
  while (after - before > 1) {
    const int32_t middle = before + (after - before) / 2;
    (computed_us(here, middle * block) < copied_from(middle * block) ? before : after) = middle;
  }
  meeting.at = before * block;
  const double alone = std::min(copied_from(here), computed_us(here, end));
  if (meeting.at - here < costs_.least_chunk_tokens || copied_from(meeting.at) > kWorthwhile * alone)
    return {};
  return meeting;
}

std::optional<TierTransfers::Fetch> TierTransfers::fetch(NamespaceId ns, std::span<const TokenId> wanted,
                                                         BlockTable& table, bool time_to_spare,
                                                         int64_t tokens_before, int64_t now_us,
                                                         std::vector<BlockId>& deferred) {
  const Below below{cache_.lookup_below(ns, wanted, CacheTier::kHost),
                    cache_.lookup_below(ns, wanted, CacheTier::kDisk)};
  Fetch fetch{.had_tokens = table.length(), .others_us = others_us(tokens_before)};
  const std::optional<Meeting> meeting =
      time_to_spare ? meeting_of(below, table.length(), now_us) : std::optional<Meeting>();
  const std::optional<CacheTier> deepest =
      meeting ? meeting->tier : worth_fetching_from(below, table.length(), fetch.others_us, now_us);
  if (!deepest) return std::nullopt;
  auto read = cache_.read_from_below(ns, wanted, table, *deepest, now_us, fetch.copies, deferred);
  if (!read) return std::nullopt;
  fetch.read = std::move(*read);
  if (meeting) leave_front(fetch, table, meeting->at, now_us);
  return fetch;
}

// The reader's to compute; a block in which its prefix ends too.
void TierTransfers::leave_front(Fetch& fetch, BlockTable& table, int32_t at, int64_t now_us) {
  const int32_t had = fetch.had_tokens / cache_.block_tokens();
  fetch.tail = cache_.split(table, at);
  fetch.tail_from = at;
  cache_.release_tail(table, had * cache_.block_tokens(), now_us);
  fetch.copies.erase(fetch.copies.begin(), fetch.copies.begin() + (at / cache_.block_tokens() - had));
}

void TierTransfers::start(Fetch fetch, Sequence& s, int64_t now_us) {
  const auto disk_blocks =
      std::ranges::count_if(fetch.copies, [](const TierCopy& c) { return c.disk != kNotOnDisk; });
  Sequence* const reader = &s;
  UnderWay& transfer = begin({&reader, 1}, TransferDirection::kToDevice, std::move(fetch.copies));
  transfer.read = std::move(fetch.read);
  transfer.had_tokens = fetch.had_tokens;
  transfer.disk_blocks = disk_blocks;
  transfer.started_us = now_us;
  int32_t end = s.table.length();
  if (fetch.tail_from > 0) {
    transfer.had_tokens = s.tail_from = fetch.tail_from;
    end = fetch.tail_from + fetch.tail.length();
    s.tail = std::move(fetch.tail);
    s.copying = false;
    transfer.is_tail = s.tail_comes = true;
    ++counters_.met;
  }
  const auto computed = static_cast<int64_t>(fetch.others_us + computed_us(fetch.had_tokens, end));
  transfer.wait_us = std::clamp(computed, kLeastTierWaitUs, kLongestTierWaitUs);
  transfer.overdue_us = now_us + transfer.wait_us;
}

// Of requests that come for the first time: one that was preempted had its prompt counted. One that waited no
// more computed it.
int64_t TierTransfers::count_hits(const UnderWay& transfer) {
  if (transfer.sequences.empty()) return 0;
  if (transfer.sequences.front()->num_preempted > 0) return 0;
  int32_t before = transfer.had_tokens;
  for (const TierRead::Part& part : transfer.read->parts) {
    counters_of(part.tier).hit_tokens += part.table.length() - before;
    before = part.table.length();
  }
  return before - transfer.had_tokens;
}

void TierTransfers::learn_disk_rate(int64_t blocks, int64_t us) {
  disk_rate_.read_took(blocks * token_bytes() * cache_.block_tokens(), us);
}

void TierTransfers::end_read(UnderWay& transfer, const TransferEnd& end, int64_t now_us, Ended& ended) {
  if (end.status) {
    ended.hit_tokens = count_hits(transfer);
    // The end of one that nobody stood waiting for is seen when a step has ended.
    const bool seen_late = transfer.is_tail && !transfer.sequences.empty() &&
                           transfer.sequences.front()->num_computed < transfer.had_tokens;
    if (!seen_late) learn_disk_rate(transfer.disk_blocks, now_us - begun_us(transfer));
  } else if (end.stopped_after) {
    // One that was given up is known to have been slow; one that was cancelled may have had no more than a slow moment.
    if (transfer.was_given_up) learn_disk_rate(*end.stopped_after, now_us - begun_us(transfer));
  } else {
    for (const TierRead::Part& part : transfer.read->parts) ++counters_of(part.tier).read_failures;
  }
  counters_.corrupt_blocks += static_cast<int64_t>(end.corrupt.size());
  ended.blocks_lost = cache_.end_read(std::move(*transfer.read), end.corrupt, now_us);
}

// ---- copies that nobody wants, or that do not return ----

void TierTransfers::stop_unwanted() {
  const auto is_unwanted = [](const Sequence* s) { return s->finished() && s->waiters.empty(); };
  for (UnderWay& t : under_way_)
    if (!t.sequences.empty() && std::ranges::all_of(t.sequences, is_unwanted)) t.unwanted.request_stop();
}

std::vector<Sequence*> TierTransfers::give_up_overdue(int64_t now_us) {
  std::vector<Sequence*> given_up;
  for (UnderWay& t : under_way_) {
    t.is_slow = t.write && now_us - begun_us(t) >= kLongestRoomWaitUs;
    if (now_us < t.overdue_us) continue;
    t.hangs = now_us - begun_us(t) >= kLongestTierWaitUs;
    t.stalls = is_first(t) && now_us - begun_us(t) >= t.wait_us;
    if (std::exchange(t.is_overdue, true)) continue;
    if (!t.read) continue;
    Sequence& s = *t.sequences.front();
    if (t.is_tail) {
      t.sources.push_back(std::move(s.tail));  // what is being written stays held
      s.tail_from = 0;
    } else {
      BlockTable had = cache_.fork(s.table);
      cache_.release_tail(had, t.had_tokens / cache_.block_tokens() * cache_.block_tokens(), now_us);
      t.sources.push_back(std::exchange(s.table, std::move(had)));
    }
    s.copying = s.tail_comes = false;
    --s.num_in_flight;
    t.sequences.clear();
    t.unwanted.request_stop();
    t.was_given_up = !s.finished();
    counters_.waits_given_up += t.was_given_up ? 1 : 0;
    given_up.push_back(&s);
  }
  return given_up;
}

int64_t TierTransfers::next_overdue_us() const {
  int64_t next = kNoDeadline;
  for (const UnderWay& t : under_way_) {
    if (t.write && !t.is_slow && holds_device_blocks(t))
      next = std::min(next, begun_us(t) + kLongestRoomWaitUs);
    else if (!t.is_overdue)
      next = std::min(next, t.overdue_us);
    else if (!t.stalls && is_first(t))
      next = std::min(next, begun_us(t) + t.wait_us);
    else if (!t.hangs)
      next = std::min(next, begun_us(t) + kLongestTierWaitUs);
  }
  return next;
}

bool TierTransfers::may_give_room() const {
  return std::ranges::any_of(under_way_, [&](const UnderWay& t) {
    return (t.is_overdue || t.is_slow) && !t.hangs && holds_device_blocks(t);
  });
}

TierTransfers::Queue TierTransfers::queue_of(const UnderWay& t) {
  if (t.direction != TransferDirection::kToDevice)
    return t.direction == TransferDirection::kToDisk ? Queue::kToDisk : Queue::kToHost;
  return t.disk_blocks > 0 ? Queue::kFromDisk : Queue::kFromHost;
}

int64_t TierTransfers::begun_us(const UnderWay& t) const {
  return std::max(t.started_us, last_end_us_[static_cast<size_t>(queue_of(t))]);
}

bool TierTransfers::is_first(const UnderWay& t) const {
  const auto same = [&](const UnderWay& other) { return queue_of(other) == queue_of(t); };
  return &*std::ranges::find_if(under_way_, same) == &t;
}

// Something of it has ended: the next one's time begins.
void TierTransfers::queue_goes_on(Queue queue, int64_t now_us) {
  last_end_us_[static_cast<size_t>(queue)] = now_us;
  for (UnderWay& t : under_way_) {
    if (queue_of(t) != queue) continue;
    t.is_slow = t.stalls = t.hangs = false;
    if (!t.write) continue;  // a request that has given up does not come back
    t.is_overdue = false;
    t.overdue_us = now_us + t.wait_us;
  }
}

bool TierTransfers::stalls(Queue queue) const {
  return std::ranges::any_of(under_way_, [&](const UnderWay& t) { return t.stalls && queue_of(t) == queue; });
}

// ---- figures ----

int32_t TierTransfers::num_overdue() const {
  return static_cast<int32_t>(std::ranges::count_if(under_way_, &UnderWay::is_overdue));
}

int32_t TierTransfers::num_behind_stalled_disk() const {
  return static_cast<int32_t>(std::ranges::count_if(under_way_, [&](const UnderWay& t) {
    const Queue queue = queue_of(t);
    return (queue == Queue::kFromDisk || queue == Queue::kToDisk) && stalls(queue);
  }));
}

int32_t TierTransfers::num_hanging() const {
  return static_cast<int32_t>(std::ranges::count_if(
      under_way_, [&](const UnderWay& t) { return t.hangs && holds_device_blocks(t); }));
}

bool TierTransfers::some_hang() const {
  return std::ranges::any_of(under_way_, &UnderWay::hangs);
}

void TierTransfers::count(TransferDirection direction, std::span<const TierCopy> copies) {
  for (const TierCopy& copy : copies)
    ++(direction == TransferDirection::kToDevice ? counters_.blocks_to_device
       : copy.device != kNoBlock                 ? counters_.blocks_from_device
                                                 : counters_.blocks_host_to_disk);
}

TierCounters::Tier& TierTransfers::counters_of(CacheTier tier) {
  return tier == CacheTier::kHost ? counters_.host : counters_.disk;
}

bool TierTransfers::holds_device_blocks(const UnderWay& t) const {
  return !t.write || t.write->from == CacheTier::kDevice;
}

int32_t TierTransfers::num_of_device() const {
  return static_cast<int32_t>(std::ranges::count_if(
      under_way_, [&](const UnderWay& t) { return !t.is_overdue && !t.is_slow && holds_device_blocks(t); }));
}

TierTraffic TierTransfers::traffic() const {
  TierTraffic traffic;
  for (const UnderWay& t : under_way_) {
    if (t.write) traffic.writes.push_back(&*t.write);
    if (t.read) traffic.reads.push_back(&*t.read);
  }
  return traffic;
}

void TierTransfers::append_tables(std::vector<const BlockTable*>& tables) const {
  for (const UnderWay& t : under_way_)
    for (const BlockTable& source : t.sources) tables.push_back(&source);
}

void TierTransfers::append_deferred(std::vector<BlockId>& blocks) const {
  for (const UnderWay& t : under_way_)
    if (t.write && holds_device_blocks(t))
      blocks.insert(blocks.end(), t.write->read.begin(), t.write->read.end());
}

}  // namespace quire
