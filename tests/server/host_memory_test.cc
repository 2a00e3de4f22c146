// The ceiling of host memory. First the sums and what is read of the system; then what clients see, over real loopback connections, of a
// server whose memory is a number that the test sets.
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <numeric>

#include "server/host_memory.h"
#include "tests/server/rig.h"
#include "tests/unit/system_root.h"

namespace quire::server {
namespace {

constexpr int64_t kMiB = 1 << 20;
constexpr int32_t kForever = 1'000'000;

// ---- steps ----

TEST(MemorySteps, AreSharesOfTheCeiling) {
  const MemorySteps steps = memory_steps(1000, 0);
  EXPECT_EQ(steps.ends, 930);
  EXPECT_EQ(steps.shed, 950);
  EXPECT_EQ(steps.refuse, 980);
}

// A server whose weights take 97 % of the machine would otherwise serve nobody.
TEST(MemorySteps, AreSharesOfWhatWeightsAndCachesLeave) {
  const MemorySteps steps = memory_steps(1000, 900);
  EXPECT_EQ(steps.ends, 993);
  EXPECT_EQ(steps.shed, 995);
  EXPECT_EQ(steps.refuse, 998);
  EXPECT_EQ(next_pressure(MemoryPressure::kNone, 990, steps), MemoryPressure::kNone);
}

TEST(MemorySteps, OverflowWithNoCeiling) {
  const MemorySteps steps = memory_steps(int64_t{1} << 60, int64_t{1} << 40);
  EXPECT_LT(steps.ends, steps.shed);
  EXPECT_LT(steps.shed, steps.refuse);
  EXPECT_LT(steps.refuse, int64_t{1} << 60);
}

TEST(MemorySteps, BeginWhereTheyAreAndEndAStepLower) {
  using enum MemoryPressure;
  const MemorySteps steps{.ends = 930, .shed = 950, .refuse = 980};
  struct Case {
    MemoryPressure before;
    int64_t bytes;
    MemoryPressure after;
  };
  for (const Case& c :
       {Case{kNone, 949, kNone}, Case{kNone, 950, kShed}, Case{kNone, 979, kShed}, Case{kNone, 980, kRefuse},
        Case{kShed, 949, kShed}, Case{kShed, 930, kShed}, Case{kShed, 929, kNone}, Case{kShed, 980, kRefuse},
        Case{kRefuse, 979, kRefuse}, Case{kRefuse, 950, kRefuse}, Case{kRefuse, 949, kShed},
        Case{kRefuse, 930, kShed}, Case{kRefuse, 929, kNone}})
    EXPECT_EQ(next_pressure(c.before, c.bytes, steps), c.after) << to_string(c.before) << " " << c.bytes;
}

// ---- what the system says ----

TEST(AllowedHostBytes, AreTheMachinesWhereNoCgroupSaysLess) {
  const SystemRoot root;
  const int64_t machine = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
  EXPECT_EQ(allowed_host_bytes(root.path), machine);
  root.write("/proc/self/cgroup", "0::/\n");
  root.write("/sys/fs/cgroup/memory.max", "max\n");
  EXPECT_EQ(allowed_host_bytes(root.path), machine);
  EXPECT_LE(allowed_host_bytes(), machine);
  EXPECT_GT(allowed_host_bytes(), 0);
}

TEST(AllowedHostBytes, AreTheLeastOfACgroupAndThoseAboveIt) {
  const SystemRoot root;
  root.write("/proc/self/cgroup", "0::/pod/container\n");
  root.write("/sys/fs/cgroup/pod/container/memory.max", "9000000\n");
  EXPECT_EQ(allowed_host_bytes(root.path), 9'000'000);
  root.write("/sys/fs/cgroup/pod/memory.max", "8000000\n");
  EXPECT_EQ(allowed_host_bytes(root.path), 8'000'000);
  root.write("/sys/fs/cgroup/memory.max", "7000000\n");
  EXPECT_EQ(allowed_host_bytes(root.path), 7'000'000);
}

TEST(AllowedHostBytes, AreReadOfTheFirstVersionOfCgroupsToo) {
  const SystemRoot root;
  root.write("/proc/self/cgroup", "5:cpu,cpuacct:/elsewhere\n4:memory:/docker/0123\n0::/\n");
  root.write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "6000000\n");  // a container's own, at the root
  EXPECT_EQ(allowed_host_bytes(root.path), 6'000'000);
  root.write("/sys/fs/cgroup/memory/docker/0123/memory.limit_in_bytes", "5000000\n");
  EXPECT_EQ(allowed_host_bytes(root.path), 5'000'000);
}

TEST(OwnResidentBytes, CountMemoryThatIsTouchedAndNoFileThatIsMapped) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer has memory of its own for each byte that is read";
#endif
  constexpr int64_t kBytes = 64 * kMiB;
  // Beside this program, for what is mapped from a tmpfs, as /tmp is on many machines, is memory and counts.
  const std::filesystem::path directory = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  struct statfs filesystem;
  ASSERT_EQ(statfs(directory.c_str(), &filesystem), 0);
  if (filesystem.f_type == TMPFS_MAGIC) GTEST_SKIP() << directory << " is a tmpfs, whose files are memory";
  const std::string path = directory / "quire_mapped";
  std::ofstream(path) << std::string(kBytes, 'x');
  const int fd = open(path.c_str(), O_RDONLY);
  const int64_t before = own_resident_bytes();
  const auto* mapped = static_cast<const char*>(mmap(nullptr, kBytes, PROT_READ, MAP_PRIVATE, fd, 0));
  EXPECT_EQ(std::accumulate(mapped, mapped + kBytes, int64_t{0}), kBytes * 'x');
  EXPECT_LT(own_resident_bytes() - before, 16 * kMiB) << "weights that are mapped";
  for (const int kind : {MAP_PRIVATE, MAP_SHARED}) {
    const int64_t untouched = own_resident_bytes();
    auto* memory =
        static_cast<char*>(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, kind | MAP_ANONYMOUS, -1, 0));
    EXPECT_LT(own_resident_bytes() - untouched, 16 * kMiB) << "nothing is touched";
    std::fill(memory, memory + kBytes, 'y');
    EXPECT_GT(own_resident_bytes() - untouched, 48 * kMiB) << "its own, and shared as pinned memory is";
    munmap(memory, kBytes);
  }
  munmap(const_cast<char*>(mapped), kBytes);
  close(fd);
  std::filesystem::remove(path);
}

