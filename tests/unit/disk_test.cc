// The disk tier's files and the threads that use them, without a model: what is written is there for the next
// process, what is damaged is a miss, and whatever is wrong with the directory is said by name.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <set>
#include <stop_token>
#include <thread>

#include "src/base/hash.h"
#include "src/base/random.h"
#include "src/execute/disk_record.h"
#include "src/execute/disk_store.h"
#include "src/execute/threaded_mover.h"

namespace quire {
namespace {

constexpr int64_t kBlockBytes = 5000;  // takes two pages of 4096

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

// ---- the mover's threads ----

constexpr int32_t kBlocks = 6;

class DiskMoverTest : public DiskTest, public testing::WithParamInterface<int> {
 protected:
  // Blocks of the device, host memory and, where the device has memory of its own, two per disk thread.
  void make(const MakeCopyStream& make_stream = make_host_copy_stream) {
    arena_.resize(kBlocks * kBlockBytes);
    host_.resize(kBlocks * kBlockBytes);
    staging_.resize(GetParam() * 4 * kBlockBytes);
    Result<std::unique_ptr<DiskStore>> store = DiskStore::open(setup(8));
    ASSERT_TRUE(store.has_value()) << store.error().message;
    mover_ = make_threaded_mover(make_stream,
                                 {.arena = arena_.data(),
                                  .host = host_.data(),
                                  .block_bytes = kBlockBytes,
                                  .staging = GetParam() > 0 ? staging_.data() : nullptr,
                                  .staging_blocks = 2},
                                 std::move(*store))
                 .value();
  }
  char* arena(int32_t block) { return arena_.data() + block * kBlockBytes; }
  TransferEnd run(TransferDirection direction, std::vector<TierCopy> copies, std::stop_token unwanted = {}) {
    mover_->submit(
        {.id = 3, .direction = direction, .copies = std::move(copies), .unwanted = std::move(unwanted)});
    mover_->wait();
    std::vector<TransferEnd> ends;
    mover_->poll(ends);
    EXPECT_EQ(ends.size(), 1u);
    EXPECT_EQ(ends[0].id, 3u);
    return ends[0];
  }
  static TierCopy to_disk(TierCopy copy, int32_t place, uint64_t serial) {
    copy.disk = DiskBlockId{place};
    copy.serial = serial;
    copy.record = std::make_shared<const StoredBlock>(block(place, serial));
    return copy;
  }
  static TierCopy from_disk(int32_t device, int32_t place, uint64_t serial) {
    return {.device = BlockId{device}, .disk = DiskBlockId{place}, .serial = serial};
  }
  void TearDown() override {
    mover_.reset();
    DiskTest::TearDown();
  }
  std::string arena_, host_, staging_;
  std::unique_ptr<BlockMover> mover_;
};

TEST_P(DiskMoverTest, BlocksGoDownFromDeviceAndHostAndComeBackElsewhere) {
  make();
  std::vector<TierCopy> down;
  for (int32_t i = 0; i < 5; ++i) std::memset(arena(i), 'a' + i, kBlockBytes);
  for (int32_t i = 0; i < 5; ++i) down.push_back(to_disk({.device = BlockId{i}}, 7 - i, 10 + i));
  ASSERT_TRUE(run(TransferDirection::kToDisk, down).status);
  std::memset(host_.data() + 2 * kBlockBytes, 'z', kBlockBytes);
  ASSERT_TRUE(run(TransferDirection::kToDisk, {to_disk({.host = HostBlockId{2}}, 0, 20)}).status);
  std::fill(arena_.begin(), arena_.end(), '.');
  std::memset(host_.data() + 4 * kBlockBytes, 'y', kBlockBytes);
  ASSERT_TRUE(run(TransferDirection::kToDevice, {{.device = BlockId{3}, .host = HostBlockId{4}},
                                                 from_disk(0, 7, 10),
                                                 from_disk(5, 5, 12),
                                                 from_disk(1, 0, 20)})
                  .status);
  EXPECT_EQ(std::string(arena(0), kBlockBytes), bytes('a'));
  EXPECT_EQ(std::string(arena(1), kBlockBytes), bytes('z'));
  EXPECT_EQ(std::string(arena(2), kBlockBytes), bytes('.'));
  EXPECT_EQ(std::string(arena(3), kBlockBytes), bytes('y'));
  EXPECT_EQ(std::string(arena(5), kBlockBytes), bytes('c'));
}

TEST_P(DiskMoverTest, ACorruptBlockFailsItsTransferAndIsNamed) {
  make();
  ASSERT_TRUE(run(TransferDirection::kToDisk,
                  {to_disk({.device = BlockId{0}}, 3, 10), to_disk({.device = BlockId{1}}, 4, 11)})
                  .status);
  damage("quire-kv.blocks", 4 * 8192 + 17);
  const TransferEnd end = run(TransferDirection::kToDevice, {from_disk(2, 3, 10), from_disk(3, 4, 11)});
  EXPECT_FALSE(end.status);
  EXPECT_EQ(end.corrupt, std::vector{DiskBlockId{4}});
  EXPECT_TRUE(run(TransferDirection::kToDevice, {from_disk(2, 3, 10)}).status);
}

// Its request ends while the first block goes up to the device: of the host, or with the first two of the disk.
class StopsAtTheFirst final : public CopyStream {
 public:
  explicit StopsAtTheFirst(std::stop_source& unwanted) : unwanted_(unwanted) {}
  void copy_to_device(void* target, const void* host, int64_t bytes) override {
    unwanted_.request_stop();
    std::memcpy(target, host, static_cast<size_t>(bytes));
  }
  void copy_to_host(void* host, const void* source, int64_t bytes) override {
    std::memcpy(host, source, static_cast<size_t>(bytes));
  }
  void wait() override {}

