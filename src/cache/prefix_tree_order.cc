// The children of a node in token order: a treap (Seidel and Aragon 1996) threaded through the nodes
// themselves, so that a root with a million children finds, gains and loses one in O(log n) and no memory is
// allocated. Priorities are a mix of the block id: the same calls build the same tree.
#include <algorithm>

#include "src/cache/hash.h"
#include "src/cache/prefix_tree.h"

namespace quire {
namespace {

uint64_t priority(int32_t node) {
  return mix(kHashSeed, static_cast<uint64_t>(node));
}

}  // namespace

// The first two tokens as one number in token order; a missing one counts as 0.
uint64_t PrefixTree::head_of(std::span<const TokenId> tokens) {
  const uint64_t first = static_cast<uint32_t>(tokens[0]);
  const uint64_t second = tokens.size() > 1 ? static_cast<uint32_t>(tokens[1]) : 0;
  return first << 32 | second;
}

PrefixTree::Comparison PrefixTree::compare(std::span<const TokenId> tokens, uint64_t head,
                                           int32_t node) const {
  const uint64_t other_head = nodes_[node].head;
  if (head >> 32 != other_head >> 32) return {.shared = 0, .less = head < other_head};
  if (head != other_head && tokens.size() > 1 && nodes_[node].num_tokens > 1)
    return {.shared = 1, .less = head < other_head};
  const std::span<const TokenId> other = this->tokens(BlockId{node});
  const size_t common = std::min(tokens.size(), other.size());
  size_t shared = 1;
  while (shared < common && tokens[shared] == other[shared]) ++shared;
  const bool less = shared < common
                        ? static_cast<uint32_t>(tokens[shared]) < static_cast<uint32_t>(other[shared])
                        : tokens.size() < other.size();
  return {.shared = static_cast<int32_t>(shared), .less = less};
}

// Children of `top` that come after `tokens` go to `above`, the others to `below`.
void PrefixTree::split(int32_t top, std::span<const TokenId> tokens, uint64_t head, int32_t& below,
                       int32_t& above) {
  int32_t* below_end = &below;
  int32_t* above_end = &above;
  while (top >= 0) {
    if (compare(tokens, head, top).less) {
      *above_end = top;
      above_end = &nodes_[top].left;
      top = *above_end;
    } else {
      *below_end = top;
      below_end = &nodes_[top].right;
      top = *below_end;
    }
  }
  *below_end = *above_end = -1;
}

int32_t PrefixTree::join(int32_t below, int32_t above) {
  int32_t top = -1;
  int32_t* end = &top;
  while (below >= 0 && above >= 0) {
    if (priority(below) > priority(above)) {
      *end = below;
      end = &nodes_[below].right;
      below = *end;
    } else {
      *end = above;
      end = &nodes_[above].left;
      above = *end;
    }
  }
  *end = below >= 0 ? below : above;
  return top;
}

void PrefixTree::link(TreeNode parent, int32_t node) {
  const std::span<const TokenId> own = tokens(BlockId{node});
  int32_t* place = &node_at(parent).children;
  while (*place >= 0 && priority(*place) > priority(node))
    place = compare(own, nodes_[node].head, *place).less ? &nodes_[*place].left : &nodes_[*place].right;
  const int32_t below_it = *place;
  *place = node;
  split(below_it, own, nodes_[node].head, nodes_[node].left, nodes_[node].right);
}

void PrefixTree::unlink(TreeNode parent, int32_t node) {
  const std::span<const TokenId> own = tokens(BlockId{node});
  int32_t* place = &node_at(parent).children;
  while (*place != node)
    place = compare(own, nodes_[node].head, *place).less ? &nodes_[*place].left : &nodes_[*place].right;
  *place = join(nodes_[node].left, nodes_[node].right);
}

}  // namespace quire
