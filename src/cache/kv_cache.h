// The KV cache as the scheduler sees it: blocks for tokens, shared where prefixes are equal, evicted where
// room is needed. Bookkeeping only; bytes move when an executor carries out the copies a step was given.
// Single-threaded (engine thread), deterministic: no clock inside, time comes in as now_us.
//
// Serves group 0 of its spec: the lists that hold all layers and heads of a group and share prefixes. Lists
// of another shape have a BlockPool of their own over the same arena().
//
// What always holds (by the numbers of src/engine/README.md, Invariants):
//   2  free + held + cached blocks = all
//   4  a prefix hit has equal tokens and an equal namespace
//   6  no block is freed while a submitted step names it, given that callers keep the rules marked [6] below
//   7  a block with more than one holder, or published, is never written: it is copied first (the write rule)
//
// A step:
//   StepTransaction step = cache.begin(now_us);
//   for each sequence: if (!step.extend(table, new_length)) { step.rollback(); preempt one, plan again }
//   step.commit(plan.copies, deferred);        // plan.copies run before anything else of the step
//   ... when that step has run: cache.release_deferred(deferred)
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "quire/result.h"
#include "src/base/block_size.h"
#include "src/base/ids.h"
#include "src/cache/arena.h"
#include "src/cache/block_pool.h"
#include "src/cache/block_table.h"
#include "src/cache/disk_places.h"
#include "src/cache/eviction_index.h"
#include "src/cache/namespaces.h"
#include "src/cache/prefix_tree.h"
#include "src/cache/spec.h"
#include "src/cache/swapped_list.h"
#include "src/cache/tier.h"

namespace quire {

class StepTransaction;

struct CacheCounters {  // since start
  int64_t copies_on_write = 0, evictions = 0, duplicates_merged = 0;
};

class KvCache {
 public:
  // Block ids alone: the memory is the executor's. Errors as validate(spec).
  static Result<std::unique_ptr<KvCache>> create(const CacheSpec& spec,
                                                 EvictionOrder order = EvictionOrder::kLru);
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  // ---- namespaces ----
  // Open one per (model, LoRA, salt, ...) in use; every open has its close.
  NamespaceId open_namespace(const NamespaceKey& key);
  void close_namespace(NamespaceId ns);  // what it cached stays findable until evicted

  // ---- prefixes ----
  // Tokens of the longest cached prefix, exact to the token. Takes nothing.
  int32_t lookup(NamespaceId ns, std::span<const TokenId> tokens) const;
  // The same, for one that waits from now on: what it found was last used now, lest it be evicted meanwhile.
  int32_t await(NamespaceId ns, std::span<const TokenId> tokens, int64_t now_us);
  // The same prefix, at most max_tokens of it, as a table that holds its blocks. Where the hit ends inside a
  // block the last block is shared too: its slots up to length are right, and the first write copies it.
  // Whoever then has no room for the rest gives it back and asks again later: a hit is counted once it is one (count_use).
  BlockTable acquire_prefix(NamespaceId ns, std::span<const TokenId> tokens, int32_t max_tokens,
                            int64_t now_us);
  // What a table begins with of the tree has been of use once more: PGDSF's frequency.
  void count_use(const BlockTable& table, int64_t now_us);
  // Makes the first num_tokens of a table findable. Only blocks that are functions of their tokens
  // (src/policy/README.md, Publishing), only after the step that wrote them is committed. Publish full blocks
  // as they fill (num_tokens rounded down to whole blocks) and the partial tail only at the end: a published tail is copied by the
  // next append. Costs O(log n) per block not yet published, not per token. Where the same tokens are cached already the table adopts
  // that block; the duplicate it held goes to `deferred` [6]. So do those of `forks` that hold the duplicate of a
  // full block in the same place: else it would stay, and they would have blocks of the tree behind others that are not.
  void publish(NamespaceId ns, std::span<const TokenId> tokens, BlockTable& table, int32_t num_tokens,
               const Retention& retention, int64_t now_us, std::vector<BlockId>& deferred,
               std::span<BlockTable* const> forks = {});
  // What is asked for of a prefix that a table has found: said of its last whole block, before which none of the others goes.
  void strengthen(const BlockTable& table, const Retention& retention);

