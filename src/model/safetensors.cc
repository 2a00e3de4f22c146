#include "src/model/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "src/base/json_text.h"

namespace quire {
namespace {

using nlohmann::json;

constexpr size_t kMaxNameBytes = 1024;
constexpr size_t kMaxDimensions = 8;
constexpr size_t kMaxShownDigits = 40;

// Bits of an element; 0 for a word that the format does not know.
int64_t dtype_bits(std::string_view dtype) {
  constexpr std::array<std::pair<std::string_view, int64_t>, 16> kBits = {{{"F32", 32},
                                                                           {"F16", 16},
                                                                           {"BF16", 16},
                                                                           {"F64", 64},
                                                                           {"I64", 64},
                                                                           {"I32", 32},
                                                                           {"I16", 16},
                                                                           {"I8", 8},
                                                                           {"U64", 64},
                                                                           {"U32", 32},
                                                                           {"U16", 16},
                                                                           {"U8", 8},
                                                                           {"BOOL", 8},
                                                                           {"F8_E4M3", 8},
                                                                           {"F8_E5M2", 8},
                                                                           {"F8_E8M0", 8}}};
  for (const auto& [word, bits] : kBits) {
    if (word == dtype) return bits;
  }
  return 0;
}

// Takes the header in one pass, without a tree of it: a 100 MB header would otherwise cost gigabytes.
class HeaderReader {
 public:
  explicit HeaderReader(std::string file) : file_(std::move(file)) {}

  bool null() { return fail_value("null"); }
  bool boolean(bool) { return fail_value("a boolean"); }
  // nlohmann also takes an integer of more than 64 bits for a fraction.
  bool number_float(double, const std::string& text) {
    if (text.find_first_of(".eE") != text.npos) return fail_value("a fraction");
    const std::string shown = text.size() <= kMaxShownDigits ? text : text.substr(0, kMaxShownDigits) + "...";
    if (text.front() == '-') return fail_value(fmt::format("{}, a negative number", shown));
    return takes_number() ? fail_too_large(shown) : fail_value("a number");
  }
  bool binary(std::vector<uint8_t>&) { return fail_value("bytes"); }
  bool number_integer(int64_t value) { return fail_value(fmt::format("{}, a negative number", value)); }
  bool number_unsigned(uint64_t value) {
    if (!takes_number()) return fail_value("a number");
    if (value > static_cast<uint64_t>(INT64_MAX)) return fail_too_large(fmt::to_string(value));
    std::vector<int64_t>& list = field_ == "shape" ? current_.shape : offsets_;
    if (list.size() == kMaxDimensions) return fail_value(fmt::format("more than {} numbers", kMaxDimensions));
    list.push_back(static_cast<int64_t>(value));
    return true;
  }
  bool string(std::string& value) {
    if (in_metadata_ && depth_ == 2) return true;
    if (depth_ != 2 || in_list_ || field_ != "dtype") return fail_value("a string");
    current_.dtype = value;
    return true;
  }
  bool start_object(size_t) {
    if (++depth_ > 2 || in_list_) return fail_value("an object");
    if (depth_ == 2 && !in_metadata_) begin_tensor();
    return true;
  }
  bool end_object() {
    const bool tensor_ends = depth_ == 2 && !in_metadata_;
    --depth_;
    in_metadata_ = false;
    return !tensor_ends || end_tensor();
  }
  bool start_array(size_t) {
    if (depth_ != 2 || in_list_ || in_metadata_ || (field_ != "shape" && field_ != "data_offsets"))
      return fail_value("a list");
    in_list_ = true;
    return true;
  }
  bool end_array() {
    in_list_ = false;
    return true;
  }
  bool key(std::string& name) { return depth_ == 1 ? top_key(name) : in_metadata_ || field_key(name); }
  bool parse_error(size_t byte, const std::string&, const json::exception&) {
    return fail(fmt::format("not valid JSON at byte {}", byte));
  }

  std::vector<TensorView>& tensors() { return tensors_; }
  const std::optional<Error>& fault() const { return fault_; }
  bool fail(const std::string& message) {
    if (!fault_) fault_ = invalid(fmt::format("{}: safetensors header: {}", file_, message));
    return false;
  }

