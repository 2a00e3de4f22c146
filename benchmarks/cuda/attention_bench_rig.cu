#include "benchmarks/cuda/attention_bench_rig.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

namespace quire::attention_bench {
namespace {

constexpr int64_t kMaxSequences = 512, kMaxQHeads = 64, kMaxRows = 1;
constexpr int kBareThreads = 128;

__global__ void fill_random(uint16_t* p, int64_t n, uint32_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u + static_cast<uint32_t>(i >> 32) * 40503u + seed;
    x ^= x >> 15;
    x *= 2246822519u;
    x ^= x >> 13;
    const float f = (static_cast<int>(x & 0xffff) - 32768) * (2.0f / 32768);
    p[i] = static_cast<uint16_t>(__float_as_uint(f) >> 16);
  }
}

__global__ void __launch_bounds__(512) sum_all(const uint4* p, int64_t n, uint32_t* out) {
  uint32_t sum = 0;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i + 7 * stride < n; i += 8 * stride) {
    uint4 v[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) v[k] = __ldcs(p + i + k * stride);
#pragma unroll
    for (int k = 0; k < 8; ++k) sum ^= v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
  }
  if (sum == 0x12345) *out = sum;  // keeps the loads
}

// A block of threads reads the K and V tiles of one (sequence, kv head, part of its list), kAhead tiles of
// each at a time.
template <int kAhead>
__global__ void __launch_bounds__(kBareThreads)
    read_tiles(AttentionParams p, int64_t block_bytes, int64_t head_bytes, int64_t v_offset, int tile_chunks,
               int splits, uint32_t* out) {
  const int split = blockIdx.x % splits, head = blockIdx.x / splits % p.num_kv_heads,
            sequence = blockIdx.x / splits / p.num_kv_heads;
  const int tokens = static_cast<int>(head_bytes / (p.head_dim * 2)),
            blocks = (p.lengths[sequence] + tokens - 1) / tokens;
  const int from = static_cast<int>(int64_t{blocks} * split / splits),
            to = static_cast<int>(int64_t{blocks} * (split + 1) / splits);
  const int32_t* table = p.block_table + sequence * p.table_stride;
  uint32_t sum = 0;
  for (int b = from; b < to; b += kAhead)
    for (int chunk = threadIdx.x; chunk < tile_chunks; chunk += kBareThreads) {
      uint4 v[kAhead][2] = {};
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (b + i >= to) continue;
        const char* tile = p.arena + table[b + i] * block_bytes + head * head_bytes + chunk * 16;
        v[i][0] = __ldcs(reinterpret_cast<const uint4*>(tile));
        v[i][1] = __ldcs(reinterpret_cast<const uint4*>(tile + v_offset));
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
        sum ^= v[i][0].x ^ v[i][0].y ^ v[i][0].w ^ v[i][1].x ^ v[i][1].z ^ v[i][1].w;
    }
  if (sum == 0x12345) *out = sum;
}

