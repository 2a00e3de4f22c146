// 64-bit mixing for finding and for checksums, never for deciding: whatever a hash finds is confirmed by tokens
// or by a whole key. Multiply to 128 bits and fold, the step that wyhash is made of.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace quire {

inline constexpr uint64_t kHashSeed = 0x9E3779B97F4A7C15ull;

inline uint64_t mix(uint64_t a, uint64_t b) {
  const auto product =
      static_cast<unsigned __int128>(a ^ 0xA0761D6478BD642Full) * (b ^ 0xE7037ED1A0B428DBull);
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

// Of any bytes, their number included; the same on every little-endian machine. Eight chains, so that the
// multiplications overlap.
inline uint64_t hash_bytes(std::span<const std::byte> bytes) {
  constexpr size_t kLanes = 8;
  uint64_t lanes[kLanes];
  for (size_t i = 0; i < kLanes; ++i) lanes[i] = kHashSeed + i;
  const auto mix_in = [&bytes](uint64_t& lane, size_t at, size_t count) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, count);
    lane = mix(lane, word);
  };
  constexpr size_t kWord = sizeof(uint64_t);
  size_t at = 0;
  for (; at + kLanes * kWord <= bytes.size(); at += kLanes * kWord)
    for (size_t i = 0; i < kLanes; ++i) mix_in(lanes[i], at + i * kWord, kWord);
  for (size_t i = 0; at < bytes.size(); at += kWord, ++i)
    mix_in(lanes[i], at, std::min(kWord, bytes.size() - at));
  uint64_t hash = mix(kHashSeed, bytes.size());
  for (const uint64_t lane : lanes) hash = mix(hash, lane);
  return hash;
}

}  // namespace quire
