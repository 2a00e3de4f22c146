#include <fmt/format.h>

#include <cstring>
#include <set>

#include "src/base/check.h"
#include "src/model/checkpoint.h"
#include "src/model/weight_source.h"

namespace quire {
namespace {

std::optional<std::string> slot_fault(const Checkpoint& checkpoint, const TensorSlot& slot) {
  const TensorView* t = checkpoint.find(slot.name);
  if (t == nullptr) return fmt::format("tensor `{}` {} is missing", slot.name, shape_text(slot.shape));
  if (t->shape != slot.shape) {
    return fmt::format("{}: tensor `{}` has shape {}; config.json wants {}", checkpoint.file_of(*t),
                       slot.name, shape_text(t->shape), shape_text(slot.shape));
  }
  if (!t->float_dtype()) {
    return fmt::format("{}: tensor `{}` has dtype {}; F32, BF16 or F16 is wanted", checkpoint.file_of(*t),
                       slot.name, t->dtype);
  }
  return {};
}

Status check_tensors(const Checkpoint& checkpoint, const ModelSpec& spec, const std::string& model_dir) {
  constexpr size_t kMaxListed = 5;
  std::vector<std::string> faults;
  std::set<std::string> wanted;
  for (const TensorSlot& slot : all_slots(spec)) {
    wanted.insert(slot.name);
    if (auto fault = slot_fault(checkpoint, slot)) faults.push_back(std::move(*fault));
  }
  for (const std::string& name : checkpoint.names()) {
    if (!wanted.contains(name) && !is_redundant_tensor(spec, name)) {
      faults.push_back(fmt::format("tensor `{}` has no place in a {}", name, spec.architecture));
    }
  }
  if (faults.empty()) return ok();
  const size_t more = faults.size() > kMaxListed ? faults.size() - kMaxListed : 0;
  faults.resize(std::min(faults.size(), kMaxListed));
  return invalid(fmt::format("{}: {}{}", model_dir, fmt::join(faults, "; "),
                             more > 0 ? fmt::format("; and {} more", more) : ""));
}

class CheckpointSource final : public WeightSource {
 public:
  explicit CheckpointSource(Checkpoint checkpoint) : checkpoint_(std::move(checkpoint)) {}

  DType dtype_of(const TensorSlot& slot) const override { return *view(slot).float_dtype(); }

  HostTensor tensor(const TensorSlot& slot) override {
    const TensorView& t = view(slot);
    HostTensor out;
    out.matrix = {.data = t.data, .dtype = dtype_of(slot), .rows = slot.rows(), .cols = slot.cols()};
    // The format does not promise alignment (writers usually pad the header); loads of elements do ask for
    // it.
    if (reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(bytes_of(out.matrix.dtype)) != 0) {
      out.storage = std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(t.bytes()));
      std::memcpy(out.storage.get(), t.data, static_cast<size_t>(t.bytes()));
      out.matrix.data = out.storage.get();
    }
    return out;
  }

 private:
  const TensorView& view(const TensorSlot& slot) const {
    const TensorView* t = checkpoint_.find(slot.name);
    check(t != nullptr, "checkpoint: tensors are checked when it is opened");
    return *t;
  }

  Checkpoint checkpoint_;
};

}  // namespace

Result<std::unique_ptr<WeightSource>> open_checkpoint_source(const std::string& model_dir,
                                                             const ModelSpec& spec) {
  Result<Checkpoint> checkpoint = Checkpoint::open(model_dir);
  if (!checkpoint) return checkpoint.error();
  if (Status checked = check_tensors(*checkpoint, spec, model_dir); !checked) return checked.error();
  return std::unique_ptr<WeightSource>(std::make_unique<CheckpointSource>(std::move(*checkpoint)));
}

}  // namespace quire