  // ---- tables ----
  BlockTable fork(const BlockTable& table);  // shares every block, the partial tail too
  // Forgets the slots from new_length on. Blocks that leave the table go to `deferred` [6].
  void truncate(BlockTable& table, int32_t new_length, std::vector<BlockId>& deferred);
  // Takes `count` whole blocks from entry `first` on out of the list: a policy has dropped their tokens. The
  // slots behind them move forward; positions stay (next_position). The blocks go to `deferred` [6].
  void drop_blocks(BlockTable& table, int32_t first, int32_t count, std::vector<BlockId>& deferred);
  // Gives all blocks back; those published stay cached. Only when no submitted step names the table [6], and
  // not while an open transaction has extended it. The table is empty afterwards.
  void release(BlockTable&& table, int64_t now_us);
  // The same for the blocks behind the first kept_tokens, a number of whole blocks; the table keeps those before.
  void release_tail(BlockTable& table, int32_t kept_tokens, int64_t now_us);
  // The blocks from token `at` on, which begins one, as a table of their own; and such blocks behind those of a table
  // that ends where they begin.
  BlockTable split(BlockTable& table, int32_t at);
  void join(BlockTable& table, BlockTable&& tail);
  // Ends what commit, publish and truncate deferred, once every step submitted before that moment has run.
  void release_deferred(std::span<const BlockId> blocks);

  // ---- swap ----
  // Finds room for lists that leave together in host memory (CacheSpec::swap_bytes): each of `lists` names
  // where the table of the same index will lie, and `copies` gets what is to be copied there, a block that
  // several tables hold once. The tables stay holders until the copies are made: they run in no order with
  // steps, so that whoever shares a block must not write it meanwhile. False, and nothing changed, where the
  // host has no room.
  bool swap_out(std::span<const BlockTable* const> tables, std::span<SwappedList* const> lists,
                std::vector<TierCopy>& copies);
  // The lists on the device again: first what of each is still where it lay, as it is; then room for the
  // rest, whose bytes are those of `copies`: no step may read or write it before they are there. What lists
  // shared on the host they share again. False where the device has no room: the tables are as they were.
  BlockTable swap_in_what_stayed(const SwappedList& list, int64_t now_us);
  bool swap_in_the_rest(std::span<const SwappedList* const> lists, std::span<BlockTable> tables,
                        int64_t now_us, std::vector<TierCopy>& copies);
  // Blocks that the latter takes.
  static int64_t blocks_to_swap_in(std::span<const SwappedList* const> lists,
                                   std::span<const BlockTable> tables);
  void discard(SwappedList&& list);  // lets go of its host blocks; no copy may be under way from or to them
  const HostPool& swap_pool() const { return swap_pool_; }

