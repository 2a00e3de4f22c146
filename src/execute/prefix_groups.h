// Which decoding sequences of a step hold the same blocks, as a tree of prefixes, for attention that reads a
// shared block once for all of them (kernels/shared_prefixes.h). Found from the block tables alone: sharing
// comes from the prefix tree, from parallel samples and from duplicates that were merged, and looks the same
// here.
//
// The sequences are kept in the order of their tables, each with the number of blocks that it shares with the
// one before it. That is the whole tree: a node is a run of neighbours that share more than those around
// them. From step to step the order stays; a sequence that comes, or whose table changed where it matters
// (PlannedSequence::num_unchanged_blocks), is placed by a binary search. So a step costs one pass over its
// sequences, and a table is read only when its sequence comes. Executor thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/shared_prefixes.h"
#include "src/schedule/batch_plan.h"

namespace quire {

// When reading together is worth it.
struct CascadeRule {
  int32_t block_tokens = 16;
  // K and V bytes of a token in one layer.
  int64_t token_bytes = 0;
  // What lists share and read one by one comes from L2, so many times as fast as from memory (H100: 10 TB/s, where memory
  // gives 3.1). One by one, all lists take as long as that share of their bytes from memory would; with nodes, as long as
  // their different bytes.
  int32_t cache_speedup = 3;
  // A step's nodes must save the time of so many bytes from memory in each layer, or the step has none: the second kernel of
  // a layer costs 4 to 5 us, in which a card of 3 TB/s reads 16 MB. 0: whatever they save; below: never.
  int64_t least_saved_bytes = 16 << 20;
  // A node must save so many tokens' reads for each of its members: what the member writes and reads in
  // partial results (head_dim + 4 floats a query head, twice, in two parts) is what 16 tokens of K and V are
  // at four query heads a KV head.
  int32_t member_tokens = 16;
};

// The most that a step's arrays hold, for so many sequences.
inline int32_t prefix_node_room(int32_t sequences) {
  return sequences < 32 ? 4 : sequences / 8;
}
inline int32_t prefix_member_room(int32_t sequences) {
  return 2 * sequences;
}

class PrefixGroups {
 public:
  explicit PrefixGroups(const CascadeRule& rule) : rule_(rule) {}

  // Takes in every plan, in order, and finds its nodes. Sequences of several rows or under a KV policy have
  // none.
  void follow(const BatchPlan& plan);

  // Of the plan followed last; host pointers into this object. num_splits is not decided here.
  bool empty() const { return counts_.num_nodes == 0 || !pays_; }
  SharedPrefixes arrays() const;
  const PrefixCounts& counts() const { return counts_; }
  // Tokens whose K and V are read once less, over all nodes and members.
  int64_t saved_tokens() const { return saved_tokens_; }

 private:
  struct Entry {
    uint64_t id = 0;
    int32_t index = 0;   // in the plan
    int32_t shared = 0;  // first blocks that are also the entry's before
  };
  bool same_as_before(const BatchPlan& plan) const;
  void drop_absent_and_changed(const BatchPlan& plan);
  void place_new(const BatchPlan& plan);
  void place(const BatchPlan& plan, int32_t index);
  void note_depths(const BatchPlan& plan);
  void find_nodes(int32_t num_sequences);
  void add_nodes(size_t begin, size_t end, int32_t covered);
  bool pays(const BatchPlan& plan) const;
  bool is_worth(int64_t members, int32_t blocks) const;
  void add_node(size_t begin, size_t end, int32_t from, int32_t to);
  void index_members();
  void clear_nodes(int32_t num_sequences);

  CascadeRule rule_;
  std::vector<Entry> order_;                         // sequences that take part, by table
  std::vector<std::pair<uint64_t, int32_t>> by_id_;  // of the plan's, sorted; scratch
  std::vector<bool> placed_;                         // by index in the plan; scratch
  std::vector<uint64_t> ids_;                        // by index in the plan before: who took part, or kNobody
  std::vector<int32_t> depth_;                       // by index: blocks shared with either neighbour
  std::vector<int32_t> next_place_;                  // scratch

  PrefixCounts counts_;
  int64_t saved_tokens_ = 0;
  bool pays_ = false;
  std::vector<int32_t> node_slots_, node_sequence_start_, node_sequences_, sequence_member_start_,
      sequence_members_, private_start_;
};

}  // namespace quire