 private:
  bool takes_number() const { return depth_ == 2 && in_list_ && !in_metadata_; }
  bool fail_too_large(std::string_view number) {
    return fail(fmt::format("tensor `{}`, field `{}`: {} is too large; the limit is {}", current_.name,
                            field_, number, INT64_MAX));
  }
  bool fail_value(std::string_view what) {
    if (in_metadata_) return fail(fmt::format("`__metadata__`: {} is not allowed there", what));
    if (field_.empty())
      return fail(fmt::format("tensor `{}`: {} is not allowed in place of an object", current_.name, what));
    return fail(fmt::format("tensor `{}`, field `{}`: {} is not allowed there", current_.name, field_, what));
  }
  bool top_key(const std::string& name) {
    in_metadata_ = name == "__metadata__";
    current_ = TensorView{.name = name};
    field_.clear();
    if (name.size() > kMaxNameBytes) {
      return fail(fmt::format("a tensor's name has {} bytes; the limit is {}", name.size(), kMaxNameBytes));
    }
    if (!names_.insert(name).second) return fail(fmt::format("tensor `{}` is there twice", name));
    return true;
  }
  void begin_tensor() {
    offsets_.clear();
    fields_seen_ = 0;
  }
  bool field_key(const std::string& name) {
    const unsigned bit = name == "dtype" ? 1 : name == "shape" ? 2 : name == "data_offsets" ? 4 : 0;
    field_ = name;
    if (bit == 0) return fail(fmt::format("tensor `{}`: unknown field `{}`", current_.name, name));
    if ((fields_seen_ & bit) != 0)
      return fail(fmt::format("tensor `{}`: field `{}` is there twice", current_.name, name));
    fields_seen_ |= bit;
    return true;
  }
  bool end_tensor() {
    if (fields_seen_ != 7)
      return fail(fmt::format("tensor `{}`: dtype, shape and data_offsets are wanted", current_.name));
    if (offsets_.size() != 2)
      return fail(fmt::format("tensor `{}`: data_offsets has {} numbers; 2 are wanted", current_.name,
                              offsets_.size()));
    current_.begin = offsets_[0];
    current_.end = offsets_[1];
    tensors_.push_back(current_);
    return true;
  }

