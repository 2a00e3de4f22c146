// Where the disk tier's blocks lie in its file, and the serial each was last written with. A block of the pool
// and its place are two numbers: after a restart what is found at a place gets whatever block is free. Engine
// thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "src/cache/tier.h"

namespace quire {

class DiskPlaces {
 public:
  explicit DiskPlaces(int64_t num_blocks) : places_(num_blocks), blocks_(num_blocks), serials_(num_blocks) {
    for (int32_t i = 0; i < static_cast<int32_t>(num_blocks); ++i) {
      places_[i] = DiskBlockId{i};
      blocks_[i] = BlockId{i};
    }
  }

  DiskBlockId place_of(BlockId block) const { return places_[value(block)]; }
  uint64_t serial_of(BlockId block) const { return serials_[value(block)]; }
  // What is about to be written there gets a serial that none had before it.
  uint64_t number(BlockId block) { return serials_[value(block)] = ++last_serial_; }
  bool has(DiskBlockId place) const {
    return value(place) >= 0 && value(place) < static_cast<int32_t>(places_.size());
  }
  // The block lies at `place` from now on, and who was there where it was: neither holds anything yet.
  void restore(BlockId block, DiskBlockId place, uint64_t serial) {
    const BlockId other = blocks_[value(place)];
    std::swap(places_[value(block)], places_[value(other)]);
    std::swap(blocks_[value(places_[value(block)])], blocks_[value(places_[value(other)])]);
    serials_[value(block)] = serial;
  }
  void seen(uint64_t serial) { last_serial_ = std::max(last_serial_, serial); }  // not to be used again

 private:
  std::vector<DiskBlockId> places_;  // by block
  std::vector<BlockId> blocks_;      // by place
  std::vector<uint64_t> serials_;    // by block
  uint64_t last_serial_ = 0;
};

}  // namespace quire