  // ---- tiers below (CacheSpec::host_bytes, disk_bytes) ----
  // Each is a cache of its own with the same keys, order and rules: host memory, whose blocks lie behind those
  // for swap, then the disk. Null where there is none.
  CacheTier kind() const { return kind_; }
  const KvCache* below() const { return below_.get(); }
  const KvCache* tier(CacheTier kind) const;
  // Tokens that one of the tiers below finds, of those down to `last`.
  int32_t lookup_below(NamespaceId ns, std::span<const TokenId> tokens, CacheTier last) const;
  // Begins to copy what is cached here of `tokens`, whole blocks, to the first tier below that lacks some; past
  // one that has no room for all that it lacks, straight to the next. Each block that is read counts as deferred
  // until its copy is made [6]; then end_write. At most a sixteenth of the device's blocks, or a quarter of another
  // tier's, are read so at a time: of more than is left of that only the first part, and where nothing is left the prefix is
  // owed: write_owed. Appends a write, or none where there is nothing to copy or the
  // tier below may not be written: a tier that has all of it keeps it as long as `retention` says, if that is longer.
  void write_below(NamespaceId ns, std::span<const TokenId> tokens, const Retention& retention,
                   const TierWritesAllowed& allowed, int64_t now_us, std::vector<TierWrite>& writes);
  // What this tier and those below owe, first come first, as far as may be read now. Of more than a tier has blocks for the oldest
  // are owed no more: they are the first that it has evicted.
  void write_owed(const TierWritesAllowed& allowed, int64_t now_us, std::vector<TierWrite>& writes);
  void forget_owed();
  bool owes_writes() const { return !owed_.empty() || (below_ != nullptr && below_->owes_writes()); }
  // What has arrived is found there from now on. The next write is of what follows it, if that is still here, or
  // takes all that arrived further down.
  void end_write(TierWrite&& write, bool arrived, const TierWritesAllowed& allowed, int64_t now_us,
                 std::vector<TierWrite>& next);
  // Lengthens a table that acquire_prefix gave by what the tiers down to `last` have of `tokens` beyond it, each
  // what those above it lack; except for the bytes of `copies`: no step may read or write them before they are
  // there. Gives what holds the blocks there, for end_read when the copies have ended. Nothing, and the table
  // as it was, where there is no more or no room.
  std::optional<TierRead> read_from_below(NamespaceId ns, std::span<const TokenId> tokens, BlockTable& table,
                                          CacheTier last, int64_t now_us, std::vector<TierCopy>& copies,
                                          std::vector<BlockId>& deferred);
  // The disk's blocks at `corrupt` are found no more, nor those behind them unless another read holds them;
  // their places are free. The number of blocks lost.
  int64_t end_read(TierRead&& read, std::span<const DiskBlockId> corrupt, int64_t now_us);
  // Of the device's cache, before its first use: the disk tier finds again what was stored by another process.
  // The number of blocks found; a block whose parent is not among them is not.
  int64_t restore(std::vector<StoredBlock> stored, int64_t now_us);

  // ---- steps ----
  StepTransaction begin(int64_t now_us);  // one at a time
  // Blocks that extend(table, new_length) would take, the copy of a shared or published tail included.
  int32_t blocks_needed(const BlockTable& table, int32_t new_length) const;
  // That all of them take for a slot each: of those that hold a tail together the last writes in it.
  int64_t blocks_for_next_slots(std::span<const BlockTable* const> tables) const;
  int32_t blocks_for_overwrite(const BlockTable& table) const;  // that overwrite(table) would take
  // That overwriting all of them takes: of those that hold a block together the last writes in it.
  int64_t blocks_for_overwrites(std::span<const BlockTable* const> tables) const;
  // Blocks that can be had now: free and evictable.
  int64_t num_available() const { return num_free() + num_evictable(); }
  // What tables would bring if all of them were released: the blocks that any of them holds, each once, and of these
  // those that could be had at once. Not what others hold, and not what a step or a copy reads, nor what stands before
  // that in the tree: these come when it has ended, and if nobody holds them by then (`read`).
  struct Holding {
    int64_t blocks = 0, freed = 0, read = 0;
  };
  Holding held_by(std::span<const BlockTable* const> tables) const;
  // Whether a step or a copy reads the block, or, of one with one holder, somebody reads or holds what stands beneath it in
  // the tree: that holder gone, it could not be had. Of a table that is to give back one block after the other from its end,
  // up to the first of which this is so: `behind` goes before this one, or kNoBlock.
  bool is_read(BlockId block, BlockId behind) const;

  // ---- figures ----
  int64_t num_blocks() const { return pool_.num_blocks(); }
  int64_t num_free() const { return pool_.num_free(); }
  int64_t num_held() const { return pool_.num_held(); }
  int64_t num_cached() const { return pool_.num_cached(); }  // findable and held by nobody
  // Of these, all that have nothing held beneath them.
  int64_t num_evictable() const { return index_.size(); }
  double waste_percent() const;                                 // slots of held blocks that hold no token
  int64_t num_block_ids() const { return pool_.max_blocks(); }  // every block's id is below
  int32_t num_holders(BlockId block) const { return pool_.num_holders(block); }
  bool is_held(BlockId block) const { return pool_.is_held(block); }  // by a table or a pending read
  bool are_held(std::span<const BlockId> blocks) const { return pool_.are_held(blocks); }
  // Invariant 7, to be asked of every block that a step writes.
  bool may_write(BlockId block) const { return pool_.may_write(block); }
  const CacheCounters& counters() const { return counters_; }
  const CacheSpec& spec() const { return spec_; }
  int32_t block_tokens() const { return block_tokens_; }
  const BlockSize& block_size() const { return size_; }
  Arena& arena() { return arena_; }