template <class T>
std::unique_ptr<Memory> on_card(const std::vector<T>& v) {
  auto m = std::make_unique<Memory>(static_cast<int64_t>(v.size() * sizeof(T)));
  check_cuda(cudaMemcpy(m->as<char>(), v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
  return m;
}

cuda::AttentionScratchNeed scratch_need(const cudaDeviceProp& d) {
  // Twice the blocks a multiprocessor that the default has, so that tuning may try two.
  return cuda::attention_scratch_need({.multiprocessors = d.multiProcessorCount},
                                      {.blocks_per_multiprocessor = 2}, kMaxRows, kMaxSequences, kMaxQHeads,
                                      256);
}

cudaDeviceProp card() {
  cudaDeviceProp d{};
  check_cuda(cudaGetDeviceProperties(&d, 0));
  return d;
}

}  // namespace

Rig::Rig(int64_t pool_bytes, int rounds)
    : pool_bytes_(pool_bytes),
      rounds_(rounds),
      properties_(card()),
      pool_(pool_bytes),
      scratch_(scratch_need(properties_).bytes()) {
  check_cuda(cudaStreamCreate(&stream_));
  fill_random<<<properties_.multiProcessorCount * 16, 512, 0, stream_>>>(pool_.as<uint16_t>(), pool_bytes / 2,
                                                                         1);
  const auto need = scratch_need(properties_);
  check_cuda(cudaMemsetAsync(scratch_.as<char>(), 0, static_cast<size_t>(need.bytes()), stream_));
  check_cuda(cudaStreamSynchronize(stream_));
  context_ = {.stream = stream_,
              .machine = {.multiprocessors = properties_.multiProcessorCount,
                          .shared_bytes_per_block = static_cast<int>(properties_.sharedMemPerBlockOptin),
                          .compute_capability = properties_.major * 10 + properties_.minor},
              .scratch = need.place(scratch_.as<void>())};
}
Rig::~Rig() {
  cudaStreamDestroy(stream_);
}

Timing Rig::time(int layers, const std::function<void(int)>& work) {
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeGlobal));
  for (int layer = 0; layer < layers; ++layer) work(layer);
  check_cuda(cudaStreamEndCapture(stream_, &graph));
  check_cuda(cudaGraphInstantiate(&replay, graph, 0));
  cudaEvent_t begin, end;
  check_cuda(cudaEventCreate(&begin));
  check_cuda(cudaEventCreate(&end));
  std::vector<double> us;
  for (int i = 0; i < rounds_ + 3; ++i) {
    check_cuda(cudaEventRecord(begin, stream_));
    check_cuda(cudaGraphLaunch(replay, stream_));
    check_cuda(cudaEventRecord(end, stream_));
    check_cuda(cudaEventSynchronize(end));
    float ms = 0;
    check_cuda(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 3) us.push_back(ms * 1e3 / layers);
  }
  check_cuda(cudaEventDestroy(begin));
  check_cuda(cudaEventDestroy(end));
  check_cuda(cudaGraphExecDestroy(replay));
  check_cuda(cudaGraphDestroy(graph));
  std::sort(us.begin(), us.end());
  return {us[us.size() / 2], us.front(), us.back()};
}

double Rig::read_ceiling() {
  const int64_t bytes = std::min<int64_t>(pool_bytes_, int64_t{8} << 30);
  const Timing t = time(1, [&](int) {
    sum_all<<<properties_.multiProcessorCount * 4, 512, 0, stream_>>>(pool_.as<uint4>(), bytes / 16,
                                                                      scratch_.as<uint32_t>() + 1);
  });
  return static_cast<double>(bytes) / t.us * 1e6;
}

