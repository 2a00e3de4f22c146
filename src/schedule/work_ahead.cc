// What stands between a request that has just come and its first token. Rather too little than too much, since a
// deadline is refused by it: what is cached is not computed, what several prompts begin with is computed once, who has
// stepped aside, or has less cached, lets the request pass, nobody takes more than a chunk of a step, and of other
// tenants at its rank nobody knows who comes first.
#include <algorithm>
#include <functional>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "src/schedule/scheduler.h"

namespace quire {
namespace {

// Prompts as paths from one root.
class PromptPaths {
 public:
  // How many of its tokens are on no path that was added before.
  int64_t add(std::span<const TokenId> path) {
    for (size_t at = 0; !path.empty();) {
      const auto [next, is_new] = nodes_[at].children.try_emplace(path.front(), nodes_.size());
      at = next->second;
      if (is_new) {
        nodes_.push_back({path, {}});
        return static_cast<int64_t>(path.size());
      }
      const std::span<const TokenId> run = nodes_[at].run;
      const auto parted = std::mismatch(run.begin(), run.end(), path.begin(), path.end());
      const auto common = static_cast<size_t>(parted.first - run.begin());
      if (common < run.size()) split(at, common);
      path = path.subspan(common);
    }
    return 0;
  }

 private:
  struct Node {
    std::span<const TokenId> run;  // between its parent and where its children part
    std::map<TokenId, size_t> children;
  };
  void split(size_t at, size_t length) {
    Node rest{nodes_[at].run.subspan(length), std::move(nodes_[at].children)};
    nodes_[at].run = nodes_[at].run.first(length);
    nodes_[at].children.clear();
    nodes_[at].children.emplace(rest.run.front(), nodes_.size());
    nodes_.push_back(std::move(rest));
  }
  std::vector<Node> nodes_ = std::vector<Node>(1);
};

struct Ahead {
  const Sequence* sequence = nullptr;
  int32_t computed = 0;  // of its prompt, or cached; and behind that:
  int32_t comes = 0;     // from a tier below
  bool runs = false;
  int64_t tokens = 0;  // that it computes first
};

std::span<const TokenId> prompt_of(const Sequence& s) {
  return {s.tokens.data(), static_cast<size_t>(s.num_prompt_tokens)};
}

// Whoever is first in line, unless it has less cached than one behind it.
bool comes_before(const SequenceGroup& other, const SequenceGroup& group, int32_t block_tokens) {
  const bool stands_in_line = other.state == GroupState::kWaiting && !other.parked && &other != &group;
  if (!stands_in_line || other.looked_up_in == 0) return false;
  if (other.rank() != group.rank()) return other.rank() < group.rank();
  const bool is_overtaken = group.cached_seen >= other.cached_seen + block_tokens;
  return other.tenant == group.tenant && other.order < group.order && !is_overtaken;
}

// What is on several prompts' paths is the first one's to compute; what the request's own begins with is its own.
void share_out(std::vector<Ahead>& all, const SequenceGroup& group) {
  std::map<NamespaceId, PromptPaths> paths;
  if (group.reads_prefix()) paths[group.ns].add(prompt_of(*group.sequences.front()));
  for (const Ahead& a : all)
    if (a.sequence->group->share_prefix)
      paths[a.sequence->group->ns].add(prompt_of(*a.sequence).first(static_cast<size_t>(a.computed)));
  for (Ahead& a : all) {
    const std::span<const TokenId> prompt = prompt_of(*a.sequence);
    const bool shares = a.sequence->group->share_prefix;
    a.tokens =
        shares ? paths[a.sequence->group->ns].add(prompt) : static_cast<int64_t>(prompt.size()) - a.computed;
    a.tokens = std::max<int64_t>(0, a.tokens - a.comes);
  }
}

// Where nobody takes more than a chunk, the request is computed beside all but one of those that fill a step. It is not known
// which: the longest, at worst.
void leave_out_those_beside(std::vector<Ahead>& all, int64_t step_tokens, int64_t chunk_tokens) {
  const auto beside = static_cast<size_t>((step_tokens + chunk_tokens - 1) / chunk_tokens - 1);
  const auto longest = all.begin() + static_cast<ptrdiff_t>(std::min(beside, all.size()));
  std::ranges::partial_sort(all, longest, std::ranges::greater(), &Ahead::tokens);
  std::for_each(all.begin(), longest, [](Ahead& a) { a.tokens = 0; });
}

}  // namespace

// How much of a waiting prompt is cached is known of those that were looked up. While a prefix is on its way to somebody
// others pass.
WorkAhead Scheduler::work_ahead(const SequenceGroup& group) const {
  const Sequence& own = *group.sequences.front();
  const int32_t cached = !group.reads_prefix()
                             ? 0
                             : std::max(cache_.lookup(group.ns, own.tokens),
                                        cache_.lookup_below(group.ns, own.tokens, CacheTier::kDisk));
  WorkAhead work{.own = std::max(1, own.num_prompt_tokens - cached)};
  std::vector<Ahead> all;
  for (const Sequence* r : running_)
    if (!r->group->paused && !r->copying && r->num_planned < r->num_prompt_tokens)
      all.push_back({.sequence = r, .computed = r->num_planned, .comes = r->tail.length(), .runs = true});
  for (const auto& [id, other] : groups_)
    if (comes_before(*other, group, block_tokens_))
      all.push_back({.sequence = other->sequences.front().get(),
                     .computed = std::max(other->cached_seen, other->below_seen)});
  share_out(all, group);
  leave_out_those_beside(all, limits_.max_step_tokens,
                         std::min(limits_.max_prefill_chunk_tokens, limits_.max_step_tokens));
  for (const Ahead& a : all) (a.runs ? work.running : work.waiting) += a.tokens;
  return work;
}

}  // namespace quire
