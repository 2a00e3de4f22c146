// Cascade: blocks that lists of several one-row sequences share, read once for all of them
// (AttentionParams::prefixes).
#pragma once

#include <cstdint>

namespace quire {

// A node is a run of whole blocks that its member sequences hold at the same slots. The nodes of one sequence
// cover its slots [0, private_start) without overlap; a tree of prefixes gives a sequence one node for each
// ancestor. Lists stay complete: a back end may ignore nodes and read every list by itself. Members see all
// their slots (no window, no q_sink) and one list serves all their heads; other sequences of the call may be
// what they like.
//
// num_nodes and num_members say how much room the arrays have: nodes past the last have no members. They and
// num_splits decide launches, the arrays' contents do not, so a captured graph serves every batch that fits.
struct SharedPrefixes {
  int32_t num_nodes = 0;                // 0: nothing is shared, all pointers null
  int32_t num_members = 0;              // over all nodes
  int32_t num_splits = 0;               // parts that every node is cut in, as Kernels::prefix_splits() chose
  const int32_t* node_slots = nullptr;  // [num_nodes, 2] first slot and end, multiples of block_tokens
  const int32_t* node_sequence_start = nullptr;    // [num_nodes + 1] into node_sequences
  const int32_t* node_sequences = nullptr;         // [num_members] sequences of one row each
  const int32_t* sequence_member_start = nullptr;  // [num_sequences + 1] into sequence_members
  const int32_t* sequence_members = nullptr;  // [num_members] of each sequence, its places in node_sequences
  const int32_t* private_start =
      nullptr;  // [num_sequences] 0 where a sequence shares nothing; below its length
};

// What is really shared in a step, for the choice of num_splits.
struct PrefixCounts {
  int32_t num_nodes = 0, num_members = 0;
  int32_t member_room = 0;  // SharedPrefixes::num_members: at least num_members
  int32_t max_slots = 0;    // of the longest node
};

}  // namespace quire
