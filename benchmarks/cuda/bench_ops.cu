// The kernels behind bench_ops.h; see there. The card's side by nvcc, the host's by bench_ops_on_host.cc.
#include "benchmarks/cuda/bench_ops.h"

#include "kernels/cuda/attention/attention.h"
#include "kernels/cuda/dispatch.h"

namespace quire::QUIRE_SIDE {
namespace {

using bench::AttentionChoice;

constexpr int kThreads = 512, kTileThreads = 128;
constexpr int64_t kMaxSequences = 512, kMaxRows = 8192;
constexpr int32_t kMaxQHeads = 64, kMaxHeadDim = 256;

// The threads of a grid, each with every stride-th element.
struct Spread {
  int64_t first, stride;
};
__device__ inline Spread spread() {
  return {int64_t{blockIdx.x} * blockDim.x + threadIdx.x, int64_t{gridDim.x} * blockDim.x};
}

struct FillParams {
  bf16* values;
  int64_t count;
  uint32_t seed;
};
__global__ void fill(FillParams p) {
  const Spread s = spread();
  for (int64_t i = s.first; i < p.count; i += s.stride) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u + static_cast<uint32_t>(i >> 32) * 40503u + p.seed;
    x ^= x >> 15;
    x *= 2246822519u;
    x ^= x >> 13;
    store(p.values + i,
          from_f32<bf16>(static_cast<float>(static_cast<int>(x & 0xffff) - 32768) * (2.0f / 32768)));
  }
}

__device__ inline uint32_t folded(uint4 v) {
  return v.x ^ v.y ^ v.z ^ v.w;
}

struct ReadParams {
  const uint4* data;
  int64_t count;
  uint32_t* sink;  // written if the sum is a certain value: it never is, but the compiler must keep the loads
};
constexpr uint32_t kUnlikely = 0x12345;
constexpr int kInFlight = 8;

// Bound: device memory, bytes = count * 16. 64 warps a multiprocessor, eight 16-byte loads a thread in
// flight.
__global__ void __launch_bounds__(kThreads) read_only(ReadParams p) {
  const Spread s = spread();
  uint32_t sum = 0;
  int64_t i = s.first;
  for (; i + (kInFlight - 1) * s.stride < p.count; i += kInFlight * s.stride) {
    uint4 v[kInFlight];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) v[k] = load_streaming(p.data + i + k * s.stride);
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) sum ^= folded(v[k]);
  }
  for (; i < p.count; i += s.stride) sum ^= folded(load_streaming(p.data + i));
  if (sum == kUnlikely) store(p.sink, sum);
}

struct CopyParams {
  uint4* target;
  const uint4* source;
  int64_t count;
};
// Bound: device memory, bytes = 2 * count * 16.
__global__ void __launch_bounds__(kThreads) copy(CopyParams p) {
  const Spread s = spread();
  int64_t i = s.first;
  for (; i + (kInFlight - 1) * s.stride < p.count; i += kInFlight * s.stride) {
    uint4 v[kInFlight];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) v[k] = load_streaming(p.source + i + k * s.stride);
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) store(p.target + i + k * s.stride, v[k]);
  }
  for (; i < p.count; i += s.stride) store(p.target + i, load_streaming(p.source + i));
}

struct TileParams {
  AttentionParams a;
  int splits = 1;
  uint32_t* sink = nullptr;
};
// A block of threads reads the tiles of one (sequence, KV head, part of its list), kAhead of K and of V at a
// time: what decode attention must move, and nothing else.
template <int kAhead>
__global__ void __launch_bounds__(kTileThreads) read_tiles(TileParams p) {
  const AttentionParams& a = p.a;
  const int split = static_cast<int>(blockIdx.x) % p.splits, pair = static_cast<int>(blockIdx.x) / p.splits;
  const int head = pair % a.num_kv_heads, sequence = pair / a.num_kv_heads, tokens = a.layout.block_tokens;
  const int blocks = (load(a.lengths + sequence) + tokens - 1) / tokens;
  const int from = static_cast<int>(int64_t{blocks} * split / p.splits),
            to = static_cast<int>(int64_t{blocks} * (split + 1) / p.splits);
  const int32_t* table = a.block_table + sequence * a.table_stride;
  const int chunks = static_cast<int>(a.layout.head_stride() / 16);
  uint32_t sum = 0;
  for (int b = from; b < to; b += kAhead)
    for (int chunk = static_cast<int>(threadIdx.x); chunk < chunks; chunk += kTileThreads) {
      uint4 v[kAhead][2] = {};
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (b + i >= to) continue;
        const char* tile = a.arena + load(table + b + i) * a.layout.block_bytes() +
                           head * a.layout.head_stride() + chunk * 16;
        v[i][0] = load_streaming(reinterpret_cast<const uint4*>(tile));
        v[i][1] = load_streaming(reinterpret_cast<const uint4*>(tile + a.layout.kv_stride()));
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) sum ^= folded(v[i][0]) ^ folded(v[i][1]);
    }
  if (sum == kUnlikely) store(p.sink, sum);
}

