// The ops of a step, as a seam between the forward pass and a back end (kernels/cpu, kernels/cuda, kernels/reference).
// Rules for every op: pointers are device pointers of the back end's own device; inputs and outputs do not alias unless the
// op says so; empty work returns at once; nothing allocates, synchronises or reads device memory on the host, so a graph can
// capture any sequence of ops. A wrong shape is our own fault: check() names the tensor, the dimension and both values.
// "act" is the back end's activation type (KernelOptions::activations): f32, bf16 or f16. Sums are float32.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/kv_layout.h"
#include "kernels/retention.h"
#include "kernels/sampling.h"
#include "kernels/shared_prefixes.h"
#include "quire/result.h"
#include "src/base/check.h"
#include "src/base/dtype.h"
#include "src/device/device.h"

namespace quire {

struct KernelOptions {
  DType activations = DType::kF32;
  int threads = 1;  // CPU
};

// ---- embedding: out[i] = table[ids[i]] -------------------------------------------------------------------------------
struct EmbedParams {
  const int32_t* ids = nullptr;  // [rows]; every id in [0, vocab)
  const void* table = nullptr;   // [vocab, hidden], table_dtype
  DType table_dtype = DType::kF32;
  void* out = nullptr;  // [rows, hidden] act
  int64_t rows = 0, hidden = 0;
};

// ---- residual += delta (if any); out = residual / rms(residual) * weight -----------------------------------------------
struct AddRmsNormParams {
  void* residual = nullptr;       // [rows, hidden] act, updated in place when delta is given
  const void* delta = nullptr;    // [rows, hidden] act, or null
  const float* weight = nullptr;  // [hidden]
  void* out = nullptr;            // [rows, hidden] act
  // null, or [rows]: row i of out reads row row_index[i] of residual and delta and
  // writes nothing back (the final norm gathers the rows whose logits are wanted)
  const int32_t* row_index = nullptr;
  float eps = 1e-5f;
  int64_t rows = 0, hidden = 0;
};

// ---- out[m, n] = sum_k x[m, k] * w[n, k] (+ bias[n]) ----------------------------------------------------------------------
// A weight as a back end likes it: packed once at load.
class MatmulWeight {
 public:
  virtual ~MatmulWeight() = default;
  int64_t rows = 0;  // N, output features
  int64_t cols = 0;  // K, input features
  // 0: rows lie as given. Else the two parts' rows alternate in groups of so many: a gate's, then an up's (pack_gate_up).
  int32_t gate_group = 0;
};
struct HostMatrix {  // one piece of a weight in host memory, row-major [rows, cols]
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0, cols = 0;
};
struct MatmulParams {
  const void* x = nullptr;               // [m, k] act
  const MatmulWeight* weight = nullptr;  // [n, k]
  const float* bias = nullptr;           // [n] or null
  void* out = nullptr;                   // [m, n] act, or float32 when out_f32
  bool out_f32 = false;                  // logits
  int64_t m = 0;
};

// ---- a product with what stands before and after it: a decode step's layer is four of these and its attention ----------------
//   x' = x, or x / rms(x) * norm_weight                        as add_rms_norm without delta
//   p = x' w^T (+ bias)                                        as matmul
//   out = p; or residual += p; or out = silu(gate) * up of p   as add_rms_norm's delta; as silu_mul
// with the same roundings as those ops: only the order of sums may differ.
struct FusedMatmulParams {
  const void* x = nullptr;             // [m, k] act
  const float* norm_weight = nullptr;  // [k], or null: x as it is
  float norm_eps = 0;
  void* normed = nullptr;                // [m, k] act, scratch; wanted with norm_weight
  const MatmulWeight* weight = nullptr;  // [n, k]
  const float* bias = nullptr;           // [n] or null, in the order of the weight's rows
  void* residual = nullptr;              // [m, n] act, updated in place, or null
  // the weight comes from pack_gate_up and alternates; out is [m, n / 2]
  bool gated = false;
  void* out = nullptr;  // [m, n] act, or float32 when out_f32; null with residual
  bool out_f32 = false;
  int64_t m = 0;  // at most fused_rows(); gated without a norm also what gates() takes
};

// ---- rotary positions, q/k norms, and the write of K and V into their blocks ---------------------------------------------
struct RopeKvWriteParams {
  // [rows, (num_q_heads + 2 * num_kv_heads) * head_dim] act: q | k | v; q is rotated in place
  void* qkv = nullptr;
  void* q_out = nullptr;  // [rows, num_q_heads, head_dim] act; may be null: then q stays in qkv
  // q rotated at a second position, for AttentionParams::q_sink, or both null. Row stride as qkv's.
  // [rows, (num_q_heads + 2 * num_kv_heads) * head_dim] act; only the q part is written
  void* q_sink_out = nullptr;
  const int32_t* sink_positions = nullptr;  // [rows], each in [0, max_positions)
  const int32_t* positions = nullptr;       // [rows] true positions
  // [rows * slot_stride]: block * block_tokens + offset; -1 = padding, skipped
  const int64_t* slots = nullptr;
  // slots per row: 1 (all heads at one slot) or num_kv_heads (each head at its own)
  int64_t slot_stride = 1;
  // [max_positions, head_dim]: cos of the rotary_dim/2 pairs, then sin; half-split pairing
  const float* cos_sin = nullptr;
  int32_t rotary_dim = 0;         // <= head_dim; the rest is not rotated
  const float* q_norm = nullptr;  // [head_dim] RMSNorm weights (Qwen3), or null
  const float* k_norm = nullptr;  // [head_dim], or null
  float norm_eps = 1e-6f;
  // base of the block pool, already offset to this layer (layer * layer_stride)
  char* arena = nullptr;
  // .num_kv_heads = 1 where blocks hold one head each (then slot_stride = num_kv_heads)
  KvLayout layout;
  int32_t num_q_heads = 0, num_kv_heads = 0, head_dim = 0;
  int64_t rows = 0;
};

// ---- attention over paged lists, prefill and decode in one call ------------------------------------------------------------
// Row r of sequence s stands at list index length[s] - num_rows(s) + r and sees list slots j with
//   j <= index and (window == 0 or j > index - window or j < sink_slots[s]),
// where window is the smaller of the layer's and the sequence's own, 0 being none.
// Lists keep slots in position order while more than one row is run; a single row sees every slot of its list.
struct AttentionParams {
  const void* q = nullptr;      // act; row stride q_stride elements, head h at h * head_dim
  int64_t q_stride = 0;         // elements from row to row
  void* out = nullptr;          // [rows, num_q_heads, head_dim] act
  const char* arena = nullptr;  // base of the block pool, offset to this layer
  KvLayout layout;
  int32_t num_q_heads = 0, num_kv_heads = 0, head_dim = 0;
  float scale = 0;                   // multiplies q . k
  float soft_cap = 0;                // 0 = none; else logits = cap * tanh(logits / cap)
  int32_t window = 0;                // 0 = none
  const int32_t* windows = nullptr;  // [num_sequences] a window of each sequence's own (0 = none), or null
  // [num_q_heads] a logit per head that takes probability and gives no value, or null
  const float* sinks = nullptr;

