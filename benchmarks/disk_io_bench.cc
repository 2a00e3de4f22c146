// Whether the disk tier should go past the kernel's page cache (O_DIRECT), or tell it what comes (WILLNEED): blocks
// of a file of its shape written, and read one call at a time as its threads do, in the order they lie and in a
// random one, through the page cache when it holds nothing of the file, and when it holds all of it, and past it;
// "told": four blocks ahead (0 past the page cache, where there is nobody to tell). MB/s, medians; one JSON line a size.
//   disk_io_bench --dir DIR [--mib 192] [--rounds 3] [--block-bytes N]...
// DIR: on the disk in question; the file is made there and removed.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "benchmarks/bench_flags.h"
#include "src/base/check.h"
#include "src/base/random.h"

namespace quire {
namespace {

constexpr size_t kPage = 4096;

class File {
 public:
  File(const std::string& path, bool direct, int64_t bytes) : path_(path) {
    fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | (direct ? O_DIRECT : 0), 0600);
    check(fd_ >= 0, "a file can be made in --dir (with O_DIRECT too)");
    check(posix_fallocate(fd_, 0, bytes) == 0, "--dir has room for --mib");
  }
  ~File() {
    close(fd_);
    unlink(path_.c_str());
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  void write(const char* from, int64_t bytes, int64_t at) const {
    check(pwrite(fd_, from, static_cast<size_t>(bytes), at) == bytes, "a block is written whole");
  }
  void read(char* to, int64_t bytes, int64_t at) const {
    check(pread(fd_, to, static_cast<size_t>(bytes), at) == bytes, "a block is read whole");
  }
  void expect(int64_t bytes, int64_t at) const { posix_fadvise(fd_, at, bytes, POSIX_FADV_WILLNEED); }
  void flush() const { check(fdatasync(fd_) == 0, "the file can be flushed"); }
  void forget() const {
    check(posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED) == 0, "the page cache lets go of it");
  }

 private:
  std::string path_;
  int fd_;
};

struct Rates {  // MB/s
  std::vector<double> write, flushed, in_order, in_order_told, random, random_told, again;
};

template <typename F>
double seconds(const F& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void measure(const std::string& dir, bool direct, int64_t total, int64_t block, char* memory, Rates& rates) {
  const File file(dir + "/quire_disk_io_bench", direct, total);
  std::vector<int64_t> order(static_cast<size_t>(total / block));
  std::iota(order.begin(), order.end(), 0);
  const auto mb = static_cast<double>(total / block * block) * 1e-6;
  const auto read_all = [&] {
    for (const int64_t i : order) file.read(memory, block, i * block);
  };
  const auto read_told = [&] {
    constexpr size_t kAhead = 4;
    for (size_t i = 0; i < order.size() + kAhead; ++i) {
      if (i < order.size()) file.expect(block, order[i] * block);
      if (i >= kAhead) file.read(memory, block, order[i - kAhead] * block);
    }
  };
  const auto cold = [&](const auto& read) {
    file.forget();
    return mb / seconds(read);
  };
  const double write_s = seconds([&] {
    for (const int64_t i : order) file.write(memory, block, i * block);
  });
  const double flush_s = seconds([&] { file.flush(); });
  rates.write.push_back(mb / write_s);
  rates.flushed.push_back(mb / (write_s + flush_s));
  rates.in_order.push_back(cold(read_all));
  if (!direct) rates.in_order_told.push_back(cold(read_told));
  Random random(1);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
  rates.random.push_back(cold(read_all));
  if (!direct) rates.random_told.push_back(cold(read_told));
  rates.again.push_back(mb / seconds(read_all));
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::ranges::sort(values);
  return values[values.size() / 2];
}

std::string to_json(const Rates& r) {
  return fmt::format(
      R"({{"write":{:.0f},"write_and_flush":{:.0f},"read_in_order":{:.0f},"told":{:.0f},"read_random":{:.0f},"random_told":{:.0f},"read_again":{:.0f}}})",
      median(r.write), median(r.flushed), median(r.in_order), median(r.in_order_told), median(r.random),
      median(r.random_told), median(r.again));
}

void compare(const std::string& dir, int64_t total, int64_t block, int rounds) {
  const std::unique_ptr<char, decltype(&std::free)> memory(
      static_cast<char*>(std::aligned_alloc(kPage, static_cast<size_t>(block))), &std::free);
  std::memset(memory.get(), 7, static_cast<size_t>(block));
  Rates cached, direct;
  for (int i = 0; i < rounds; ++i) {  // in turn, so that what else the disk does meets both
    measure(dir, false, total, block, memory.get(), cached);
    measure(dir, true, total, block, memory.get(), direct);
  }
  fmt::print(R"({{"block_bytes":{},"mib":{},"rounds":{},"page_cache_mb_per_s":{},"direct_mb_per_s":{}}})"
             "\n",
             block, total >> 20, rounds, to_json(cached), to_json(direct));
}

}  // namespace
}  // namespace quire

int main(int argc, char** argv) {
  std::string dir;
  int64_t mib = 192;
  int32_t rounds = 3;
  std::vector<int64_t> blocks;
  quire::read_bench_flags(
      argc, argv,
      "Writing and reading blocks of a file through the page cache and past it (O_DIRECT); one JSON line a "
      "size.",
      {{"--dir", &dir, 0, "on the disk in question; the file is made there and removed. Must be given"},
       {"--mib", &mib, 1, "size of the file"},
       {"--rounds", &rounds, 1, "of which the medians are printed"},
       {"--block-bytes", &blocks, 4096,
        "of a block, a multiple of 4096; again for more; none: 64 KiB to 2 MiB"}});
  if (blocks.empty()) blocks = {64 << 10, 192 << 10, 1 << 20, 2 << 20};
  if (dir.empty()) quire::bench_flags::refuse("--dir is not given");
  for (const int64_t block : blocks)
    if (block % 4096 != 0 || block > mib << 20)
      quire::bench_flags::refuse(fmt::format(
          "--block-bytes {}: a multiple of 4096 is wanted, at most the {} MiB of --mib", block, mib));
  for (const int64_t block : blocks) quire::compare(dir, mib << 20, block, rounds);
  return 0;
}