// What lies between two pieces in use is not given back by freeing it.
TEST(OwnResidentBytes, FallWhenFreedMemoryIsGivenBack) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's own allocator keeps what is freed";
#endif
  std::vector<std::unique_ptr<char[]>> pieces;
  for (int i = 0; i < 1024; ++i) {
    pieces.emplace_back(new char[64 << 10]);
    std::fill_n(pieces.back().get(), 64 << 10, 'x');
  }
  const auto stays = std::move(pieces.back());
  pieces.clear();
  const int64_t freed = own_resident_bytes();
  give_freed_memory_back();
  EXPECT_LT(own_resident_bytes(), freed - 48 * kMiB);
}

// ---- the watch ----

TEST(HostMemory, IsNoCeilingThatWeightsAndCachesFill) {
  HostMemory memory({.max_bytes = 1000, .resident_bytes = [] { return int64_t{600}; }});
  const Status room = memory.watch(400);
  ASSERT_FALSE(room);
  EXPECT_EQ(room.error().message,
            "--max-host-memory-bytes is 1000; the process holds 600 bytes with the model open, and its "
            "caches and buffers may take 400 more (kv_cache_bytes, host_kv_bytes, swap_space_bytes, "
            "kv_policy_bytes, max_step_tokens)");
  HostMemory allowed({.max_bytes = 0, .resident_bytes = [] { return int64_t{1} << 50; }});
  EXPECT_TRUE(allowed.watch(0)) << "nobody asked for it, so it stops no server";
  EXPECT_EQ(allowed.stats().max_bytes, 0);
  EXPECT_FALSE(allowed.refuse_text());
}

TEST(HostMemory, IsTheMachinesUnlessAnotherIsSaid) {
  HostMemory machine({.max_bytes = 0}), none({.max_bytes = -1});
  ASSERT_TRUE(machine.watch(0));
  EXPECT_EQ(machine.stats().max_bytes, allowed_host_bytes());
  EXPECT_GT(machine.stats().bytes, 0);
  ASSERT_TRUE(none.watch(0));
  EXPECT_EQ(none.stats().max_bytes, 0);
}

// ---- over the wire ----

// A server with a ceiling of 1000 bytes.
struct FullRig {
  explicit FullRig(int64_t at_start = 0)
      : bytes(std::make_shared<std::atomic<int64_t>>(at_start)),
        rig({.step_us = 5000},
            {.host_memory = {.max_bytes = 1000, .look_every_ms = 1, .resident_bytes = [b = bytes] {
                               return b->load();
                             }}}) {}

