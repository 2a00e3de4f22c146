// Which tokens would repeat an n-gram: an index over a growing history, one lookup per step instead of a scan
// of all that came before.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "src/base/ids.h"

namespace quire {

class NgramIndex {
 public:
  explicit NgramIndex(int32_t n) : n_(n) {}
  // history: everything up to and including its last token, which is new.
  void append(std::span<const TokenId> history);
  // Tokens that followed the history's last n - 1 tokens before. May repeat a token.
  std::vector<TokenId> repeats(std::span<const TokenId> history) const;

 private:
  static uint64_t key(std::span<const TokenId> tokens);

  int32_t n_;
  std::unordered_map<uint64_t, std::vector<int32_t>>
      next_at_;  // hash of n - 1 tokens -> where in history their successor stands
};

}  // namespace quire