Problem::Problem(Rig& rig, const Model& model, const std::vector<int>& lengths, const std::vector<int>& rows,
                 int shared_slots)
    : model_(model), lengths_(lengths), rows_(rows), pool_(rig.pool()), shared_slots_(shared_slots) {
  const int sequences = static_cast<int>(lengths.size()), tokens = model.block_tokens;
  query_start_.push_back(0);
  for (int s = 0; s < sequences; ++s) {
    query_start_.push_back(query_start_.back() + rows[s]);
    max_length_ = std::max(max_length_, lengths[s]);
    max_rows_ = std::max(max_rows_, rows[s]);
  }
  table_stride_ = (max_length_ + tokens - 1) / tokens;
  std::vector<int32_t> ids(static_cast<size_t>(rig.pool_bytes() / model.layout().block_bytes()));
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), std::mt19937(1));
  const int shared_blocks = shared_slots / tokens;
  size_t next = shared_blocks;
  table_.assign(static_cast<size_t>(sequences) * table_stride_, 0);
  for (int s = 0; s < sequences; ++s)
    for (int b = 0; b < (lengths[s] + tokens - 1) / tokens; ++b) {
      const size_t at = b < shared_blocks ? static_cast<size_t>(b) : next++;
      if (at >= ids.size()) return;  // the pool is too small for this shape
      table_[static_cast<size_t>(s) * table_stride_ + b] = ids[at];
    }
  fits_ = true;
  const int64_t elements = int64_t{query_start_.back()} * model.q_heads * model.head_dim;
  q_ = std::make_unique<Memory>(elements * 2);
  out_ = std::make_unique<Memory>(elements * 2);
  fill_random<<<256, 256>>>(q_->as<uint16_t>(), elements, 7);
  check_cuda(cudaMemset(out_->as<char>(), 0xff, static_cast<size_t>(elements * 2)));
  lengths_on_card_ = on_card(lengths_);
  starts_ = on_card(query_start_);
  table_on_card_ = on_card(table_);
  std::vector<int32_t> all(sequences), starts(sequences + 1);
  std::iota(all.begin(), all.end(), 0);
  std::iota(starts.begin(), starts.end(), 0);
  node_slots_ = on_card(std::vector<int32_t>{0, shared_slots});
  node_start_ = on_card(std::vector<int32_t>{0, sequences});
  members_ = on_card(all);
  of_sequence_ = on_card(all);
  member_start_ = on_card(starts);
  private_start_ = on_card(std::vector<int32_t>(sequences, shared_slots));
}

AttentionParams Problem::params(int layer) const {
  AttentionParams p;
  p.q = q_->as<void>();
  p.out = out_->as<void>();
  p.layout = model_.layout();
  p.arena = pool_ + layer % model_.layers * p.layout.layer_stride();
  p.num_q_heads = model_.q_heads;
  p.num_kv_heads = model_.kv_heads;
  p.head_dim = model_.head_dim;
  p.q_stride = int64_t{model_.q_heads} * model_.head_dim;
  p.scale = 1.0f / std::sqrt(static_cast<float>(model_.head_dim));
  p.num_sequences = static_cast<int32_t>(lengths_.size());
  p.rows = query_start_.back();
  p.max_rows = max_rows_;
  p.max_length = max_length_;
  p.query_start = starts_->as<int32_t>();
  p.lengths = lengths_on_card_->as<int32_t>();
  p.block_table = table_on_card_->as<int32_t>();
  p.table_stride = table_stride_;
  p.early_fetch = true;
  return p;
}

void Problem::share(AttentionParams& p) const {
  const int32_t n = static_cast<int32_t>(lengths_.size());
  p.prefixes = {.num_nodes = 1,
                .num_members = n,
                .max_slots = shared_slots_,
                .node_slots = node_slots_->as<int32_t>(),
                .node_sequence_start = node_start_->as<int32_t>(),
                .node_sequences = members_->as<int32_t>(),
                .sequence_member_start = member_start_->as<int32_t>(),
                .sequence_members = of_sequence_->as<int32_t>(),
                .private_start = private_start_->as<int32_t>()};
}

double Problem::kv_bytes() const {
  double slots = 0;
  for (const int n : lengths_) slots += n;
  return slots * 2 * model_.kv_heads * model_.head_dim * 2;
}

double Problem::operations() const {
  double seen = 0;
  for (size_t s = 0; s < lengths_.size(); ++s) seen += rows_[s] * (lengths_[s] - (rows_[s] - 1) / 2.0);
  return seen * 4 * model_.q_heads * model_.head_dim;
}

