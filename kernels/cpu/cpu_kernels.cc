// The CPU back end: checks an op's shapes, cuts it among the threads, calls the instruction set's table.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "kernels/cpu/attention_partials.h"
#include "kernels/cpu/attention_runner.h"
#include "kernels/cpu/op_table.h"
#include "kernels/cpu/packed_weight.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/op_checks.h"

namespace quire {
namespace cpu {

const OpTable& op_table(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kPlain:
      return plain_ops();
    case CpuIsa::kAvx2:
      return avx2_ops();
    case CpuIsa::kAvx512:
      return avx512_ops();
    case CpuIsa::kAvx512Bf16:
      return avx512bf16_ops();
  }
  return plain_ops();
}

namespace {

constexpr int64_t kSumsFloats = kMatmulRows * kPanelColumns;
constexpr int64_t kWidenedFloats = kMaxTileRows * kMaxKBlock;
constexpr int64_t kSiluColumns = 2048;  // per piece: a few microseconds
constexpr int64_t kCopyBytes = 64 << 10;
constexpr int64_t kRowElements =
    4096;  // per piece of a row-wise op, so that small rows do not pay a region each

class CpuKernels final : public Kernels {
 public:
  CpuKernels(Device& device, const KernelOptions& options)
      : device_(device),
        options_(options),
        ops_(op_table(usable_isa())),
        pool_(options.threads),
        attention_(ops_, pool_, options.activations) {}

  const KernelOptions& options() const override { return options_; }
  Device& device() override { return device_; }

  Status start() {
    if (Status started = pool_.start(); !started) return started;
    const int64_t floats = (kSumsFloats + kWidenedFloats) * pool_.threads();
    Result<DeviceBuffer> scratch =
        device_.allocate(floats * static_cast<int64_t>(sizeof(float)), "matmul scratch");
    if (!scratch) return scratch.error();
    matmul_scratch_ = std::move(*scratch);
    return ok();
  }

  Result<std::unique_ptr<MatmulWeight>> pack(std::span<const HostMatrix> parts) override {
    return pack_weight(device_, pool_, parts);
  }

  Status reserve(const ScratchLimits& limits) override { return attention_.reserve(device_, limits); }
  int64_t scratch_bytes(const ScratchLimits& limits) const override {
    return attention_.scratch_bytes(limits);
  }

  void embed(const EmbedParams& p) override {
    if (p.rows == 0) return;
    check_op(p);
    for_rows(p.rows, p.hidden,
             [&](int64_t first, int64_t last) { ops_.embed(p, options_.activations, first, last); });
  }

  void add_rms_norm(const AddRmsNormParams& p) override {
    if (p.rows == 0) return;
    check_op(p);
    for_rows(p.rows, p.hidden,
             [&](int64_t first, int64_t last) { ops_.add_rms_norm(p, options_.activations, first, last); });
  }

  void matmul(const MatmulParams& p) override {
    if (p.m == 0) return;
    check_op(p);
    const auto& w = static_cast<const PackedWeight&>(*p.weight);
    const int64_t row_step = rows_per_piece(p.m, w.num_panels());
    const int64_t row_pieces = (p.m + row_step - 1) / row_step;
    pool_.run(w.num_panels() * row_pieces, [&](int64_t unit, int thread) {
      // Panels outside, so that a thread's share of a decode step is one run of memory.
      const int64_t panel = unit / row_pieces, first = unit % row_pieces * row_step;
      ops_.matmul(matmul_piece(p, w, panel, first, std::min(p.m, first + row_step), thread));
    });
  }

  void rope_kv_write(const RopeKvWriteParams& p) override {
    if (p.rows == 0) return;
    check_op(p);
    check_at_least("rope_kv_write, room for head_dim", kMaxHeadDim, p.head_dim);
    const int64_t row = (p.num_q_heads + 2 * p.num_kv_heads) * p.head_dim;
    for_rows(p.rows, row,
             [&](int64_t first, int64_t last) { ops_.rope_kv_write(p, options_.activations, first, last); });
  }

  void attention(const AttentionParams& p) override {
    if (p.rows == 0) return;
    check_op(p);
    attention_.run(p);
    if (p.partials != nullptr) cpu::write_attention_partials(p, options_.activations, pool_);
  }

  void silu_mul(const SiluMulParams& p) override {
    if (p.rows == 0) return;
    check_op(p);
    check_equal("silu_mul, gate_group of a back end that packs rows as given", p.gate_group, 0);
    const int64_t pieces = (p.width + kSiluColumns - 1) / kSiluColumns;
    pool_.run(p.rows * pieces, [&](int64_t unit, int) {
      const int64_t first = unit % pieces * kSiluColumns;
      ops_.silu_mul(p, options_.activations, unit / pieces, first, std::min(p.width, first + kSiluColumns));
    });
  }

