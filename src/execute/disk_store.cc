#include "src/execute/disk_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "src/base/hash.h"
#include "src/base/log.h"
#include "src/execute/disk_record.h"

namespace quire {
namespace {

constexpr int64_t kDiskPage = 4096;
constexpr const char* kIndexFile = "quire-kv.index";
constexpr const char* kBlocksFile = "quire-kv.blocks";

// -1 with errno. Prompts can be told from what lies here, so nobody else may read it.
int open_or_make(const std::string& path, bool& is_new) {
  constexpr int kFlags = O_RDWR | O_CREAT | O_CLOEXEC;
  const int fd = ::open(path.c_str(), kFlags | O_EXCL, 0600);
  is_new = fd >= 0;
  return is_new || errno != EEXIST ? fd : ::open(path.c_str(), kFlags, 0600);
}

// Of the directory, for those who open it at once: nobody meets an index that is made and not locked yet, or that is just
// being removed. For a second at most: whoever holds it for longer is no opening of ours (flock DIR command).
class Turn {
 public:
  explicit Turn(const std::string& dir) : dir_(::open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    for (int tries = 0; tries < 1000 && dir_ >= 0; ++tries) {
      if (flock(dir_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  ~Turn() {
    if (dir_ >= 0) close(dir_);
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  int dir_;
};

// Not so once somebody has removed or replaced it.
bool is_file_at(int fd, const std::string& path) {
  struct stat mine{}, there{};
  return fstat(fd, &mine) == 0 && stat(path.c_str(), &there) == 0 && mine.st_dev == there.st_dev &&
         mine.st_ino == there.st_ino;
}

int64_t wall_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// All of it, or false with errno (0: the file ends before).
bool read_all(int fd, void* data, int64_t bytes, int64_t at) {
  for (auto* to = static_cast<char*>(data); bytes > 0;) {
    const ssize_t n = pread(fd, to, static_cast<size_t>(bytes), at);
    if (n < 0 && errno == EINTR) continue;
    if (n == 0) errno = 0;
    if (n <= 0) return false;
    to += n, at += n, bytes -= n;
  }
  return true;
}

bool write_all(int fd, const void* data, int64_t bytes, int64_t at) {
  for (const auto* from = static_cast<const char*>(data); bytes > 0;) {
    const ssize_t n = pwrite(fd, from, static_cast<size_t>(bytes), at);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    from += n, at += n, bytes -= n;
  }
  return true;
}

constexpr DiskRecord kNoRecord{};  // of an empty place

uint64_t checksum_of(const char* data, int64_t bytes) {
  return hash_bytes(std::as_bytes(std::span(data, static_cast<size_t>(bytes))));
}

// For a message; empty where files may have any size.
std::string file_size_note() {
  rlimit limit{};
  if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return "";
  return fmt::format("; RLIMIT_FSIZE (ulimit -f) allows {} bytes a file", limit.rlim_cur);
}

}  // namespace

int64_t DiskStore::record_at(DiskBlockId place) {
  return static_cast<int64_t>(kDiskHeaderBytes) + value(place) * static_cast<int64_t>(kDiskRecordBytes);
}

DiskStore::DiskStore(const DiskSetup& setup)
    : setup_(setup),
      stride_((setup.block_bytes + kDiskPage - 1) / kDiskPage * kDiskPage),
      num_blocks_(setup.bytes / stride_) {}

DiskStore::~DiskStore() {
  if (blocks_ >= 0) {
    fdatasync(blocks_);
    close(blocks_);
  }
  if (index_ >= 0) {
    fdatasync(index_);
    close(index_);  // and whoever waits for the directory may have it
  }
}

Error DiskStore::failed(const char* what, const char* field) const {
  const int number = errno;
  Error e = error(number == ENOENT                      ? Code::kNotFound
                  : number == EACCES                    ? Code::kPermissionDenied
                  : number == ENOSPC || number == EFBIG ? Code::kResourceExhausted
                                                        : Code::kUnavailable,
                  fmt::format("disk_kv_dir `{}`: {}: {}{}", setup_.dir, what, std::strerror(number),
                              number == EFBIG ? file_size_note() : ""));
  e.field = field;
  return e;
}

Result<std::unique_ptr<DiskStore>> DiskStore::open(const DiskSetup& setup) {
  std::unique_ptr<DiskStore> store(new DiskStore(setup));
  if (store->num_blocks_ < 1)
    return invalid(fmt::format("disk_kv_bytes is {}; one KV block takes {} bytes on disk (0 = no disk tier)",
                               setup.bytes, store->stride_),
                   "disk_kv_bytes");
  for (const auto step :
       {&DiskStore::open_files, &DiskStore::take_over, &DiskStore::make_room, &DiskStore::scan})
    if (Status s = (store.get()->*step)(); !s) {
      store->remove_made();
      return s.error();
    }
  return store;
}

void DiskStore::remove_made() {
  const Turn turn(setup_.dir);
  if (blocks_are_new_) unlink(path_of(kBlocksFile).c_str());
  if (index_is_new_) unlink(path_of(kIndexFile).c_str());
}

Status DiskStore::open_files() {
  struct stat facts{};
  if (stat(setup_.dir.c_str(), &facts) != 0) return failed("cannot be opened");
  if (!S_ISDIR(facts.st_mode))
    return invalid(fmt::format("disk_kv_dir `{}` is no directory", setup_.dir), "disk_kv_dir");
  if (Status s = lock_index(); !s) return s;
  blocks_ = open_or_make(path_of(kBlocksFile), blocks_are_new_);
  if (blocks_ < 0) return failed("quire-kv.blocks cannot be opened for writing");
  return ok();
}

// Again where the one who had it removed it between our opening and locking it (remove_made).
Status DiskStore::lock_index() {
  for (;;) {
    const Turn turn(setup_.dir);
    bool is_new = false;
    index_ = open_or_make(path_of(kIndexFile), is_new);
    if (index_ < 0) return failed("quire-kv.index cannot be opened for writing");
    if (flock(index_, LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) {
        index_is_new_ = is_new;  // nobody else can have locked it
        return failed("quire-kv.index cannot be locked");
      }
      Error e =
          error(Code::kUnavailable,
                fmt::format("disk_kv_dir `{}` is in use by another process; each server needs one of its own",
                            setup_.dir));
      e.field = "disk_kv_dir";
      return e;
    }
    if (is_file_at(index_, path_of(kIndexFile))) {
      index_is_new_ = is_new;
      return ok();
    }
    close(std::exchange(index_, -1));
  }
}

// The header is on the disk before the file grows: a power loss leaves an empty index or this model's.
Status DiskStore::begin_index() {
  const Result<DiskHeader> header = encode_disk_header(setup_.identity);
  if (!header) return header.error();
  if (!write_all(index_, header->data(), kDiskHeaderBytes, 0) || fdatasync(index_) != 0)
    return failed("quire-kv.index cannot be written");
  return ok();
}

// An empty index becomes this model's; any other must be. One whose header is all zeros never had a block: it is written
// first.
Status DiskStore::take_over() {
  struct stat facts{};
  if (fstat(index_, &facts) != 0) return failed("quire-kv.index cannot be read");
  DiskHeader header{};
  if (!read_all(index_, header.data(), std::min<int64_t>(facts.st_size, kDiskHeaderBytes), 0))
    return failed("quire-kv.index cannot be read");
  if (std::ranges::all_of(header, [](auto byte) { return byte == decltype(byte){}; })) return begin_index();
  const Result<std::string> identity = decode_disk_header(header);
  if (!identity)
    return invalid(fmt::format("disk_kv_dir `{}`: quire-kv.index {}; name another directory, or remove "
                               "quire-kv.index and quire-kv.blocks from this one",
                               setup_.dir, identity.error().message),
                   "disk_kv_dir");
  if (*identity != setup_.identity)
    return invalid(
        fmt::format(
            "disk_kv_dir `{}` holds KV blocks of another model or version: {}; this server runs: {}; empty "
            "the directory, or name another",
            setup_.dir, *identity, setup_.identity),
        "disk_kv_dir");
  return ok();
}

// The files get their whole size now, so that a full disk shows here and not in the middle of the night.
Status DiskStore::make_room() {
  struct stat before{}, index_before{};
  if (fstat(blocks_, &before) != 0 || fstat(index_, &index_before) != 0)
    return failed("the files cannot be read");
  const int64_t bytes = num_blocks_ * stride_;
  const int64_t index_bytes = record_at(DiskBlockId{static_cast<int32_t>(num_blocks_)});
  const int status = posix_fallocate(blocks_, 0, bytes);
  const int index_status = status != 0 ? status : posix_fallocate(index_, 0, index_bytes);
  if (index_status == 0) {
    if (ftruncate(blocks_, bytes) != 0 || ftruncate(index_, index_bytes) != 0)
      return failed("the files cannot be cut to their size");
    return ok();
  }
  if (ftruncate(blocks_, before.st_size) != 0 || ftruncate(index_, index_before.st_size) != 0)
    return failed("the files cannot be cut again");
  struct statvfs system{};
  const bool is_known = statvfs(setup_.dir.c_str(), &system) == 0;
  errno = index_status;
  Error e = failed("the files cannot be made", "disk_kv_bytes");
  if (is_known)
    e.message += fmt::format("; disk_kv_bytes is {}, and {} bytes are free there", setup_.bytes,
                             static_cast<int64_t>(system.f_bavail) * static_cast<int64_t>(system.f_frsize));
  return e;
}

Status DiskStore::scan() {
  constexpr int64_t kBatch = 1024;
  std::vector<DiskRecord> records(std::min(kBatch, num_blocks_));
  const int64_t now_ms = wall_ms();
  for (int64_t first = 0; first < num_blocks_; first += kBatch) {
    const int64_t count = std::min(kBatch, num_blocks_ - first);
    if (!read_all(index_, records.data(), count * static_cast<int64_t>(kDiskRecordBytes),
                  record_at(DiskBlockId{static_cast<int32_t>(first)})))
      return failed("quire-kv.index cannot be read");
    for (int64_t i = 0; i < count; ++i) {
      std::optional<StoredRecord> record = decode_disk_record(records[i], now_ms);
      if (record && value(record->block.block) == first + i)
        stored_.push_back(std::move(record->block));
      else if (records[i] != kNoRecord && !erase_damaged(first + i))
        return failed("a damaged record cannot be erased");
    }
  }
  if (num_damaged_ > 0) log_damaged();
  return ok();
}

// False with errno.
bool DiskStore::erase(DiskBlockId place) {
  return write_all(index_, kNoRecord.data(), kDiskRecordBytes, record_at(place));
}

// So that the next start does not count it again.
bool DiskStore::erase_damaged(int64_t place) {
  if (num_damaged_++ == 0) first_damaged_ = place;
  return erase(DiskBlockId{static_cast<int32_t>(place)});
}

void DiskStore::log_damaged() const {
  log_line(LogLevel::kWarn, "disk_kv_corrupt",
           {{"dir", setup_.dir},
            {"block", first_damaged_},
            {"what", "its record was damaged when the directory was opened"},
            {"records", num_damaged_}});
}

Status DiskStore::write(const StoredBlock& block, const char* data) {
  const Result<DiskRecord> record =
      encode_disk_record(block, checksum_of(data, setup_.block_bytes), wall_ms());
  if (!record) return record.error();
  // No restart would find what goes there, and nobody sees the room that it takes.
  for (const auto& [fd, name] : {std::pair{blocks_, kBlocksFile}, std::pair{index_, kIndexFile}})
    if (!is_file_at(fd, path_of(name))) {
      errno = ENOENT;
      return failed_copy("a block cannot be written since its files were removed or replaced");
    }
  if (!write_all(blocks_, data, setup_.block_bytes, data_at(block.block)))
    return failed_copy("a block cannot be written");
  if (!write_all(index_, record->data(), kDiskRecordBytes, record_at(block.block)))
    return failed_copy("a record cannot be written");
  return ok();
}

void DiskStore::expect(DiskBlockId place) const {
  posix_fadvise(blocks_, data_at(place), setup_.block_bytes,
                POSIX_FADV_WILLNEED);  // a hint: no failure counts
}

DiskStore::Read DiskStore::read(DiskBlockId place, uint64_t serial, char* data, std::string& error) {
  DiskRecord bytes;
  if (!read_all(index_, bytes.data(), kDiskRecordBytes, record_at(place)) ||
      !read_all(blocks_, data, setup_.block_bytes, data_at(place))) {
    if (errno == 0) return corrupt(place, "the file ends before it", error);
    error = failed_copy("a block cannot be read").message;
    return Read::kFailed;
  }
  const std::optional<StoredRecord> record = decode_disk_record(bytes, wall_ms());
  if (!record) return corrupt(place, "its record is damaged", error);
  if (record->block.serial != serial) return corrupt(place, "another block was written there", error);
  if (record->data_checksum != checksum_of(data, setup_.block_bytes))
    return corrupt(place, "its checksum is wrong", error);
  return Read::kOk;
}

Error DiskStore::failed_copy(const char* what) {
  Error e = failed(what);
  if (!failure_logged_.exchange(true))
    log_line(LogLevel::kWarn, "disk_kv_failed", {{"what", e.message}, {"further", "only counted"}});
  return e;
}

DiskStore::Read DiskStore::corrupt(DiskBlockId place, const char* what, std::string& error) {
  std::string told = what;
  if (!erase(place)) told += fmt::format("; its record cannot be erased: {}", std::strerror(errno));
  error = fmt::format("disk_kv_dir `{}`: block {} is corrupt: {}", setup_.dir, value(place), told);
  if (!corruption_logged_.exchange(true))
    log_line(LogLevel::kWarn, "disk_kv_corrupt",
             {{"dir", setup_.dir}, {"block", value(place)}, {"what", told}, {"further", "only counted"}});
  return Read::kCorrupt;
}

}  // namespace quire