Timing Problem::bare_read(Rig& rig) const {
  const KvLayout layout = model_.layout();
  Memory out(4);
  Timing best{.us = 1e30};
  const auto stream = static_cast<cudaStream_t>(rig.context().stream);
  const auto attempt = [&](auto kernel, int splits) {
    const unsigned grid = static_cast<unsigned>(splits * model_.kv_heads * lengths_.size());
    const Timing t = rig.time(model_.layers, [&](int layer) {
      kernel<<<grid, kBareThreads, 0, stream>>>(
          params(layer), layout.block_bytes(), layout.head_stride(), layout.kv_stride(),
          static_cast<int>(layout.head_stride() / 16), splits, out.as<uint32_t>());
    });
    if (t.us < best.us) best = t;
  };
  for (const int waves : {4, 8, 16}) {
    const int pairs = model_.kv_heads * static_cast<int>(lengths_.size());
    const int splits = std::clamp(waves * rig.properties().multiProcessorCount / pairs, 1,
                                  std::max(1, max_length_ / model_.block_tokens / 2));
    attempt(read_tiles<2>, splits);
    attempt(read_tiles<4>, splits);
    attempt(read_tiles<8>, splits);
  }
  return best;
}

double Problem::worst_error(int layer) const {
  check_cuda(cudaDeviceSynchronize());
  double worst = 0;
  const int n = static_cast<int>(lengths_.size());
  for (int pick = 0; pick < 4; ++pick) {
    const int s = pick == 0 ? 0 : pick == 1 ? n - 1 : n * pick / 4 % n;
    const int row = rows_[s] == 1 ? 0 : (rows_[s] - 1) * pick / 3;
    worst = std::max(worst, row_error(layer, s, row, pick * 11 % model_.q_heads));
  }
  return worst;
}

double Problem::row_error(int layer, int sequence, int row, int q_head) const {
  const KvLayout layout = model_.layout();
  const int d = model_.head_dim, tokens = model_.block_tokens,
            head = q_head / (model_.q_heads / model_.kv_heads);
  const int seen = lengths_[sequence] - rows_[sequence] + row + 1;
  const int64_t at = (int64_t{query_start_[sequence] + row} * model_.q_heads + q_head) * d;
  std::vector<uint16_t> q(d), got(d), tile(static_cast<size_t>(tokens) * d);
  check_cuda(cudaMemcpy(q.data(), q_->as<uint16_t>() + at, d * 2, cudaMemcpyDeviceToHost));
  check_cuda(cudaMemcpy(got.data(), out_->as<uint16_t>() + at, d * 2, cudaMemcpyDeviceToHost));
  std::vector<double> sum(d);
  double largest = -1e300, total = 0;
  for (int slot = 0; slot < seen; slot += tokens) {
    const char* k =
        pool_ + layer * layout.layer_stride() + head * layout.head_stride() +
        int64_t{table_[static_cast<size_t>(sequence) * table_stride_ + slot / tokens]} * layout.block_bytes();
    std::vector<double> logits;
    check_cuda(cudaMemcpy(tile.data(), k, tile.size() * 2, cudaMemcpyDeviceToHost));
    for (int j = 0; j < std::min(tokens, seen - slot); ++j) {
      double dot = 0;
      for (int x = 0; x < d; ++x)
        dot += double{bf16_to_f32(q[x])} * bf16_to_f32(tile[static_cast<size_t>(j) * d + x]);
      logits.push_back(dot / std::sqrt(static_cast<double>(d)));
    }
    const double m = std::max(largest, *std::max_element(logits.begin(), logits.end())),
                 factor = std::exp(largest - m);
    largest = m;
    total *= factor;
    for (double& x : sum) x *= factor;
    check_cuda(cudaMemcpy(tile.data(), k + layout.kv_stride(), tile.size() * 2, cudaMemcpyDeviceToHost));
    for (size_t j = 0; j < logits.size(); ++j) {
      const double p = std::exp(logits[j] - largest);
      total += p;
      for (int x = 0; x < d; ++x) sum[x] += p * bf16_to_f32(tile[j * d + x]);
    }
  }
  double error = 0, norm = 0;
  for (int x = 0; x < d; ++x) {
    const double wanted = sum[x] / total, e = bf16_to_f32(got[x]) - wanted;
    error += e * e;
    norm += wanted * wanted;
  }
  const double relative = std::sqrt(error / norm);
  return std::isfinite(relative) ? relative : 1e30;
}

}  // namespace quire::attention_bench
