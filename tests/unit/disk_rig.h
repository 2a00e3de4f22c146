// A directory for the disk tier's files, which goes with the test, and blocks to write there.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <numeric>
#include <string>

#include "src/base/random.h"
#include "src/execute/disk_store.h"

namespace quire {

inline constexpr int64_t kBlockBytes = 5000;  // takes two pages of 4096

class DiskTest : public testing::Test {
 protected:
  void SetUp() override {
    dir_ = testing::TempDir() + "quire_disk_XXXXXX";
    ASSERT_NE(mkdtemp(dir_.data()), nullptr);
  }
  void TearDown() override {
    store_.reset();
    std::filesystem::permissions(dir_, std::filesystem::perms::owner_all);
    std::filesystem::remove_all(dir_);
  }
  DiskSetup setup(int64_t blocks = 4, const std::string& identity = "a model") const {
    return {.dir = dir_, .bytes = blocks * 8192, .block_bytes = kBlockBytes, .identity = identity};
  }
  DiskStore& open(int64_t blocks = 4) {
    store_.reset();
    Result<std::unique_ptr<DiskStore>> opened = DiskStore::open(setup(blocks));
    EXPECT_TRUE(opened.has_value()) << opened.error().message;
    store_ = std::move(*opened);
    return *store_;
  }
  Error refused(const DiskSetup& setup) const {
    const Result<std::unique_ptr<DiskStore>> opened = DiskStore::open(setup);
    EXPECT_FALSE(opened.has_value());
    return opened ? Error{} : opened.error();
  }
  static StoredBlock block(int32_t place, uint64_t serial) {
    StoredBlock b{.block = DiskBlockId{place}, .serial = serial, .parent_serial = serial - 1, .key = "1:k"};
    b.tokens.resize(16);
    std::iota(b.tokens.begin(), b.tokens.end(), place * 100);
    b.retention = {.retention_class = 2, .expiry_us = 60'000'000, .recompute_cost = 1.5f};
    return b;
  }
  static std::string bytes(char c) { return std::string(kBlockBytes, c); }
  // Turns one bit of a file.
  void damage(const char* file, int64_t at) const {
    std::fstream f(dir_ + "/" + file, std::ios::in | std::ios::out | std::ios::binary);
    f.seekg(at);
    const char c = static_cast<char>(f.get() ^ 1);
    f.seekp(at);
    f.put(c);
  }
  void scribble(int64_t at, int64_t count, Random& random) const {
    std::fstream f(dir_ + "/quire-kv.index", std::ios::in | std::ios::out | std::ios::binary);
    f.seekp(at);
    for (; count > 0; --count) f.put(static_cast<char>(random.next() >> 56));
  }
  DiskStore::Read read(DiskStore& store, int32_t place, uint64_t serial, std::string& data) {
    data.resize(kBlockBytes);
    return store.read(DiskBlockId{place}, serial, data.data(), what_);
  }

  std::string dir_, what_;
  std::unique_ptr<DiskStore> store_;
};

}  // namespace quire
