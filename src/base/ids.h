// Ids that cannot be mixed up. Each is an index or a serial number; kNone where there is none.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>

namespace quire {

enum class BlockId : int32_t {};     // physical KV block of one class
enum class SequenceId : uint64_t {};  // one running continuation; never reused
enum class TokenIndex : int32_t {};

inline constexpr BlockId kNoBlock{-1};

constexpr int32_t value(BlockId id) { return static_cast<int32_t>(id); }
constexpr uint64_t value(SequenceId id) { return static_cast<uint64_t>(id); }

using TokenId = int32_t;
// In a plan: the id that the step before sampled for this sequence; it never crosses to the host first.
inline constexpr TokenId kSampledLastStep = -1;

}  // namespace quire