  // For EvictionOrder::kOracle: the time at which a prefix (PrefixTree::prefix_hash) will be asked for again.
  // What ends inside a block is never asked for.
  void set_next_use(std::function<double(uint64_t)> next_use);
  // For simulation: asked whenever blocks are to be taken; true = answer that there is no room.
  void set_allocation_fault(std::function<bool()> fault) { allocation_fault_ = std::move(fault); }

  // Recomputes everything from scratch: tree, index, states, and holders against all live tables, deferred
  // blocks and swapped lists. The first disagreement, by name. O(blocks); for tests and --check-invariants.
  std::optional<std::string> audit(std::span<const BlockTable* const> tables,
                                   std::span<const BlockId> deferred,
                                   std::span<const SwappedList* const> swapped = {},
                                   const TierTraffic& traffic = {}) const;

 private:
  friend class StepTransaction;
  // One table's state before an extend, to be put back by a rollback.
  struct Undo {
    BlockTable* table = nullptr;
    int32_t length = 0, next_position = 0, num_blocks = 0;
    int32_t tail_filled = 0;
    BlockId copied = kNoBlock;  // the tail that copy-on-write replaced
    size_t first_replaced = 0,
           num_replaced = 0;  // of replaced_: entries that overwrite() copied, or the list before cut()
    bool cut = false;
  };

  KvCache(const CacheSpec& spec, EvictionOrder order, CacheTier kind, int64_t first_host_block);
  int32_t blocks_for(int32_t tokens) const { return size_.blocks_for(tokens); }
  bool appends_to_shared_tail(const BlockTable& table) const;
  int64_t num_written_by_last(std::vector<BlockId>& shared) const;
  bool is_extended_in_open_step(const BlockTable& table) const;

  bool make_room(int64_t blocks, int64_t now_us);
  bool still_holds(const SwappedBlock& block) const;
  void name_places(const BlockTable& table, const std::function<HostBlockId(BlockId)>& host_of,
                   SwappedList& list);
  void open_again(NamespaceId ns);
  void name_place(BlockId block, TierCopy& copy) const;
  struct Place {  // a tier, and the name of a namespace there
    KvCache* cache = nullptr;
    NamespaceId ns{};
  };
  Place below_of(NamespaceId ns) const { return {below_.get(), names_below_.at(value(ns))}; }
  int64_t blocks_to_read_down() const;
  void owe(NamespaceId ns, std::span<const TokenId> tokens, const Retention& retention);
  int64_t tokens_not_owed(NamespaceId ns, std::span<const TokenId> tokens) const;
  OwedWrite take_owed();
  bool has_all(const Place& to, std::span<const TokenId> wanted, const Retention& retention,
               const TierWritesAllowed& allowed, int64_t now_us, std::vector<TierWrite>& writes);
  void strengthen_cached(BlockId block, const Retention& retention);
  bool take_for(const Place& to, std::span<const TokenId> wanted, int64_t most_blocks, int64_t now_us,
                BlockTable& table);
  void record(const TierWrite& write, NamespaceId ns, int32_t index, int64_t now_us, TierCopy& copy);
  void read_for(TierWrite& write, const Place& to, std::span<const BlockId> blocks, int64_t now_us);
  int32_t length_to_keep(NamespaceId ns, const TierWrite& write) const;
  KvCache& tier_of(const TierRead::Part& part);
  struct Found;
  Found find_below(NamespaceId ns, std::span<const TokenId> tokens, CacheTier last, int32_t here,
                   int64_t now_us);
  int64_t forget(BlockId block);
  struct Restored;
  bool restore_block(const StoredBlock& stored, int64_t now_us, Restored& restored);
  void evict(BlockId leaf, int64_t now_us);
  void detach(BlockId leaf);  // from the tree; it is in the index no more
  void drop_if_unused(NamespaceId ns);