  // Once the server has looked.
  void set(int64_t value, const std::string& pressure) {
    *bytes = value;
    EXPECT_TRUE(rig.engine.eventually([&] {
      const v1::GetLoadResponse load = load_now();
      return load.host_memory_bytes() == value && load.host_memory_pressure() == pressure;
    })) << value;
  }
  v1::GetLoadResponse load_now() {
    grpc::ClientContext context;
    v1::GetLoadResponse load;
    EXPECT_TRUE(rig.stub->GetLoad(&context, {}, &load).ok());
    return load;
  }
  grpc::Status generate() { return run_stream(*rig.stub, text_request("hello", 1)).status; }
  grpc::Status tokenize() {
    grpc::ClientContext context;
    v1::TokenizeRequest request;
    request.set_text("hello");
    v1::TokenizeResponse response;
    return rig.stub->Tokenize(&context, request, &response);
  }
  grpc::Status dump() {
    grpc::ClientContext context;
    v1::DumpKvRequest request;
    *request.mutable_request() = text_request("hello", 1);
    v1::DumpKvResponse response;
    return rig.stub->DumpKv(&context, request, &response);
  }

  const std::shared_ptr<std::atomic<int64_t>> bytes;
  Rig rig;
};

TEST(HostMemory, ShedsNewRequestsAndLetsThoseThatRunGoOn) {
  FullRig full;
  grpc::ClientContext context;
  const auto running = full.rig.stub->Generate(&context, text_request("hello", 40));
  v1::GenerateResponse message;
  ASSERT_TRUE(running->Read(&message));
  full.set(949, "");
  EXPECT_TRUE(full.generate().ok());
  full.set(950, "shedding");
  for (const grpc::Status& refused : {full.generate(), full.dump()}) {
    EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_EQ(refused.error_message(),
              "the server holds 950 bytes of host memory, of 1000 that it may (max_host_memory_bytes)");
    EXPECT_TRUE(error_detail<google::rpc::RetryInfo>(refused));
  }
  EXPECT_TRUE(full.tokenize().ok()) << "a text is refused at the second step only";
  EXPECT_EQ(full.load_now().refused_host_memory_total(), 2);
  EXPECT_EQ(full.load_now().max_host_memory_bytes(), 1000);
  int num_messages = 1;
  while (running->Read(&message)) ++num_messages;
  EXPECT_TRUE(running->Finish().ok());
  EXPECT_EQ(num_messages, 40);
  full.set(930, "shedding");
  EXPECT_FALSE(full.generate().ok());
  full.set(929, "");
  EXPECT_TRUE(full.generate().ok());
}

TEST(HostMemory, RefusesAllWorkNearTheCeilingButWhatFreesOrShowsIt) {
  FullRig full;
  grpc::ClientContext context;
  v1::GenerateRequest request = text_request("hello", kForever);
  request.set_request_id("running");
  const auto running = full.rig.stub->Generate(&context, request);
  v1::GenerateResponse message;
  ASSERT_TRUE(running->Read(&message));
  full.set(980, "refusing");
  for (const grpc::Status& refused : {full.generate(), full.dump(), full.tokenize()}) {
    EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_TRUE(error_detail<google::rpc::RetryInfo>(refused));
  }
  EXPECT_EQ(health_of(full.rig, kServiceName), "SERVING") << "a full server is no dead one";
  grpc::ClientContext abort_context;
  v1::AbortRequest abort;
  abort.add_request_ids("running");
  v1::AbortResponse aborted;
  EXPECT_TRUE(full.rig.stub->Abort(&abort_context, abort, &aborted).ok());
  EXPECT_EQ(aborted.aborted_request_ids_size(), 1);
  while (running->Read(&message)) {
  }
  EXPECT_EQ(running->Finish().error_code(), grpc::StatusCode::CANCELLED);
  full.set(949, "shedding");
  EXPECT_TRUE(full.tokenize().ok());
}

TEST(HostMemory, CountsFromWhatTheModelLeaves) {
  FullRig full(900);
  EXPECT_TRUE(full.generate().ok());
  full.set(994, "");
  EXPECT_TRUE(full.generate().ok());
  full.set(995, "shedding");
  EXPECT_FALSE(full.generate().ok());
}

TEST(HostMemory, SaysInTheLogWhenItBeginsAndWhenItEnds) {
  FullRig full;
  configure_log(LogFormat::kKeyValue, LogLevel::kWarn);
  testing::internal::CaptureStderr();
  full.set(960, "shedding");
  for (int i = 0; i < 5; ++i) full.generate();
  full.set(940, "shedding");
  full.set(100, "");
  const std::string log = testing::internal::GetCapturedStderr();
  configure_log(LogFormat::kKeyValue, LogLevel::kError);
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 2) << log;
  EXPECT_NE(log.find("host_memory_pressure step=shedding"), std::string::npos) << log;
  EXPECT_NE(log.find("host_memory_recovered"), std::string::npos) << log;
  EXPECT_NE(log.find("refused_total=5"), std::string::npos) << log;
}

}  // namespace
}  // namespace quire::server
