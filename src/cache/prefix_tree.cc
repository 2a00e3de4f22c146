#include "src/cache/prefix_tree.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "src/base/check.h"
#include "src/cache/hash.h"

namespace quire {

PrefixTree::PrefixTree(int64_t max_blocks, int32_t block_tokens)
    : max_blocks_(static_cast<int32_t>(max_blocks)), block_tokens_(block_tokens) {
  check(max_blocks > 0 && max_blocks < (1ll << 30), "the tree's block ids fit 30 bits");
  nodes_.resize(max_blocks);
  tokens_.resize(max_blocks * block_tokens);
  slots_.resize(std::bit_ceil(static_cast<uint64_t>(max_blocks) * 2));
  slot_mask_ = slots_.size() - 1;
}

// ---- roots ----

void PrefixTree::add_root(NamespaceId ns) {
  int32_t number = static_cast<int32_t>(root_names_.size());
  if (free_roots_.empty()) {
    root_names_.push_back(ns);
    root_nodes_.emplace_back();
  } else {
    number = free_roots_.back();
    free_roots_.pop_back();
    root_names_[number] = ns;
  }
  Node& node = root_nodes_[number];
  node = {};
  node.depth = -1;
  node.num_tokens = block_tokens_;
  node.prefix_hash = mix(kHashSeed, value(ns));
  check(roots_.emplace(value(ns), TreeNode{max_blocks_ + number}).second, "a namespace has one root");
}

void PrefixTree::remove_root(NamespaceId ns) {
  const auto found = roots_.find(value(ns));
  check(found != roots_.end() && num_children(found->second) == 0, "a root that goes is empty");
  free_roots_.push_back(value(found->second) - max_blocks_);
  roots_.erase(found);
}

std::optional<TreeNode> PrefixTree::root(NamespaceId ns) const {
  const auto found = roots_.find(value(ns));
  if (found == roots_.end()) return std::nullopt;
  return found->second;
}

// ---- lookup ----

int32_t PrefixTree::match(TreeNode root, std::span<const TokenId> tokens, std::vector<BlockId>& path) const {
  path.clear();
  TreeNode at = root;
  const int32_t matched = match_full(at, tokens, path);
  const std::span<const TokenId> rest = tokens.subspan(matched);
  if (rest.empty()) return matched;
  const Nearest best = nearest(at, rest.first(std::min<size_t>(rest.size(), block_tokens_)));
  if (best.shared > 0) path.push_back(best.block);
  return matched + best.shared;
}

PrefixTree::Nearest PrefixTree::nearest(TreeNode parent, std::span<const TokenId> tokens) const {
  // In token order the nearest child is the one just before or just after, and a search for the place meets
  // both.
  Nearest best;
  const uint64_t head = head_of(tokens);
  for (int32_t node = node_at(parent).children; node >= 0;) {
    const Comparison c = compare(tokens, head, node);
    if (c.shared > best.shared) best = {.block = BlockId{node}, .shared = c.shared};
    node = c.less ? nodes_[node].left : nodes_[node].right;
  }
  return best;
}

void PrefixTree::append_children(TreeNode node, std::vector<BlockId>& out) const {
  const size_t first = out.size();
  if (node_at(node).children >= 0) out.push_back(BlockId{node_at(node).children});
  for (size_t i = first; i < out.size(); ++i)
    for (const int32_t next : {nodes_[value(out[i])].left, nodes_[value(out[i])].right})
      if (next >= 0) out.push_back(BlockId{next});
}

// ---- changes ----

void PrefixTree::insert(TreeNode parent, BlockId block, std::span<const TokenId> tokens) {
  const auto count = static_cast<int32_t>(tokens.size());
  check(count >= 1 && count <= block_tokens_, "a node has 1 to block_tokens tokens");
  check(!contains(block), "a block is one node");
  check(node_at(parent).num_tokens == block_tokens_, "only full blocks have children");
  Node& node = nodes_[value(block)];
  node = {};
  node.parent = parent;
  node.depth = node_at(parent).depth + 1;
  node.num_tokens = count;
  node.head = head_of(tokens);
  std::copy(tokens.begin(), tokens.end(), &tokens_[static_cast<int64_t>(value(block)) * block_tokens_]);
  link(parent, value(block));
  ++node_at(parent).num_children;
  ++size_;
  if (count < block_tokens_) return;
  node.prefix_hash = mix(node_at(parent).prefix_hash, hash_tokens(tokens));
  index_full(value(block));
}

void PrefixTree::erase(BlockId leaf) {
  Node& node = nodes_[value(leaf)];
  check(contains(leaf) && node.num_children == 0, "only leaves leave the tree");
  if (node.num_tokens == block_tokens_) unindex_full(value(leaf));
  unlink(node.parent, value(leaf));
  --node_at(node.parent).num_children;
  node.parent = TreeNode::kNone;
  --size_;
}

// ---- the full blocks' hash table ----

namespace {
// Blocks whose misses overlap. The first few come alone: where nothing of a prompt is cached, which the queue asks of
// everyone who waits at every step, its other hashes need not be known.
constexpr size_t kFirstBatch = 2, kBatch = 128;
}  // namespace

int32_t PrefixTree::find_full(uint64_t prefix_hash, TreeNode parent, std::span<const TokenId> tokens) const {
  for (size_t i = home(prefix_hash); slots_[i].block >= 0; i = (i + 1) & slot_mask_) {
    const Slot& slot = slots_[i];
    if (slot.prefix_hash != prefix_hash || slot.parent != parent) continue;
    const TokenId* own = &tokens_[static_cast<int64_t>(slot.block) * block_tokens_];
    if (std::memcmp(own, tokens.data(), tokens.size_bytes()) == 0) return slot.block;
  }
  return -1;
}

// Follows full blocks down from `at`. Hashes of a batch come first, then its table slots and tokens
// are called for, then they are confirmed in order: at a million blocks nothing is in a cache, and this keeps
// many misses under way.
int32_t PrefixTree::match_full(TreeNode& at, std::span<const TokenId> tokens,
                               std::vector<BlockId>& path) const {
  const size_t num_blocks = tokens.size() / block_tokens_;
  uint64_t prefix_hash = node_at(at).prefix_hash;
  uint64_t hashes[kBatch];
  size_t batch = kFirstBatch;
  for (size_t start = 0; start < num_blocks; start += std::exchange(batch, std::min(2 * batch, kBatch))) {
    const size_t count = std::min(batch, num_blocks - start);
    for (size_t i = 0; i < count; ++i) {
      prefix_hash = mix(prefix_hash, hash_tokens(tokens.subspan((start + i) * block_tokens_, block_tokens_)));
      hashes[i] = prefix_hash;
      __builtin_prefetch(&slots_[home(prefix_hash)]);
    }
    for (size_t i = 0; i < count; ++i) {
      const int32_t guess = slots_[home(hashes[i])].block;
      if (guess < 0) continue;
      __builtin_prefetch(&tokens_[static_cast<int64_t>(guess) * block_tokens_]);
    }
    for (size_t i = 0; i < count; ++i) {
      const int32_t node =
          find_full(hashes[i], at, tokens.subspan((start + i) * block_tokens_, block_tokens_));
      if (node < 0) return static_cast<int32_t>(path.size()) * block_tokens_;
      path.push_back(BlockId{node});
      at = TreeNode{node};
    }
  }
  return static_cast<int32_t>(path.size()) * block_tokens_;
}

void PrefixTree::index_full(int32_t node) {
  const uint64_t hash = nodes_[node].prefix_hash;
  size_t i = home(hash);
  while (slots_[i].block >= 0) i = (i + 1) & slot_mask_;
  slots_[i] = {.prefix_hash = hash, .block = node, .parent = nodes_[node].parent};
}

// Closes the gap by moving back what a search would no longer reach (Knuth, TAOCP 3, 6.4, algorithm R).
void PrefixTree::unindex_full(int32_t node) {
  size_t gap = home(nodes_[node].prefix_hash);
  while (slots_[gap].block != node) gap = (gap + 1) & slot_mask_;
  for (size_t i = (gap + 1) & slot_mask_; slots_[i].block >= 0; i = (i + 1) & slot_mask_) {
    const size_t wanted = home(slots_[i].prefix_hash);
    if (((i - wanted) & slot_mask_) < ((i - gap) & slot_mask_)) continue;
    slots_[gap] = slots_[i];
    gap = i;
  }
  slots_[gap] = {};
}

}  // namespace quire
