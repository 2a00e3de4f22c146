// The prefix cache's second tier: another KvCache, whose arena is host memory, under the same keys. What a
// sequence leaves behind is copied there ahead of its eviction; a prefix that the device has lost comes back
// from there. A copy under way holds its device blocks as readers and its host blocks by a table.
#include <algorithm>

#include "src/base/check.h"
#include "src/cache/kv_cache.h"

namespace quire {

HostBlockId KvCache::in_host_memory(BlockId tier_block) const {
  return HostBlockId{static_cast<int32_t>(swap_pool_.num_blocks()) + value(tier_block)};
}

int32_t KvCache::lookup_host(NamespaceId ns, std::span<const TokenId> tokens) const {
  return host_ == nullptr ? 0 : host_->lookup(host_names_.at(value(ns)), tokens);
}

// Tokens of the table's first blocks that are the tree's path for them, whole blocks.
int32_t KvCache::published_path(std::span<const TokenId> tokens, const BlockTable& table) const {
  int32_t count = 0;
  for (const BlockId block : table.blocks_) {
    const std::span<const TokenId> rest = tokens.subspan(static_cast<size_t>(count) * block_tokens_);
    const bool whole = rest.size() >= static_cast<size_t>(block_tokens_) && tree_.contains(block) &&
                       tree_.depth(block) == count && tree_.num_tokens(block) == block_tokens_;
    if (!whole || !std::ranges::equal(tree_.tokens(block), rest.first(block_tokens_))) break;
    ++count;
  }
  return count * block_tokens_;
}

std::optional<HostWrite> KvCache::write_to_host(NamespaceId ns, std::span<const TokenId> tokens,
                                                const BlockTable& table, int64_t now_us,
                                                std::vector<TierCopy>& copies) {
  const int32_t whole = published_path(tokens, table);
  if (host_ == nullptr || whole == 0) return std::nullopt;
  HostWrite write;
  write.ns = host_names_.at(value(ns));
  write.tokens.assign(tokens.begin(), tokens.begin() + whole);
  write.table = host_->acquire_prefix(write.ns, write.tokens, whole, now_us);
  const int32_t kept = write.table.length() / block_tokens_;
  std::vector<BlockId> left;
  host_->truncate(write.table, kept * block_tokens_, left);
  host_->release_deferred(left);
  StepTransaction step = host_->begin(now_us);
  const bool grows = kept * block_tokens_ < whole && step.extend(write.table, whole);
  std::vector<BlockCopy> none;
  step.commit(none, left);
  if (!grows) {
    host_->release(std::move(write.table), now_us);
    return std::nullopt;
  }
  for (int32_t i = kept; i < write.table.num_blocks(); ++i) {
    const BlockId block = table.blocks_[i];
    retain(block);
    pool_.holder_to_reader(block);
    copies.push_back({block, in_host_memory(write.table.blocks_[i])});
  }
  host_->namespaces_.open_again(write.ns);
  return write;
}

void KvCache::end_write(HostWrite&& write, bool arrived, const Retention& retention, int64_t now_us) {
  std::vector<BlockId> merged;
  if (arrived)
    host_->publish(write.ns, write.tokens, write.table, write.table.length(), retention, now_us, merged);
  host_->release_deferred(merged);
  host_->release(std::move(write.table), now_us);
  host_->close_namespace(write.ns);
}

std::optional<BlockTable> KvCache::read_from_host(NamespaceId ns, std::span<const TokenId> tokens,
                                                  BlockTable& table, int64_t now_us,
                                                  std::vector<TierCopy>& copies,
                                                  std::vector<BlockId>& deferred) {
  if (host_ == nullptr) return std::nullopt;
  BlockTable host =
      host_->acquire_prefix(host_names_.at(value(ns)), tokens, static_cast<int32_t>(tokens.size()), now_us);
  const int32_t kept = table.length_ / block_tokens_;
  const int64_t missing = host.num_blocks() - kept;
  if (host.length_ <= table.length_ || !make_room(missing, now_us)) {
    host_->release(std::move(host), now_us);
    return std::nullopt;
  }
  truncate(table, kept * block_tokens_, deferred);
  check(pool_.allocate(missing, table.blocks_), "room that was made is there");
  for (int32_t i = kept; i < host.num_blocks(); ++i) {
    pool_.set_filled(table.blocks_[i], std::min(block_tokens_, host.length_ - i * block_tokens_));
    copies.push_back({table.blocks_[i], in_host_memory(host.blocks_[i])});
  }
  table.length_ = table.next_position_ = host.length_;
  return host;
}

void KvCache::end_read(BlockTable&& host, int64_t now_us) {
  host_->release(std::move(host), now_us);
}

}  // namespace quire