  int32_t num_sequences = 0;
  int64_t rows = 0;                      // total query rows = query_start[num_sequences]
  int32_t max_rows = 0;                  // most rows of one sequence (1: a pure decode step)
  int32_t max_length = 0;                // longest list
  const int32_t* query_start = nullptr;  // [num_sequences + 1]
  // [num_sequences * length_stride]: live slots, this step's rows included
  const int32_t* lengths = nullptr;
  // list (s, h) at block_table + s * table_stride + h * head_table_stride
  const int32_t* block_table = nullptr;
  int64_t table_stride = 0;
  int64_t head_table_stride = 0;  // 0: one list for all kv heads
  // list (s, h): lengths[s * length_stride + h * head_length_stride]
  int64_t length_stride = 1;
  int64_t head_length_stride = 0;

  // Every list's slots but the last num_rows(s) were written before this step began, so a kernel may fetch them while the one
  // before it still runs. False where a policy lets a new token overwrite an old slot.
  bool early_fetch = false;

  // How the work of one-row sequences is shared out: plan_attention() writes it, attention() reads it, which may then differ in q, out,
  // arena and side outputs alone. A kernel must lie between the two. Null: attention() makes one for itself.
  void* plan = nullptr;

  // The first sink_slots[s] slots of a list are seen whatever the window, through a second rotation of q (Xiao et al. 2023, Efficient
  // Streaming Language Models with Attention Sinks, 3.2). Both or neither.
  const void* q_sink = nullptr;         // as q
  const int32_t* sink_slots = nullptr;  // [num_sequences]