  std::string file_;
  std::vector<TensorView> tensors_;
  std::unordered_set<std::string> names_;
  TensorView current_;
  std::string field_;
  std::vector<int64_t> offsets_;
  unsigned fields_seen_ = 0;  // 1 dtype, 2 shape, 4 data_offsets
  int depth_ = 0;
  bool in_list_ = false, in_metadata_ = false;
  std::optional<Error> fault_;
};

// Bytes of a shape, or nothing when the product does not fit 63 bits.
std::optional<int64_t> bytes_of_shape(std::span<const int64_t> shape, int64_t bits) {
  int64_t product = bits;
  for (const int64_t n : shape) {
    if (__builtin_mul_overflow(product, n, &product)) return {};
  }
  return product % 8 == 0 ? std::optional<int64_t>(product / 8) : std::nullopt;
}

std::optional<std::string> tensor_fault(const TensorView& t, int64_t buffer_bytes) {
  const int64_t bits = dtype_bits(t.dtype);
  if (bits == 0) return fmt::format("tensor `{}`: unknown dtype `{}`", t.name, t.dtype);
  if (t.end < t.begin)
    return fmt::format("tensor `{}`: data_offsets [{}, {}] end before they begin", t.name, t.begin, t.end);
  if (t.end > buffer_bytes) {
    return fmt::format("tensor `{}`: data_offsets end at {}; the file has {} bytes of tensors", t.name, t.end,
                       buffer_bytes);
  }
  const std::optional<int64_t> bytes = bytes_of_shape(t.shape, bits);
  if (!bytes)
    return fmt::format("tensor `{}`: shape {} of {} has no size in bytes", t.name, shape_text(t.shape),
                       t.dtype);
  if (*bytes != t.bytes()) {
    return fmt::format("tensor `{}`: shape {} of {} takes {} bytes; data_offsets [{}, {}] give {}", t.name,
                       shape_text(t.shape), t.dtype, *bytes, t.begin, t.end, t.bytes());
  }
  return {};
}

// Sorted by offset, the tensors must follow one another from 0 to the last byte.
std::optional<std::string> layout_fault(const std::vector<TensorView>& tensors, int64_t buffer_bytes) {
  int64_t at = 0;
  std::string_view last = "the header";
  for (const TensorView& t : tensors) {
    if (t.begin < at)
      return fmt::format("tensor `{}` begins at {} and overlaps `{}`, which ends at {}", t.name, t.begin,
                         last, at);
    if (t.begin > at)
      return fmt::format("{} bytes between `{}` and tensor `{}` belong to no tensor", t.begin - at, last,
                         t.name);
    at = t.end;
    last = t.name;
  }
  if (at != buffer_bytes)
    return fmt::format("{} bytes after the last tensor belong to no tensor", buffer_bytes - at);
  return {};
}

uint64_t header_length(std::span<const std::byte> file) {
  uint64_t length = 0;
  for (size_t i = 0; i < 8; ++i) length |= static_cast<uint64_t>(file[i]) << (8 * i);
  return length;
}

}  // namespace

std::optional<DType> TensorView::float_dtype() const {
  if (dtype == "F32") return DType::kF32;
  if (dtype == "F16") return DType::kF16;
  if (dtype == "BF16") return DType::kBF16;
  return {};
}

std::string shape_text(std::span<const int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

Result<std::vector<TensorView>> parse_safetensors_header(std::string_view header, int64_t buffer_bytes,
                                                         const std::string& file) {
  HeaderReader reader(file);
  if (header.empty() || header.front() != '{')
    reader.fail("it does not begin with an object");
  else if (const auto at = byte_of_nul(header))
    reader.fail(fmt::format("not valid JSON at byte {}, a NUL byte", *at));
  else
    json::sax_parse(header.begin(), header.end(), &reader);
  if (reader.fault()) return *reader.fault();
  std::vector<TensorView>& tensors = reader.tensors();
  std::sort(tensors.begin(), tensors.end(), [](const TensorView& a, const TensorView& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  for (const TensorView& t : tensors) {
    if (const auto fault = tensor_fault(t, buffer_bytes)) reader.fail(*fault);
  }
  if (const auto fault = layout_fault(tensors, buffer_bytes)) reader.fail(*fault);
  if (reader.fault()) return *reader.fault();
  return std::move(tensors);
}

Result<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  Result<FileMapping> mapping = FileMapping::open(path);
  if (!mapping) return mapping.error();
  const std::span<const std::byte> bytes = mapping->bytes();
  const auto size = static_cast<int64_t>(bytes.size());
  if (size < 8) return invalid(fmt::format("{}: {} bytes; a safetensors file has at least 8", path, size));
  const uint64_t stated_length = header_length(bytes);
  if (stated_length > static_cast<uint64_t>(kMaxSafetensorsHeaderBytes)) {
    return invalid(fmt::format("{}: safetensors header of {} bytes; the limit is {}", path, stated_length,
                               kMaxSafetensorsHeaderBytes));
  }
  const auto length = static_cast<int64_t>(stated_length);
  if (length > size - 8) {
    return invalid(
        fmt::format("{}: safetensors header of {} bytes, but only {} bytes follow: the file is truncated",
                    path, length, size - 8));
  }
  const std::string_view header(reinterpret_cast<const char*>(bytes.data()) + 8, static_cast<size_t>(length));
  Result<std::vector<TensorView>> tensors = parse_safetensors_header(header, size - 8 - length, path);
  if (!tensors) return tensors.error();
  SafetensorsFile file;
  for (TensorView& t : *tensors) t.data = bytes.data() + 8 + length + t.begin;
  file.path_ = path;
  file.mapping_ = std::move(*mapping);
  file.tensors_ = std::move(*tensors);
  return file;
}

}  // namespace quire
