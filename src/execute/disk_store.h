// The disk tier's bytes: two files in a directory that one process has at a time. `quire-kv.blocks` holds whole
// blocks, all layers in one write, each at its place; `quire-kv.index` says whose they are and what each place
// holds (disk_record.h). A block is written before its record, and what is read is checked against the record,
// the serial that the reader expects and the checksum: a crash between the two, or a disk that lies, is a miss.
// Nothing is flushed for that reason but at the end.
//
// Reads and writes from any thread, of different places at a time: whoever names a place holds it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "quire/result.h"
#include "src/cache/tier.h"

namespace quire {

struct DiskSetup {
  std::string dir;
  int64_t bytes = 0;        // of blocks; the index takes 2 KiB a block beside them
  int64_t block_bytes = 0;  // of one block
  std::string identity;     // of all that the bytes depend on but tokens and namespace
};

// Of the field disk_kv_dir or disk_kv_bytes, with the directory in every message: it is not there or cannot be
// written, another process has it, it holds blocks of another identity (both in the message) or format version,
// it has less room than asked for. Files that were made for one that is not opened are gone again.
class DiskStore {
 public:
  static Result<std::unique_ptr<DiskStore>> open(const DiskSetup& setup);
  ~DiskStore();
  DiskStore(const DiskStore&) = delete;
  DiskStore& operator=(const DiskStore&) = delete;

  int64_t num_blocks() const { return num_blocks_; }
  std::vector<StoredBlock> take_stored() { return std::move(stored_); }  // what was there when it was opened
  // Records that were neither of a block nor of an empty place then: erased and logged.
  int64_t num_damaged() const { return num_damaged_; }

  Status write(const StoredBlock& block, const char* data);
  // This place will be read soon, and not behind the one before it: the kernel reads it meanwhile.
  void expect(DiskBlockId place) const;
  enum class Read { kOk, kCorrupt, kFailed };
  // kCorrupt: what lies there is not what was written with that serial; its record is gone from now on, or cannot be erased,
  // and the first time is logged. `error` says what happened where it is not kOk.
  Read read(DiskBlockId place, uint64_t serial, char* data, std::string& error);

 private:
  explicit DiskStore(const DiskSetup& setup);
  Status open_files();
  Status lock_index();
  void remove_made();
  Status take_over();
  Status begin_index();
  Status make_room();
  Status scan();
  bool erase(DiskBlockId place);
  bool erase_damaged(int64_t place);
  void log_damaged() const;
  Error failed(const char* what, const char* field = "disk_kv_dir") const;
  std::string path_of(const char* name) const { return setup_.dir + "/" + name; }
  int64_t data_at(DiskBlockId place) const { return value(place) * stride_; }
  static int64_t record_at(DiskBlockId place);
  Error failed_copy(const char* what);  // failed(what); the first is logged
  Read corrupt(DiskBlockId place, const char* what, std::string& error);

  DiskSetup setup_;
  int64_t stride_;  // from one block to the next: whole pages of the disk
  int64_t num_blocks_;
  int index_ = -1, blocks_ = -1;                        // file descriptors
  bool index_is_new_ = false, blocks_are_new_ = false;  // made by this process, which has locked them
  std::vector<StoredBlock> stored_;
  int64_t num_damaged_ = 0, first_damaged_ = -1;
  std::atomic<bool> corruption_logged_{false}, failure_logged_{false};
};

}  // namespace quire