  SharedPrefixes prefixes;

  // Side outputs, each null unless asked for.
  float* lse = nullptr;  // [rows, num_q_heads] log-sum-exp of the scaled logits (sinks left out)
  // [num_sequences, num_q_heads, row_logits_stride] scaled logits of each sequence's LAST row by list slot. Of slots that the row
  // does not see: minus infinity from the reference and the CPU; the CUDA side leaves them as they were.
  float* row_logits = nullptr;
  int64_t row_logits_stride = 0;
  // Or, in the place of the stride, [num_sequences] where each sequence's [num_q_heads, length] begins; < 0: not wanted. Only with
  // one list per sequence, and on the CUDA side; so column_sums_start.
  const int64_t* row_logits_start = nullptr;
  // [num_sequences, num_q_heads, column_sums_stride] += sum over this call's rows of the probability of each slot
  float* column_sums = nullptr;
  int64_t column_sums_stride = 0;
  const int64_t* column_sums_start = nullptr;
  // [rows, num_q_heads, num_segments, head_dim + 2]: what a row sees of each run of segment_slots of its list's slots, not merged: values
  // weighed by exp(logit - m) and summed, then m, the largest scaled logit, then the sum of exp(logit - m). Of a run of which it sees
  // nothing: 0, minus infinity, 0. Sinks are left out; shared prefixes are part of their lists.
  float* partials = nullptr;
  int32_t segment_slots = 0, num_segments = 0;  // together at least max_length
};

// ---- out = silu(gate) * up --------------------------------------------------------------------------------------------------
struct SiluMulParams {
  // [rows, 2 * width] act: gate | up, or alternating as MatmulWeight::gate_group says
  const void* gate_up = nullptr;
  int32_t gate_group = 0;
  void* out = nullptr;  // [rows, width] act
  int64_t rows = 0, width = 0;
};

// ---- the cut of a list: kept tokens move into fresh blocks (TOVA, H2O at the end of a prompt) ------------------------------------
// Slot i of head h in layer l of the target list takes K and V of slot source_slots[source_index(l, h) + i] of the source list. Blocks
// hold all layers and heads; no block is in both lists.
struct MoveSlotsParams {
  char* arena = nullptr;                   // base of the block pool
  KvLayout layout;                         // of all layers
  const int32_t* source_blocks = nullptr;  // block table of the list as it was
  const int32_t* target_blocks = nullptr;  // [ceil(count / block_tokens)]
  const int32_t* source_slots = nullptr;   // [num_layers, num_kv_heads / heads_per_list, source_stride]
  int64_t source_stride = 0;               // >= count
  int32_t heads_per_list = 1;              // neighbours that take the same slots
  int64_t count = 0;
  constexpr int64_t source_index(int64_t layer, int64_t head) const {
    return (layer * layout.num_kv_heads + head) / heads_per_list * source_stride;
  }
};

// ---- whole-block copies (copy-on-write) ----------------------------------------------------------------------------------------
struct BlockCopyParams {
  char* arena = nullptr;
  int64_t block_bytes = 0;
  const int32_t* pairs = nullptr;  // [count][2]: source, target; no target is a source of the same call
  int64_t count = 0;
};

// Bytes from one place to another by a kernel, either of them device memory or mapped host memory: within a captured
// graph it costs a kernel, where a copy by the device's copy engine between two graphs costs 20 us.
struct CopyBytesParams {
  const void* source = nullptr;  // aligned to 4, as the target
  void* target = nullptr;
  int64_t bytes = 0;  // a multiple of 4
};

// ---- what a step brings to the device: arrays as they are, and its block tables from those of the step before ------------------
// Row r of the tables `after` becomes the first `kept` entries of row `from` of the tables `before`, then `added` of the step's own.
// The rest of the row stays what it was.
struct TableRow {
  int32_t from = 0, kept = 0, added = 0;
  // Where the added ones begin in BringStepParams::entries; where one is added, as a list does that grows, the entry itself.
  int32_t entries = 0;
};

// ids[i] = tokens[source[i]] (0 for what is no token) where source[i] >= 0, else given[i]: a decode row takes what the step before sampled,
// without a detour over the host. Then histories[history_at[i]] = ids[i] where history_at[i] >= 0.
struct TakeSampledParams {
  int32_t* ids = nullptr;           // [rows]
  const int32_t* given = nullptr;   // [rows]
  const int32_t* source = nullptr;  // [rows]
  const int32_t* tokens = nullptr;  // of the step before
  int64_t rows = 0;
  int32_t* histories = nullptr;         // null: no sequence of the step keeps one here
  const int64_t* history_at = nullptr;  // [rows]
};
// What is only read may be mapped host memory, but for the tables before and the tokens: rows are read once, entries by those rows that add
// more than one.
struct BringStepParams {
  CopyBytesParams arrays;
  TakeSampledParams ids;
  const TableRow* rows = nullptr;    // [num_rows], aligned to 16
  const int32_t* entries = nullptr;  // of all rows
  const int32_t* before = nullptr;   // [rows, stride]
  int32_t* after = nullptr;          // [rows, stride]; not `before`
  int64_t stride = 0, num_rows = 0;
};

// The largest call of an op that needs scratch.
struct ScratchLimits {
  int64_t max_rows = 0, max_sequences = 0;
  int32_t max_q_heads = 0, max_head_dim = 0, max_length = 0;
};

// Which products a step makes of many rows.
struct TuneRequest {
  std::span<const MatmulWeight* const> weights;  // in a step's order
  const MatmulWeight* output = nullptr;          // gives logits: float32
  int64_t max_rows = 0, max_output_rows = 0;
  int64_t budget_ms = 0;  // 0: nothing is timed
};

// The seam. One instance belongs to one executor thread.
class Kernels {
 public:
  virtual ~Kernels() = default;
  virtual const KernelOptions& options() const = 0;
  virtual Device& device() = 0;