 private:
  std::stop_source& unwanted_;
};

TEST_P(DiskMoverTest, WhatNobodyWaitsForIsReadNoFurther) {
  std::stop_source unwanted;
  make([&unwanted] { return std::make_unique<StopsAtTheFirst>(unwanted); });
  std::vector<TierCopy> down, up;
  for (int32_t i = 0; i < 4; ++i) {
    std::memset(arena(i), 'a' + i, kBlockBytes);
    down.push_back(to_disk({.device = BlockId{i}}, i, 1));
  }
  ASSERT_TRUE(run(TransferDirection::kToDisk, down).status);
  std::memset(arena(0), '-', arena_.size());
  const bool is_staged = GetParam() > 0;
  if (!is_staged) up.push_back({.device = BlockId{5}, .host = HostBlockId{0}});
  for (int32_t i = 0; i < 4; ++i) up.push_back(from_disk(i, i, 1));
  const TransferEnd end = run(TransferDirection::kToDevice, up, unwanted.get_token());
  EXPECT_EQ(end.status.error().code, Code::kCancelled);
  EXPECT_EQ(end.stopped_after, is_staged ? 2 : 0);
  for (int32_t i = 0; i < 4; ++i) EXPECT_EQ(arena(i)[0], is_staged && i < 2 ? 'a' + i : '-') << "block " << i;
}

TEST_P(DiskMoverTest, WhatWasSubmittedIsOnTheDiskBeforeTheMoverGoes) {
  make();
  for (int32_t i = 0; i < 5; ++i)
    mover_->submit({.id = static_cast<uint64_t>(i),
                    .direction = TransferDirection::kToDisk,
                    .copies = {to_disk({.device = BlockId{i}}, i, 10 + i)}});
  mover_.reset();
  EXPECT_EQ(open(8).take_stored().size(), 5u);
}

INSTANTIATE_TEST_SUITE_P(Staging, DiskMoverTest, testing::Values(0, 1), [](const auto& info) {
  return info.param > 0 ? "MemoryOfItsOwn" : "TheHostsMemory";
});

}  // namespace
}  // namespace quire
