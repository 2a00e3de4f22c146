// A plain model of a device and of the sequences on it, for random tests of the cache. What a slot holds is
// written as a number that stands for its K and V: a hash of the namespace and of all tokens up to it. So any
// wrong sharing, missing copy or early free shows as a wrong number in some sequence's list.
#pragma once

#include <algorithm>
#include <deque>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "src/base/random.h"
#include "src/cache/hash.h"
#include "src/cache/kv_cache.h"

namespace quire {

struct ModelSequence {
  int32_t ns = 0;               // index into CacheModel::namespaces
  std::vector<TokenId> tokens;  // prompt, and what was generated
  BlockTable table;             // its first length() tokens are computed
  int64_t last_step = -1;       // the last submitted step that names it
  std::vector<BlockId> taken;   // the table's blocks at its last taken()
};

struct SubmittedStep {
  int64_t number = 0;
  std::set<BlockId> named;        // by tables and copies
  std::vector<BlockId> deferred;  // to give back once it has run
};

class CacheModel {
 public:
  CacheModel(uint64_t seed, int32_t num_blocks, int32_t block_tokens, EvictionOrder order);

  // One random operation; then everything is checked. What is wrong, if anything.
  std::optional<std::string> step();
  const KvCache& cache() const { return *cache_; }
  int64_t num_hits() const { return num_hits_; }
  int64_t num_refused() const { return num_refused_; }

 private:
  struct Published {
    int32_t ns = 0;
    std::vector<TokenId> tokens;
  };
  void start();
  void run_step(bool commit);
  void fork();
  void truncate();
  void finish();
  void give_back_tail(BlockTable& table);
  void publish();
  void retire();

  std::vector<TokenId> random_prompt();
  uint64_t content(const ModelSequence& sequence, int32_t slot_end) const;
  void check_lookup(int32_t ns, const std::vector<TokenId>& tokens, int32_t hit);
  void execute(const std::vector<BlockCopy>& copies,
               const std::vector<std::pair<ModelSequence*, int32_t>>& extended);
  std::optional<std::string> check_all();
  std::optional<std::string> check_contents() const;
  std::vector<BlockId>& deferred_now();
  bool is_named(const ModelSequence& sequence) const;
  ModelSequence& any() { return sequences_[random_.below(sequences_.size())]; }
  void fail(std::string what) { wrong_ = wrong_ ? wrong_ : std::move(what); }

  Random random_;
  int32_t block_tokens_;
  int64_t num_blocks_;
  std::unique_ptr<KvCache> cache_;
  std::vector<NamespaceId> namespaces_;
  std::deque<ModelSequence> sequences_;
  std::deque<SubmittedStep> submitted_;
  std::vector<BlockId> idle_deferred_;         // deferred while nothing is submitted
  std::vector<std::vector<uint64_t>> memory_;  // [block][slot]
  std::vector<Published> published_;
  std::optional<std::string> wrong_;
  bool starved_ = false;  // an extend was refused: a sequence ends before the next operation
  int64_t now_us_ = 0, num_steps_ = 0, num_hits_ = 0, num_refused_ = 0;
};

}  // namespace quire