DeviceBuffer allocated(StreamDevice& device, int64_t bytes, const char* what) {
  Result<DeviceBuffer> buffer = device.allocate(bytes, what);
  if (!buffer) check_failed(buffer.error().message.c_str(), __FILE__, __LINE__);
  return std::move(*buffer);
}

class SideOps final : public bench::BenchOps {
 public:
  explicit SideOps(StreamDevice& device) : device_(device), sink_(allocated(device, 4, "sink")) {
    const DeviceFacts& f = device.facts();
    context_ = {.stream = device.stream(),
                .machine = {.multiprocessors = f.multiprocessors,
                            .shared_bytes_per_block = f.shared_bytes_per_block,
                            .compute_capability = f.kernel_capability}};
    // Twice the blocks a multiprocessor that the default has, so that tuning may try two.
    largest_.blocks_per_multiprocessor = 2;
    const AttentionScratchNeed need =
        attention_scratch_need(context_.machine, largest_, kMaxRows, kMaxSequences, kMaxQHeads, kMaxHeadDim);
    scratch_ = allocated(device, need.bytes(), "scratch of attention");
    context_.scratch = need.place(scratch_.data());
    device.set_zero(scratch_.data(), need.bytes());
  }

  void fill_random(void* p, int64_t count, uint32_t seed) override {
    launch<fill>(wide(), FillParams{static_cast<bf16*>(p), count, seed});
  }
  void read_all(const void* p, int64_t bytes) override {
    launch<read_only>(wide(), ReadParams{static_cast<const uint4*>(p), bytes / 16, sink_.as<uint32_t>()});
  }
  void copy_all(void* target, const void* source, int64_t bytes) override {
    launch<copy>(wide(),
                 CopyParams{static_cast<uint4*>(target), static_cast<const uint4*>(source), bytes / 16});
  }
  void read_tiles(const AttentionParams& p, int splits, int ahead) override {
    const LaunchConfig config{.grid = as_grid(int64_t{splits} * p.num_kv_heads * p.num_sequences),
                              .block = kTileThreads,
                              .stream = device_.stream()};
    const TileParams params{p, splits, sink_.as<uint32_t>()};
    if (ahead == 2) return launch<QUIRE_SIDE::read_tiles<2>>(config, params);
    if (ahead == 4) return launch<QUIRE_SIDE::read_tiles<4>>(config, params);
    launch<QUIRE_SIDE::read_tiles<8>>(config, params);
  }
  void attention(const AttentionParams& p, const AttentionChoice& choice) override {
    QUIRE_SIDE::attention(context_of(choice), DType::kBF16, p);
  }
  int64_t attention_plan_bytes() const override {
    return QUIRE_SIDE::attention_plan_bytes(context_.machine, largest_, kMaxSequences, kMaxQHeads);
  }
  void plan_attention(const AttentionParams& p, const AttentionChoice& choice) override {
    QUIRE_SIDE::plan_attention(context_of(choice), DType::kBF16, p);
  }
  int32_t prefix_splits(const PrefixCounts& shared, int32_t num_q_heads, int32_t num_kv_heads,
                        int32_t head_dim) const override {
    return QUIRE_SIDE::prefix_splits(context_, DType::kBF16, shared, num_q_heads, num_kv_heads, head_dim);
  }

 private:
  AttentionContext context_of(const AttentionChoice& choice) const {
    AttentionContext context = context_;
    if (choice.compute_capability > 0) context.machine.compute_capability = choice.compute_capability;
    DecodeTuning& t = context.decode;
    if (choice.warps > 0) t.warps = choice.warps;
    if (choice.stages > 0) t.stages = choice.stages;
    if (choice.min_tiles > 0) t.min_tiles = choice.min_tiles;
    if (choice.blocks_per_multiprocessor > 0) t.blocks_per_multiprocessor = choice.blocks_per_multiprocessor;
    if (choice.unit_cost >= 0) t.unit_cost = choice.unit_cost;
    t.aligned = choice.aligned;
    t.split_first = choice.split_first;
    return context;
  }
  LaunchConfig wide() const {
    return {.grid = as_grid(int64_t{device_.facts().multiprocessors} * 4),
            .block = kThreads,
            .stream = device_.stream()};
  }

  StreamDevice& device_;
  DecodeTuning largest_;
  DeviceBuffer sink_, scratch_;
  AttentionContext context_;
};

}  // namespace

std::unique_ptr<bench::BenchOps> make_bench_ops(StreamDevice& device) {
  return std::make_unique<SideOps>(device);
}

}  // namespace quire::QUIRE_SIDE
