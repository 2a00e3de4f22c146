// A safetensors file, mapped: 8 bytes of header length (little endian), a JSON header, then the tensors'
// bytes. The header is checked whole before a tensor is handed out: sizes, bounds, overlaps, holes, names,
// dtypes. The format's own rules (github.com/huggingface/safetensors, "Format"): at most 100 MB of header, no
// duplicate names, no byte of the buffer left out. The file must not shrink while it is open.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quire/result.h"
#include "src/base/dtype.h"

namespace quire {

inline constexpr int64_t kMaxSafetensorsHeaderBytes = 100'000'000;

struct TensorView {
  std::string name;
  std::string dtype;                // the file's word: "F32", "BF16", "I64", ...
  std::vector<int64_t> shape;       // empty: a scalar
  int64_t begin = 0, end = 0;       // bytes, from the end of the header
  const std::byte* data = nullptr;  // in the mapping; not necessarily aligned

  int64_t bytes() const { return end - begin; }
  std::optional<DType> float_dtype() const;  // F32, F16, BF16; others are not weights
};
std::string shape_text(std::span<const int64_t> shape);  // "[320, 64]"

// The header alone, as text: tensors sorted by offset. `buffer_bytes` follow it; `file` is for messages.
Result<std::vector<TensorView>> parse_safetensors_header(std::string_view header, int64_t buffer_bytes,
                                                         const std::string& file);

// A read-only mapping of a file; move-only.
class FileMapping {
 public:
  static Result<FileMapping> open(const std::string& path);
  FileMapping() = default;
  FileMapping(FileMapping&& other) noexcept { *this = std::move(other); }
  FileMapping& operator=(FileMapping&& other) noexcept;
  ~FileMapping();

  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

class SafetensorsFile {
 public:
  static Result<SafetensorsFile> open(const std::string& path);
  const std::vector<TensorView>& tensors() const { return tensors_; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  FileMapping mapping_;
  std::vector<TensorView> tensors_;
};

}  // namespace quire