  void copy_blocks(const BlockCopyParams& p) override {
    if (p.count == 0) return;
    check_op(p);
    const int64_t pieces = (p.block_bytes + kCopyBytes - 1) / kCopyBytes;
    pool_.run(p.count * pieces, [&](int64_t unit, int) {
      const int32_t* pair = p.pairs + unit / pieces * 2;
      const int64_t first = unit % pieces * kCopyBytes;
      std::memcpy(p.arena + pair[1] * p.block_bytes + first, p.arena + pair[0] * p.block_bytes + first,
                  static_cast<size_t>(std::min(kCopyBytes, p.block_bytes - first)));
    });
  }

  void move_slots(const MoveSlotsParams& p) override {
    if (p.count == 0) return;
    check_op(p);
    pool_.run(int64_t{p.layout.num_layers} * p.layout.num_kv_heads,
              [&](int64_t list, int) { move_list(p, list); });
  }

 private:
  // list = layer * num_kv_heads + head
  static void move_list(const MoveSlotsParams& p, int64_t list) {
    const KvLayout& layout = p.layout;
    const auto k_of = [&](const int32_t* blocks, int64_t slot) {
      return p.arena + blocks[slot / layout.block_tokens] * layout.block_bytes() +
             layout.k_offset(list / layout.num_kv_heads, list % layout.num_kv_heads,
                             slot % layout.block_tokens);
    };
    const auto bytes = static_cast<size_t>(layout.token_bytes());
    for (int64_t to = 0; to < p.count; ++to) {
      const char* source =
          k_of(p.source_blocks,
               p.source_slots[p.source_index(list / layout.num_kv_heads, list % layout.num_kv_heads) + to]);
      char* target = k_of(p.target_blocks, to);
      std::memcpy(target, source, bytes);
      std::memcpy(target + layout.kv_stride(), source + layout.kv_stride(), bytes);
    }
  }

  template <class Function>
  void for_rows(int64_t rows, int64_t row_elements, Function&& f) {
    const int64_t step = std::max<int64_t>(1, kRowElements / row_elements);
    pool_.run((rows + step - 1) / step,
              [&](int64_t unit, int) { f(unit * step, std::min(rows, (unit + 1) * step)); });
  }

  // All rows share a panel while it is in the cache, unless there are too few panels to keep the threads
  // busy.
  int64_t rows_per_piece(int64_t rows, int64_t panels) const {
    const int64_t wanted = (4 * pool_.threads() + panels - 1) / panels;
    const int64_t share = (rows + wanted - 1) / wanted;
    return std::clamp<int64_t>(share, std::min(rows, 4 * kMaxTileRows), kMatmulRows);
  }

  MatmulPiece matmul_piece(const MatmulParams& p, const PackedWeight& w, int64_t panel, int64_t first,
                           int64_t last, int thread) const {
    const DType out_dtype = p.out_f32 ? DType::kF32 : options_.activations;
    const int64_t column = panel * kPanelColumns;
    float* scratch = matmul_scratch_.as<float>() + thread * (kSumsFloats + kWidenedFloats);
    return {.x = static_cast<const char*>(p.x) + first * w.cols * bytes_of(options_.activations),
            .x_dtype = options_.activations,
            .panel = w.panels.as<char>() + panel * w.panel_bytes(),
            .weight_dtype = w.dtype,
            .k = w.cols,
            .rows = last - first,
            .columns = std::min(kPanelColumns, w.rows - column),
            .bias = p.bias == nullptr ? nullptr : p.bias + column,
            .out = static_cast<char*>(p.out) + (first * w.rows + column) * bytes_of(out_dtype),
            .out_dtype = out_dtype,
            .out_stride = w.rows,
            .sums = scratch,
            .widened = scratch + kSumsFloats};
  }

  Device& device_;
  KernelOptions options_;
  const OpTable& ops_;
  ThreadPool pool_;
  AttentionRunner attention_;
  DeviceBuffer matmul_scratch_;
};

}  // namespace
}  // namespace cpu

Result<std::unique_ptr<Kernels>> make_cpu_kernels(Device& device, const KernelOptions& options) {
  if (options.activations != DType::kF32 && options.activations != DType::kBF16) {
    return invalid(
        fmt::format("activations are {}; the CPU back end takes f32 or bf16", name_of(options.activations)));
  }
  if (options.threads < 0) {
    return invalid(fmt::format("threads is {}; it must be 0 (all cores) or more", options.threads));
  }
  KernelOptions chosen = options;
  if (chosen.threads == 0) chosen.threads = usable_cores();
  auto kernels = std::make_unique<cpu::CpuKernels>(device, chosen);
  if (Status s = kernels->start(); !s) return s.error();
  return std::unique_ptr<Kernels>(std::move(kernels));
}

}  // namespace quire
