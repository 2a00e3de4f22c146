// The disk tier's files, without a model: what is written is there for the next process, what is damaged is a miss, and
// whatever is wrong with the directory is said by name.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>

#include "src/base/hash.h"
#include "src/execute/disk_record.h"
#include "tests/unit/disk_rig.h"

namespace quire {
namespace {

TEST(HashBytes, TellsEveryBitAndEveryLengthApart) {
  std::vector<std::byte> data(200, std::byte{7});
  std::vector<uint64_t> seen{hash_bytes({})};
  for (size_t length = 1; length <= data.size(); ++length)
    seen.push_back(hash_bytes(std::span(data).first(length)));
  for (size_t bit = 0; bit < 8 * data.size(); ++bit) {
    data[bit / 8] ^= std::byte{1} << (bit % 8);
    seen.push_back(hash_bytes(data));
    data[bit / 8] ^= std::byte{1} << (bit % 8);
  }
  std::ranges::sort(seen);
  EXPECT_EQ(std::ranges::adjacent_find(seen), seen.end());
}

TEST_F(DiskTest, WhatIsWrittenIsThereForTheNextProcess) {
  DiskStore& first = open();
  EXPECT_EQ(first.num_blocks(), 4);
  EXPECT_TRUE(first.take_stored().empty());
  ASSERT_TRUE(first.write(block(2, 7), bytes('a').data()));
  ASSERT_TRUE(first.write(block(0, 8), bytes('b').data()));
  DiskStore& second = open();
  const std::vector<StoredBlock> stored = second.take_stored();
  ASSERT_EQ(stored.size(), 2u);
  EXPECT_EQ(stored[0].block, DiskBlockId{0});
  EXPECT_EQ(stored[1].serial, 7u);
  EXPECT_EQ(stored[1].parent_serial, 6u);
  EXPECT_EQ(stored[1].key, "1:k");
  EXPECT_EQ(stored[1].tokens, block(2, 7).tokens);
  EXPECT_EQ(stored[1].retention.retention_class, 2);
  EXPECT_EQ(stored[1].retention.recompute_cost, 1.5f);
  EXPECT_GT(stored[1].retention.expiry_us, 50'000'000);
  EXPECT_LE(stored[1].retention.expiry_us, 60'000'000);
  std::string data;
  EXPECT_EQ(read(second, 2, 7, data), DiskStore::Read::kOk);
  EXPECT_EQ(data, bytes('a'));
}

TEST_F(DiskTest, ADamagedBlockOrRecordIsCorruptOnceAndThenGone) {
  struct Damage {
    const char* file;
    int64_t at;
  };
  for (const Damage d : {Damage{"quire-kv.blocks", 8192 + kBlockBytes - 1},
                         {"quire-kv.blocks", 8192},
                         {"quire-kv.index", 4096 + 2048 + 70}}) {
    DiskStore& store = open();
    ASSERT_TRUE(store.write(block(1, 5), bytes('a').data()));
    ASSERT_TRUE(store.write(block(2, 6), bytes('b').data()));
    damage(d.file, d.at);
    std::string data;
    EXPECT_EQ(read(store, 1, 5, data), DiskStore::Read::kCorrupt);
    EXPECT_NE(what_.find("block 1 is corrupt"), std::string::npos) << what_;
    EXPECT_EQ(read(store, 2, 6, data), DiskStore::Read::kOk);
    const std::vector<StoredBlock> stored = open().take_stored();
    ASSERT_EQ(stored.size(), 1u);
    EXPECT_EQ(stored[0].serial, 6u);
  }
}

// Random bytes over records, as a disk or another program leaves them. What a record was of is counted or as it was, never
// something else; what was an empty place's is counted too.
TEST_F(DiskTest, RecordsThatARestartFindsDamagedAreCountedLoggedAndGone) {
  constexpr int32_t kPlaces = 32;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    std::filesystem::remove(dir_ + "/quire-kv.index");
    DiskStore& store = open(kPlaces);
    for (int32_t i = 0; i < kPlaces / 2; ++i)
      ASSERT_TRUE(store.write(block(i, 100 + i), bytes(static_cast<char>('a' + i)).data()));
    store_.reset();
    Random random(seed);
    std::set<int32_t> hit;
    for (int n = 0; n < 6; ++n) {
      const auto place = static_cast<int32_t>(random.below(kPlaces));
      const int64_t from = random.between(0, 2000), count = random.between(8, 2048 - from);
      scribble(4096 + place * 2048 + from, count, random);
      hit.insert(place);
    }
    testing::internal::CaptureStderr();
    DiskStore& again = open(kPlaces);
    const std::string log = testing::internal::GetCapturedStderr();
    const std::vector<StoredBlock> stored = again.take_stored();
    EXPECT_EQ(again.num_damaged(), static_cast<int64_t>(hit.size()));
    EXPECT_NE(log.find("disk_kv_corrupt"), std::string::npos) << log;
    EXPECT_NE(log.find(fmt::format("records={}", hit.size())), std::string::npos) << log;
    std::set<int32_t> found;
    for (const StoredBlock& b : stored) {
      found.insert(value(b.block));
      EXPECT_EQ(b.tokens, block(value(b.block), b.serial).tokens);
      std::string data;
      ASSERT_EQ(read(again, value(b.block), b.serial, data), DiskStore::Read::kOk) << what_;
      EXPECT_EQ(data, bytes(static_cast<char>('a' + value(b.block))));
    }
    for (int32_t i = 0; i < kPlaces; ++i)
      EXPECT_EQ(found.contains(i), i < kPlaces / 2 && !hit.contains(i)) << "place " << i;
    std::string data;
    EXPECT_EQ(read(again, *hit.begin(), 100 + *hit.begin(), data), DiskStore::Read::kCorrupt);
    EXPECT_EQ(open(kPlaces).num_damaged(), 0) << "told once";
  }
}

TEST_F(DiskTest, ABlockOfAnotherSerialIsNotTheOneAskedFor) {
  DiskStore& store = open();
  ASSERT_TRUE(store.write(block(1, 5), bytes('a').data()));
  std::string data;
  EXPECT_EQ(read(store, 1, 4, data), DiskStore::Read::kCorrupt);
}

TEST_F(DiskTest, AFileCutShortIsAMiss) {
  DiskStore& store = open();
  ASSERT_TRUE(store.write(block(3, 5), bytes('a').data()));
  std::filesystem::resize_file(dir_ + "/quire-kv.blocks", 3 * 8192 + 100);
  std::string data;
  EXPECT_EQ(read(store, 3, 5, data), DiskStore::Read::kCorrupt);
}

TEST_F(DiskTest, ADirectoryOfAnotherModelIsRefusedWithBothNames) {
  open();
  store_.reset();
  const Error e = refused(setup(4, "another model"));
  EXPECT_EQ(e.field, "disk_kv_dir");
  EXPECT_EQ(e.message, "disk_kv_dir `" + dir_ +
                           "` holds KV blocks of another model or version: a model; this server runs: "
                           "another model; empty the directory, or name another");
  EXPECT_TRUE(DiskStore::open(setup()).has_value()) << "and is left as it was";
}

// What a power loss leaves of an index that had just been made.
TEST_F(DiskTest, AnIndexOfZerosIsAnEmptyOne) {
  open();
  store_.reset();
  const auto size = std::filesystem::file_size(dir_ + "/quire-kv.index");
  std::filesystem::resize_file(dir_ + "/quire-kv.index", 0);
  std::filesystem::resize_file(dir_ + "/quire-kv.index", size);
  DiskStore& store = open();
  ASSERT_TRUE(store.write(block(1, 5), bytes('a').data()));
  EXPECT_EQ(open().take_stored().size(), 1u);
}

TEST_F(DiskTest, AnotherFormatVersionIsRefusedWithBothNumbers) {
  open();
  store_.reset();
  damage("quire-kv.index", 8);
  const Error e = refused(setup());
  EXPECT_NE(e.message.find("is of format version 0; this server reads and writes version 1"),
            std::string::npos)
      << e.message;
}

TEST_F(DiskTest, ADamagedHeaderIsRefusedAndSaysWhatToDo) {
  ASSERT_TRUE(open().write(block(1, 5), bytes('a').data()));
  store_.reset();
  damage("quire-kv.index", 26);  // in the identity
  const Error e = refused(setup());
  EXPECT_EQ(e.field, "disk_kv_dir");
  EXPECT_EQ(e.message, "disk_kv_dir `" + dir_ +
                           "`: quire-kv.index has a header that is damaged; name another directory, or "
                           "remove quire-kv.index and quire-kv.blocks from this one");
  for (const char* file : {"/quire-kv.index", "/quire-kv.blocks"}) std::filesystem::remove(dir_ + file);
  open();
}

TEST_F(DiskTest, AFileOfSomethingElseIsNotTouched) {
  std::ofstream(dir_ + "/quire-kv.index") << "not ours";
  EXPECT_NE(refused(setup()).message.find("is no index of KV blocks"), std::string::npos);
  EXPECT_EQ(std::filesystem::file_size(dir_ + "/quire-kv.index"), 8u);
}

TEST_F(DiskTest, ADirectoryIsOneProcesssAtATime) {
  open();
  const Error e = refused(setup());
  EXPECT_EQ(e.field, "disk_kv_dir");
  EXPECT_NE(e.message.find("is in use by another process"), std::string::npos) << e.message;
}

TEST_F(DiskTest, WhatIsMissingUnwritableOrTooSmallIsSaidByName) {
  DiskSetup missing = setup();
  missing.dir += "/none";
  EXPECT_NE(refused(missing).message.find("/none`: cannot be opened: No such file"), std::string::npos);
  std::ofstream(dir_ + "/file") << "x";
  DiskSetup file = setup();
  file.dir += "/file";
  EXPECT_NE(refused(file).message.find("is no directory"), std::string::npos);
  DiskSetup small = setup();
  small.bytes = 4096;
  EXPECT_EQ(refused(small).field, "disk_kv_bytes");
  DiskSetup huge = setup();
  huge.bytes = 1ll << 60;
  const Error e = refused(huge);
  EXPECT_EQ(e.field, "disk_kv_bytes");
  EXPECT_NE(e.message.find("bytes are free there"), std::string::npos) << e.message;
  if (geteuid() != 0) {  // root may write anywhere
    std::filesystem::permissions(dir_,
                                 std::filesystem::perms::owner_read | std::filesystem::perms::owner_exec);
    EXPECT_NE(refused(setup(5)).message.find("Permission denied"), std::string::npos);
  }
}

TEST_F(DiskTest, AnOpeningThatFailsLeavesOnlyWhatWasThere) {
  DiskSetup huge = setup();
  huge.bytes = 1ll << 60;
  refused(huge);
  EXPECT_TRUE(std::filesystem::is_empty(dir_)) << "made for nothing";

  std::ofstream(dir_ + "/quire-kv.index");  // an empty one is somebody's
  refused(huge);
  EXPECT_TRUE(std::filesystem::exists(dir_ + "/quire-kv.index"));
  EXPECT_FALSE(std::filesystem::exists(dir_ + "/quire-kv.blocks"));

  ASSERT_TRUE(open().write(block(1, 5), bytes('a').data()));
  refused(setup());  // in use
  store_.reset();
  refused(huge);
  refused(setup(4, "another model"));
  DiskStore& again = open();
  ASSERT_EQ(again.take_stored().size(), 1u);
  std::string data;
  EXPECT_EQ(read(again, 1, 5, data), DiskStore::Read::kOk);
}

// One makes the index, another locks it first and fails, or removes what a third has just met.
TEST_F(DiskTest, OpeningsThatFailAtOnceLeaveNothing) {
  DiskSetup huge = setup();
  huge.bytes = 1ll << 60;
  constexpr int kThreads = 4, kTimes = 200;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i)
    threads.emplace_back([huge] {
      for (int k = 0; k < kTimes; ++k) EXPECT_FALSE(DiskStore::open(huge).has_value());
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(std::filesystem::is_empty(dir_));
}

// No write beyond so many bytes of a file goes through while it lasts: with 0 as on a disk that has become read-only.
class NoWrites {
 public:
  explicit NoWrites(rlim_t beyond = 0) : was_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &limit_);
    const rlimit none{beyond, limit_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &none);
  }
  ~NoWrites() {
    setrlimit(RLIMIT_FSIZE, &limit_);
    std::signal(SIGXFSZ, was_);
  }
  NoWrites(const NoWrites&) = delete;
  NoWrites& operator=(const NoWrites&) = delete;