  // Rows of `parts` one under another become one weight (q, k, v; gate, up). All parts have the same cols.
  virtual Result<std::unique_ptr<MatmulWeight>> pack(std::span<const HostMatrix> parts) = 0;
  // The same for a gate and its up matrix, of equal rows, in the order that this back end likes: the weight's gate_group says which.
  virtual Result<std::unique_ptr<MatmulWeight>> pack_gate_up(const HostMatrix& gate, const HostMatrix& up) {
    const HostMatrix parts[] = {gate, up};
    return pack(parts);
  }
  // Once, with the weights in place and before the first step: a back end that multiplies through a library times the library's ways to make
  // these products, within the budget, and keeps to the best. They differ in the order of sums, so in last bits.
  virtual void tune(const TuneRequest&) {}
  // Allocates, once, the scratch of any op within these limits, and what that takes.
  virtual Status reserve(const ScratchLimits& limits) = 0;
  virtual int64_t scratch_bytes(const ScratchLimits& limits) const = 0;

  virtual void embed(const EmbedParams& p) = 0;
  virtual void add_rms_norm(const AddRmsNormParams& p) = 0;
  virtual void matmul(const MatmulParams& p) = 0;
  virtual void rope_kv_write(const RopeKvWriteParams& p) = 0;
  virtual void attention(const AttentionParams& p) = 0;
  // What is the same in all layers of a step that read their lists alike, found once (AttentionParams::plan), in so many bytes of device
  // memory. 0: this back end has no use for it.
  virtual int64_t attention_plan_bytes(const ScratchLimits&) const { return 0; }
  virtual void plan_attention(const AttentionParams&) {
    check_failed("this back end makes no plan of attention", __FILE__, __LINE__);
  }
  virtual void silu_mul(const SiluMulParams& p) = 0;
  virtual void copy_blocks(const BlockCopyParams& p) = 0;
  virtual void move_slots(const MoveSlotsParams& p) = 0;

