#include <algorithm>
#include <iterator>
#include <utility>

#include "src/base/check.h"
#include "src/cache/kv_cache.h"

namespace quire {

StepTransaction KvCache::begin(int64_t now_us) {
  return StepTransaction(*this, now_us);
}

bool KvCache::appends_to_shared_tail(const BlockTable& table) const {
  return size_.offset_of(table.length_) != 0 && !pool_.may_write(table.blocks_.back());
}

int32_t KvCache::blocks_needed(const BlockTable& table, int32_t new_length) const {
  if (new_length <= table.length_) return 0;
  return blocks_for(new_length) - table.num_blocks() + (appends_to_shared_tail(table) ? 1 : 0);
}

int64_t KvCache::blocks_for_next_slots(std::span<const BlockTable* const> tables) const {
  int64_t blocks = 0;
  std::vector<BlockId> shared;
  for (const BlockTable* table : tables) {
    blocks += blocks_needed(*table, table->length_ + 1);
    if (appends_to_shared_tail(*table)) shared.push_back(table->blocks_.back());
  }
  return blocks - num_written_by_last(shared);
}

// Of blocks named once for each holder that writes, those that nobody else holds or may find: the last finds itself alone.
int64_t KvCache::num_written_by_last(std::vector<BlockId>& shared) const {
  int64_t count = 0;
  std::ranges::sort(shared);
  for (auto block = shared.begin(); block != shared.end();) {
    const auto next = std::upper_bound(block, shared.end(), *block);
    count += pool_.num_holders(*block) == next - block && !pool_.is_published(*block) ? 1 : 0;
    block = next;
  }
  return count;
}

int64_t KvCache::blocks_for_overwrites(std::span<const BlockTable* const> tables) const {
  std::vector<BlockId> shared;
  for (const BlockTable* table : tables)
    std::ranges::copy_if(table->blocks_, std::back_inserter(shared),
                         [this](BlockId block) { return !pool_.may_write(block); });
  const auto blocks = static_cast<int64_t>(shared.size());
  return blocks - num_written_by_last(shared);
}

int32_t KvCache::blocks_for_overwrite(const BlockTable& table) const {
  return static_cast<int32_t>(std::count_if(table.blocks_.begin(), table.blocks_.end(),
                                            [this](BlockId block) { return !pool_.may_write(block); }));
}

StepTransaction::StepTransaction(KvCache& cache, int64_t now_us) : cache_(&cache), now_us_(now_us) {
  check(!cache.step_open_, "one step is planned at a time");
  cache.step_open_ = true;
}

StepTransaction::StepTransaction(StepTransaction&& other) noexcept
    : cache_(std::exchange(other.cache_, nullptr)), now_us_(other.now_us_) {}

StepTransaction::~StepTransaction() {
  if (cache_ != nullptr) rollback();
}

bool StepTransaction::extend(BlockTable& table, int32_t new_length) {
  check(cache_ != nullptr, "a step that has ended extends nothing");
  KvCache& cache = *cache_;
  check(new_length >= table.length_, "extend does not shorten a table");
  if (new_length == table.length_) return true;
  const bool copies = cache.appends_to_shared_tail(table);
  const int32_t added = cache.size_.blocks_for(new_length) - table.num_blocks();
  if (added == 0 && !copies) {  // in the tail, as most steps' tokens are
    remember(table);
    cache.pool_.set_filled(table.blocks_.back(), cache.size_.offset_of(new_length - 1) + 1);
    table.lengthen(new_length);
    return true;
  }
  if (!take(added + (copies ? 1 : 0))) return false;
  remember(table);
  auto next = cache.fresh_.begin();
  if (copies) copy_tail(table, *next++);
  table.blocks_.insert(table.blocks_.end(), next, cache.fresh_.end());
  fill(table, new_length);
  return true;
}

bool StepTransaction::take(int32_t blocks) {
  cache_->fresh_.clear();
  if (blocks == 0) return true;
  if (!cache_->make_room(blocks, now_us_)) return false;
  check(cache_->pool_.allocate(blocks, cache_->fresh_), "room that was made is there");
  return true;
}

void StepTransaction::remember(BlockTable& table) {
  const bool in_tail = cache_->size_.offset_of(table.length_) != 0;
  KvCache::Undo& undo = cache_->undo_.emplace_back();
  undo.table = &table;
  undo.length = table.length_;
  undo.next_position = table.next_position_;
  undo.num_blocks = table.num_blocks();
  undo.tail_filled = in_tail ? cache_->pool_.filled(table.blocks_.back()) : 0;
  undo.first_replaced = cache_->replaced_.size();
}

bool StepTransaction::overwrite(BlockTable& table) {
  check(cache_ != nullptr && table.length_ > 0, "a step under way overwrites a slot of a list that has some");
  KvCache& cache = *cache_;
  if (!take(cache.blocks_for_overwrite(table))) return false;
  remember(table);
  auto next = cache.fresh_.begin();
  for (int32_t i = 0; i < table.num_blocks(); ++i) {
    BlockId& entry = table.blocks_[i];
    if (cache.pool_.may_write(entry)) continue;
    cache.pool_.holder_to_reader(entry);
    cache.copies_.push_back({.source = entry, .target = *next});
    cache.pool_.set_filled(*next, std::min(cache.block_tokens_, table.length_ - i * cache.block_tokens_));
    cache.replaced_.emplace_back(i, std::exchange(entry, *next++));
    table.changed_from(i);
    ++cache.undo_.back().num_replaced;
  }
  ++table.next_position_;
  return true;
}

bool StepTransaction::cut(BlockTable& table, int32_t kept, int32_t new_length, std::vector<BlockId>& source) {
  check(cache_ != nullptr && kept <= table.length_ && kept <= new_length,
        "a cut keeps slots that the list has");
  KvCache& cache = *cache_;
  if (!take(cache.blocks_for(new_length))) return false;
  remember(table);
  cache.undo_.back().cut = true;
  for (const BlockId block : table.blocks_) {
    cache.pool_.holder_to_reader(block);
    cache.replaced_.emplace_back(0, block);
    source.push_back(block);
  }
  cache.undo_.back().num_replaced = table.blocks_.size();
  table.blocks_ = cache.fresh_;
  table.changed_from(0);
  table.length_ = 0;
  table.next_position_ -= kept;  // fill counts the kept slots as new
  fill(table, new_length);
  return true;
}

// The write rule. The table leaves the old block, which stays until the step that copies it has run.
void StepTransaction::copy_tail(BlockTable& table, BlockId copy) {
  const BlockId shared = table.blocks_.back();
  cache_->pool_.holder_to_reader(shared);
  cache_->undo_.back().copied = shared;
  cache_->copies_.push_back({.source = shared, .target = copy});
  table.blocks_.back() = copy;
  table.changed_from(table.num_blocks() - 1);
}

void StepTransaction::fill(BlockTable& table, int32_t new_length) {
  const BlockSize& size = cache_->size_;
  for (int32_t i = size.block_of(table.length_); i < table.num_blocks(); ++i)
    cache_->pool_.set_filled(table.blocks_[i], std::min(size.tokens(), new_length - size.first_slot(i)));
  table.lengthen(new_length);
}

void StepTransaction::commit(std::vector<BlockCopy>& copies, std::vector<BlockId>& deferred) {
  check(cache_ != nullptr, "a step ends once");
  copies.insert(copies.end(), cache_->copies_.begin(), cache_->copies_.end());
  for (const BlockCopy& copy : cache_->copies_) deferred.push_back(copy.source);
  for (const KvCache::Undo& undo : cache_->undo_)
    for (size_t i = 0; undo.cut && i < undo.num_replaced; ++i)
      deferred.push_back(cache_->replaced_[undo.first_replaced + i].second);
  cache_->counters_.copies_on_write += static_cast<int64_t>(cache_->copies_.size());
  end();
}

void StepTransaction::rollback() {
  check(cache_ != nullptr, "a step ends once");
  BlockPool& pool = cache_->pool_;
  for (auto undo = cache_->undo_.rbegin(); undo != cache_->undo_.rend(); ++undo) {
    BlockTable& table = *undo->table;
    put_back_replaced(table, *undo);
    while (table.num_blocks() > undo->num_blocks) {
      pool.release(table.blocks_.back());
      table.blocks_.pop_back();
    }
    if (undo->copied != kNoBlock) {
      pool.release(table.blocks_.back());
      pool.reader_to_holder(undo->copied);
      table.blocks_.back() = undo->copied;
    } else if (undo->length % cache_->block_tokens_ != 0 && undo->num_replaced == 0) {
      pool.set_filled(table.blocks_.back(), undo->tail_filled);
    }
    table.length_ = undo->length;
    table.next_position_ = undo->next_position;
  }
  end();
}

// What overwrite or cut put in the place of the table's blocks goes; those come back.
void StepTransaction::put_back_replaced(BlockTable& table, const KvCache::Undo& undo) {
  BlockPool& pool = cache_->pool_;
  if (undo.cut) {
    for (const BlockId fresh : table.blocks_) pool.release(fresh);
    table.blocks_.assign(undo.num_replaced, kNoBlock);
  }
  for (size_t i = 0; i < undo.num_replaced; ++i) {
    const auto& [entry, block] = cache_->replaced_[undo.first_replaced + i];
    const size_t at = undo.cut ? i : static_cast<size_t>(entry);
    if (!undo.cut) pool.release(table.blocks_[at]);
    pool.reader_to_holder(block);
    table.blocks_[at] = block;
  }
}

void StepTransaction::end() {
  cache_->undo_.clear();
  cache_->replaced_.clear();
  cache_->copies_.clear();
  cache_->step_open_ = false;
  cache_ = nullptr;
}

}  // namespace quire