 private:
  void (*was_)(int);
  rlimit limit_{};
};

// It would be found again after a restart: that is said.
TEST_F(DiskTest, ACorruptRecordThatCannotBeErasedIsSaidToBe) {
  DiskStore& store = open();
  ASSERT_TRUE(store.write(block(1, 5), bytes('a').data()));
  damage("quire-kv.blocks", 8192);
  std::string data;
  {
    const NoWrites none;
    EXPECT_EQ(read(store, 1, 5, data), DiskStore::Read::kCorrupt);
  }
  EXPECT_NE(what_.find("its checksum is wrong; its record cannot be erased"), std::string::npos) << what_;
  EXPECT_EQ(read(store, 1, 5, data), DiskStore::Read::kCorrupt);
  EXPECT_EQ(what_.find("cannot be erased"), std::string::npos) << what_;
}

TEST_F(DiskTest, TheFirstWriteThatFailsIsLoggedWithItsReason) {
  DiskStore& store = open(64);
  testing::internal::CaptureStderr();
  {
    const NoWrites far(1 << 16);  // the log's lines are written to a file too
    for (int i = 0; i < 2; ++i) {
      const Status written = store.write(block(60, 5), bytes('a').data());
      ASSERT_FALSE(written);
      EXPECT_EQ(written.error().code, Code::kResourceExhausted);
      EXPECT_NE(written.error().message.find("; RLIMIT_FSIZE (ulimit -f) allows 65536 bytes a file"),
                std::string::npos)
          << written.error().message;
    }
  }
  const std::string log = testing::internal::GetCapturedStderr();
  const size_t at = log.find("disk_kv_failed");
  ASSERT_NE(at, std::string::npos) << log;
  EXPECT_EQ(log.find("disk_kv_failed", at + 1), std::string::npos) << "the others are counted";
}

