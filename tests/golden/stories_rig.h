// What tests of whole engines on the smallest stored model share: stories260K (5 layers, 4 KV heads of 8, 512 ids), and prompts for it.
#pragma once

#include <filesystem>

#include "tests/golden/engine_rig.h"

namespace quire::golden {

// Ids that look like no other prompt's of another length or seed.
inline std::vector<int32_t> prompt_of(int32_t length, int32_t seed) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < length; ++i) ids.push_back(3 + (i * i * 7 + i * 13 + seed * 101) % 500);
  return ids;
}

// Skipped where the shared data is not there; a test's own SetUp() says how large its engine is.
class StoriesTest : public ::testing::Test {
 protected:
  static constexpr int64_t kTokenBytes = 2 * 5 * 4 * 8 * 4;  // of the cache, in float32

  void SetUp() override {
    config_.model_dir = shared_data() + "/models/stories260K";
    if (!std::filesystem::exists(config_.model_dir))
      GTEST_SKIP() << config_.model_dir << " is not there (set QUIRE_SHARED)";
  }
  // For float32 beside the CPU back end, every plan checked.
  void compare_in_f32() {
    config_.dtype = "f32";
    config_.check_invariants = true;
  }
  // The device that is compared with the CPU.
  const std::string device_ = env_or("QUIRE_TEST_DEVICE", "cuda-host");
  EngineConfig config_;
};

}  // namespace quire::golden
