// One radix tree over tokens for all layers. A node is one block: its tokens (a whole block's, or fewer at
// the end of what a sequence published) under the node of the block before it. The path from a namespace's
// root to a node is the token prefix that the block's K and V depend on.
//
//   root(ns) --[t0..t15]-- block 7 --[t16..t31]-- block 3 --[t32..t36]-- block 9   (partial: never a parent)
//                                 \--[u16..u31]-- block 4
//
// Two ways down. A hash of the whole prefix finds the node of a full block without walking (so the misses of
// a long lookup overlap); tokens and parent confirm it. Where no full block matches, the children of the last
// node, kept in token order, give the one that shares the most tokens: that makes a hit exact to the token,
// and finds duplicates.
//
// Flat: everything about a node lies in arrays indexed by its block id, sized once. Owns no block and counts
// no holder. Engine thread. Invariants: no child's tokens are a prefix of its sibling's; only full blocks
// have children.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "src/base/ids.h"
#include "src/cache/large_vector.h"
#include "src/cache/namespaces.h"

namespace quire {

// A block's node (its id), or a namespace's root (above all block ids).
enum class TreeNode : int32_t { kNone = -1 };
constexpr int32_t value(TreeNode node) {
  return static_cast<int32_t>(node);
}
constexpr TreeNode node_of(BlockId block) {
  return TreeNode{value(block)};
}

class PrefixTree {
 public:
  PrefixTree(int64_t max_blocks, int32_t block_tokens);

  void add_root(NamespaceId ns);
  void remove_root(NamespaceId ns);  // nothing cached under it
  std::optional<TreeNode> root(NamespaceId ns) const;

  // The longest cached prefix of `tokens`: its blocks in order into `path` (cleared first), its tokens as the
  // result. The last block is a partial match where the result is no multiple of block_tokens.
  int32_t match(TreeNode root, std::span<const TokenId> tokens, std::vector<BlockId>& path) const;

  // The child of `parent` that shares the most leading tokens with `tokens` (1 .. block_tokens of them).
  struct Nearest {
    BlockId block = kNoBlock;  // kNoBlock: no child shares a token
    int32_t shared = 0;
  };
  Nearest nearest(TreeNode parent, std::span<const TokenId> tokens) const;

  // `block` joins under `parent`, a root or a full block, with 1 .. block_tokens tokens.
  void insert(TreeNode parent, BlockId block, std::span<const TokenId> tokens);
  void erase(BlockId leaf);

  bool contains(BlockId block) const { return nodes_[value(block)].parent != TreeNode::kNone; }
  bool is_root(TreeNode node) const { return value(node) >= max_blocks_; }
  TreeNode parent(BlockId block) const { return nodes_[value(block)].parent; }
  NamespaceId namespace_of(TreeNode root) const { return root_names_[value(root) - max_blocks_]; }
  int32_t num_children(TreeNode node) const { return node_at(node).num_children; }
  void append_children(TreeNode node, std::vector<BlockId>& out) const;      // in no order
  int32_t depth(BlockId block) const { return nodes_[value(block)].depth; }  // blocks before it
  int32_t num_tokens(BlockId block) const { return nodes_[value(block)].num_tokens; }
  std::span<const TokenId> tokens(BlockId block) const {
    return {&tokens_[static_cast<int64_t>(value(block)) * block_tokens_],
            static_cast<size_t>(num_tokens(block))};
  }
  // Of the namespace and all tokens up to a full block's end.
  uint64_t prefix_hash(BlockId block) const { return nodes_[value(block)].prefix_hash; }
  int64_t size() const { return size_; }

  // Children with something held at or beneath them; kept here, meaning given by KvCache.
  int32_t& num_pinned_children(TreeNode node) { return node_at(node).num_pinned_children; }
  int32_t num_pinned_children(TreeNode node) const { return node_at(node).num_pinned_children; }

  // Recomputes order, counts, hashes and reachability from scratch; the first disagreement.
  std::optional<std::string> audit() const;

 private:
  struct Node {
    TreeNode parent = TreeNode::kNone;
    int32_t children = -1;          // top of the treap of its children, in token order
    int32_t left = -1, right = -1;  // in the treap of its siblings
    int32_t num_children = 0, num_pinned_children = 0;
    int32_t depth = 0, num_tokens = 0;
    uint64_t prefix_hash = 0;  // of namespace and all tokens up to its end
    uint64_t head = 0;         // first two tokens, most of the order without touching tokens_
  };
  Node& node_at(TreeNode node) {
    return is_root(node) ? root_nodes_[value(node) - max_blocks_] : nodes_[value(node)];
  }
  const Node& node_at(TreeNode node) const {
    return is_root(node) ? root_nodes_[value(node) - max_blocks_] : nodes_[value(node)];
  }

  struct Audit {
    int64_t nodes = 0, full_nodes = 0;
    std::vector<int32_t> children, stack;  // scratch
  };
  std::optional<std::string> audit_children(TreeNode parent, Audit& audit) const;
  std::optional<std::string> audit_child(TreeNode parent, int32_t node) const;
  std::optional<std::string> children_in_order(TreeNode parent, Audit& audit) const;

  struct Slot {  // of the hash table
    uint64_t prefix_hash = 0;
    int32_t block = -1;
    TreeNode parent = TreeNode::kNone;  // here too, so that a lookup reads a slot and tokens, and no node
  };
  struct Comparison {
    int32_t shared = 0;  // equal leading tokens
    bool less = false;   // tokens come before the node's
  };
  static uint64_t head_of(std::span<const TokenId> tokens);
  Comparison compare(std::span<const TokenId> tokens, uint64_t head, int32_t node) const;
  void link(TreeNode parent, int32_t node);
  void unlink(TreeNode parent, int32_t node);
  void split(int32_t top, std::span<const TokenId> tokens, uint64_t head, int32_t& below, int32_t& above);
  int32_t join(int32_t below, int32_t above);

  int32_t find_full(uint64_t prefix_hash, TreeNode parent, std::span<const TokenId> tokens) const;
  void index_full(int32_t node);
  void unindex_full(int32_t node);
  size_t home(uint64_t hash) const { return static_cast<size_t>(hash >> 32) & slot_mask_; }
  int32_t match_full(TreeNode& at, std::span<const TokenId> tokens, std::vector<BlockId>& path) const;

  int32_t max_blocks_, block_tokens_;
  LargeVector<Node> nodes_;       // by block
  std::vector<Node> root_nodes_;  // by root number
  LargeVector<TokenId> tokens_;   // [block][block_tokens]
  LargeVector<Slot> slots_;       // open addressing, at most half full
  size_t slot_mask_ = 0;
  std::unordered_map<uint64_t, TreeNode> roots_;
  std::vector<NamespaceId> root_names_;  // by root number
  std::vector<int32_t> free_roots_;      // root numbers to use again
  int64_t size_ = 0;
};

}  // namespace quire
