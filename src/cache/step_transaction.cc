#include <algorithm>
#include <utility>

#include "src/base/check.h"
#include "src/cache/kv_cache.h"

namespace quire {

StepTransaction KvCache::begin(int64_t now_us) {
  return StepTransaction(*this, now_us);
}

bool KvCache::appends_to_shared_tail(const BlockTable& table) const {
  return table.length_ % block_tokens_ != 0 && !pool_.may_write(table.blocks_.back());
}

int32_t KvCache::blocks_needed(const BlockTable& table, int32_t new_length) const {
  if (new_length <= table.length_) return 0;
  return blocks_for(new_length) - table.num_blocks() + (appends_to_shared_tail(table) ? 1 : 0);
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
  const int32_t needed = cache.blocks_needed(table, new_length),
                in_tail = table.length_ % cache.block_tokens_;
  if (needed > 0 && !cache.make_room(needed, now_us_)) return false;
  std::vector<BlockId>& fresh = cache.fresh_;
  fresh.clear();
  check(cache.pool_.allocate(needed, fresh), "room that was made is there");

  cache.undo_.push_back({.table = &table,
                         .length = table.length_,
                         .next_position = table.next_position_,
                         .num_blocks = table.num_blocks(),
                         .tail_filled = in_tail == 0 ? 0 : cache.pool_.filled(table.blocks_.back())});
  auto next = fresh.begin();
  if (cache.appends_to_shared_tail(table)) copy_tail(table, *next++);
  table.blocks_.insert(table.blocks_.end(), next, fresh.end());
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
}

void StepTransaction::fill(BlockTable& table, int32_t new_length) {
  const int32_t block_tokens = cache_->block_tokens_;
  for (int32_t i = table.length_ / block_tokens; i < table.num_blocks(); ++i)
    cache_->pool_.set_filled(table.blocks_[i], std::min(block_tokens, new_length - i * block_tokens));
  table.next_position_ += new_length - table.length_;
  table.length_ = new_length;
}

void StepTransaction::commit(std::vector<BlockCopy>& copies, std::vector<BlockId>& deferred) {
  check(cache_ != nullptr, "a step ends once");
  copies.insert(copies.end(), cache_->copies_.begin(), cache_->copies_.end());
  for (const BlockCopy& copy : cache_->copies_) deferred.push_back(copy.source);
  cache_->counters_.copies_on_write += static_cast<int64_t>(cache_->copies_.size());
  end();
}

void StepTransaction::rollback() {
  check(cache_ != nullptr, "a step ends once");
  BlockPool& pool = cache_->pool_;
  for (auto undo = cache_->undo_.rbegin(); undo != cache_->undo_.rend(); ++undo) {
    BlockTable& table = *undo->table;
    while (table.num_blocks() > undo->num_blocks) {
      pool.release(table.blocks_.back());
      table.blocks_.pop_back();
    }
    if (undo->copied != kNoBlock) {
      pool.release(table.blocks_.back());
      pool.reader_to_holder(undo->copied);
      table.blocks_.back() = undo->copied;
    } else if (undo->length % cache_->block_tokens_ != 0) {
      pool.set_filled(table.blocks_.back(), undo->tail_filled);
    }
    table.length_ = undo->length;
    table.next_position_ = undo->next_position;
  }
  end();
}

void StepTransaction::end() {
  cache_->undo_.clear();
  cache_->copies_.clear();
  cache_->step_open_ = false;
  cache_ = nullptr;
}

}  // namespace quire