  // Retention by scores on the device: the CUDA back end. Elsewhere the host decides (src/execute/retention_runner.h).
  virtual void retention_slots(const RetentionSlotsParams&) {
    check_failed("this back end leaves retention to the host", __FILE__, __LINE__);
  }
  virtual void retention_scores(const RetentionScoresParams&) {
    check_failed("this back end leaves retention to the host", __FILE__, __LINE__);
  }

  // Into how many parts to cut each shared prefix of a step (SharedPrefixes::num_splits); 0: this back end would read every list by
  // itself, so there is nothing to gain from finding them.
  virtual int32_t prefix_splits(const PrefixCounts&, int32_t /*num_q_heads*/, int32_t /*num_kv_heads*/,
                                int32_t /*head_dim*/) const {
    return 0;
  }

  // Steps of at most so many rows go through fused_matmul; 0: the back end has none.
  virtual int64_t fused_rows() const { return 0; }
  // Steps of more rows: whether gate and up are faster gated by fused_matmul, x as it is, than by matmul and silu_mul.
  virtual bool gates(const MatmulWeight& /*gate_up*/, int64_t /*rows*/) const { return false; }
  virtual void fused_matmul(const FusedMatmulParams&) {
    check_failed("this back end fuses nothing", __FILE__, __LINE__);
  }

  // Sampling on the device: the CUDA back end. A back end of 0 bytes samples on the host (src/sample) and is never asked.
  virtual int64_t sample_space_bytes() const { return 0; }
  virtual void sample(const SampleParams&) {
    check_failed("this back end samples on the host", __FILE__, __LINE__);
  }
  virtual void edit_logits(const EditLogitsParams&) {
    check_failed("this back end samples on the host", __FILE__, __LINE__);
  }
  virtual void report_logprobs(const ReportLogprobsParams&) {
    check_failed("this back end samples on the host", __FILE__, __LINE__);
  }
  // For the same back ends.
  virtual void copy_bytes(const CopyBytesParams&) {
    check_failed("this back end has no device memory", __FILE__, __LINE__);
  }
  virtual void bring_step(const BringStepParams&) {
    check_failed("this back end has no device memory", __FILE__, __LINE__);
  }
};

// Activations f32 or bf16. threads = 0: all cores this process may use.
Result<std::unique_ptr<Kernels>> make_cpu_kernels(Device& device, const KernelOptions& options);
// Plain loops, sums in float64: the truth for tests. Activations f32. Weights of any dtype.
std::unique_ptr<Kernels> make_reference_kernels(Device& device);
// kUnavailable in a build without CUDA.
Result<std::unique_ptr<Kernels>> make_cuda_kernels(Device& device, const KernelOptions& options);

}  // namespace quire