  // Pinned: held, or with something held beneath it in the tree. What is not pinned is in the index.
  bool is_pinned(TreeNode node) const {
    return tree_.is_root(node) || pool_.is_held(BlockId{value(node)}) || tree_.num_pinned_children(node) > 0;
  }
  void retain(BlockId block);
  void unpin_if_let_go(BlockId block);  // after a holder or reader went
  void pinned(BlockId block);
  void unpinned(BlockId block);

  struct Publication;  // the arguments of one publish()
  TreeNode last_published(const Publication& p, int32_t& next_block) const;
  TreeNode publish_block(const Publication& p, TreeNode parent, int32_t index);
  void adopt(const Publication& p, int32_t index, BlockId other);
  void replace(BlockTable& table, int32_t index, BlockId other, std::vector<BlockId>& deferred);
  void supersede(BlockId leaf);

  std::optional<std::string> audit_holders(std::span<const BlockTable* const> tables,
                                           std::span<const BlockId> deferred) const;
  std::optional<std::string> audit_pins() const;
  std::optional<std::string> audit_below(const TierTraffic& traffic) const;

  CacheSpec spec_;
  int32_t block_tokens_;
  BlockSize size_;  // of block_tokens_
  Arena arena_;
  BlockPool pool_;
  HostPool swap_pool_;
  Namespaces namespaces_;
  PrefixTree tree_;
  EvictionIndex index_;
  CacheTier kind_;
  int64_t first_host_block_;  // of the host tier: its first block's HostBlockId
  DiskPlaces places_;         // of the disk tier
  std::unique_ptr<KvCache> below_;
  std::unordered_map<uint64_t, NamespaceId> names_below_;  // of open namespaces: the same in the tier below
  int64_t num_read_down_ = 0;                              // readers of writes to the tier below
  std::deque<OwedWrite> owed_;
  int64_t num_owed_tokens_ = 0;
  CacheCounters counters_;
  mutable std::vector<BlockId> path_;  // scratch of lookups
  std::vector<BlockId> fresh_;         // scratch of extend
  std::vector<Undo> undo_;             // of the open transaction
  std::vector<BlockCopy> copies_;      // of the open transaction
  std::vector<std::pair<int32_t, BlockId>>
      replaced_;  // of the open transaction: entry, and the block that stood there
  bool step_open_ = false;
  std::function<bool()> allocation_fault_;
};

// Blocks for one step: all of them, or none. Move-only; ends by commit or rollback (by the destructor if by
// neither). Tables given to extend stay where they are until then.
class StepTransaction {
 public:
  StepTransaction(StepTransaction&& other) noexcept;
  StepTransaction& operator=(StepTransaction&&) = delete;
  ~StepTransaction();

  // Room for slots length .. new_length - 1, which the step will write: takes blocks, evicting cached leaves
  // as needed, and applies the write rule to the tail. False, with the table as it was, if there is no room;
  // evictions may stay.
  bool extend(BlockTable& table, int32_t new_length);
  // Room for one token that takes a slot in use, which only the executor knows: the write rule on every
  // block. True, or false as extend.
  bool overwrite(BlockTable& table);
  // The list starts again in fresh blocks with `kept` slots, which the executor moves there from the blocks
  // it had, and room up to new_length. Appends the old blocks to `source`, in order. True, or false as
  // extend.
  bool cut(BlockTable& table, int32_t kept, int32_t new_length, std::vector<BlockId>& source);
  // Appends the copies to run first, and the blocks they read: keep those for release_deferred after the step
  // has run.
  void commit(std::vector<BlockCopy>& copies, std::vector<BlockId>& deferred);
  // Every table as it was at begin; evictions may stay.
  void rollback();

 private:
  friend class KvCache;
  StepTransaction(KvCache& cache, int64_t now_us);
  bool take(int32_t blocks);  // into the cache's fresh_
  void remember(BlockTable& table);
  void copy_tail(BlockTable& table, BlockId copy);
  void fill(BlockTable& table, int32_t new_length);
  void put_back_replaced(BlockTable& table, const KvCache::Undo& undo);
  void end();

  KvCache* cache_;
  int64_t now_us_;
};

}  // namespace quire