TEST_F(DiskTest, NothingIsWrittenToFilesThatWereRemoved) {
  for (const char* name : {"quire-kv.blocks", "quire-kv.index"}) {
    DiskStore& store = open();
    ASSERT_TRUE(store.write(block(2, 7), bytes('a').data()));
    std::filesystem::remove(std::filesystem::path(setup().dir) / name);
    const Status written = store.write(block(1, 8), bytes('b').data());
    ASSERT_FALSE(written) << name;
    EXPECT_EQ(written.error().code, Code::kNotFound);
    EXPECT_NE(written.error().message.find("removed or replaced"), std::string::npos)
        << written.error().message;
    std::string error;
    std::string read = bytes('-');
    EXPECT_EQ(store.read(DiskBlockId{2}, 7, read.data(), error), DiskStore::Read::kOk)
        << "what it has it still has";
  }
}

TEST_F(DiskTest, ADirectoryWhoseDamagedRecordsCannotBeErasedIsRefused) {
  ASSERT_TRUE(open().write(block(1, 5), bytes('a').data()));
  store_.reset();
  damage("quire-kv.index", 4096 + 2048 + 70);
  {
    const NoWrites none;
    const Error e = refused(setup());
    EXPECT_EQ(e.field, "disk_kv_dir");
    EXPECT_NE(e.message.find("a damaged record cannot be erased"), std::string::npos) << e.message;
  }
  EXPECT_EQ(open().num_damaged(), 1);
}

TEST_F(DiskTest, FewerOrMoreBlocksThanBeforeKeepWhatStillHasAPlace) {
  DiskStore& store = open(4);
  ASSERT_TRUE(store.write(block(0, 5), bytes('a').data()));
  ASSERT_TRUE(store.write(block(3, 6), bytes('b').data()));
  EXPECT_EQ(open(2).take_stored().size(), 1u);
  DiskStore& wide = open(100);
  EXPECT_EQ(wide.num_blocks(), 100);
  ASSERT_EQ(wide.take_stored().size(), 1u);
  std::string data;
  EXPECT_EQ(read(wide, 0, 5, data), DiskStore::Read::kOk);
}

TEST_F(DiskTest, ARecordThatDoesNotFitIsRefused) {
  StoredBlock long_key = block(0, 1);
  long_key.key.assign(3000, 'k');
  const Status written = open().write(long_key, bytes('a').data());
  ASSERT_FALSE(written);
  EXPECT_NE(written.error().message.find("3000 bytes"), std::string::npos);
}

}  // namespace
}  // namespace quire
