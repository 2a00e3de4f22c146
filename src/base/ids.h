// Ids of blocks and sequences, which cannot be mixed up; kNoBlock where there is none. A token's id is a plain number.
#pragma once

#include <cstdint>

namespace quire {

enum class BlockId : int32_t {};      // physical KV block of one class
enum class SequenceId : uint64_t {};  // one running continuation; never reused

inline constexpr BlockId kNoBlock{-1};

// A whole-block copy: the target takes the source's bytes for all layers of its group.
struct BlockCopy {
  BlockId source = kNoBlock, target = kNoBlock;
};

constexpr int32_t value(BlockId id) {
  return static_cast<int32_t>(id);
}
constexpr uint64_t value(SequenceId id) {
  return static_cast<uint64_t>(id);
}

using TokenId = int32_t;
// In a plan: the id that the step before sampled for this sequence; it never crosses to the host first.
inline constexpr TokenId kSampledLastStep = -1;

}  // namespace quire
