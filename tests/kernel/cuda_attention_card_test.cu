// Method: as cuda_attention_test.cc, on a card: the same problems and larger ones, against the float64
// reference, and again for equal bits; back to back, so that dependent launches overlap. Skipped where there
// is no card.
#include <gtest/gtest.h>

#include <cstring>

#include "kernels/cuda/attention/attention.h"
#include "src/device/card_code.h"
#include "src/device/cuda_support.h"
#include "tests/kernel/cuda_attention_case.h"
#include "tests/kernel/cuda_attention_shapes.h"

namespace quire::attention_test {
namespace {

using cuda::check_cuda;

// Copies of host regions in device memory, each an allocation of its own.
class Mirror {
 public:
  ~Mirror() {
    for (const Pair& p : pairs_) cudaFree(p.device);
  }
  void add(Region& r) {
    Pair p{.host = r.data(), .bytes = r.bytes()};
    check_cuda(cudaMalloc(&p.device, static_cast<size_t>(std::max<int64_t>(p.bytes, 1))));
    check_cuda(cudaMemcpy(p.device, p.host, static_cast<size_t>(p.bytes), cudaMemcpyHostToDevice));
    pairs_.push_back(p);
  }
  template <class T>
  void translate(T*& pointer) const {
    if (pointer == nullptr) return;
    const char* at = reinterpret_cast<const char*>(pointer);
    for (const Pair& p : pairs_)
      if (at >= p.host && at < p.host + p.bytes) {
        pointer = reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(p.device) + (at - p.host));
        return;
      }
    ADD_FAILURE() << "a pointer into no region";
  }
  void bring_back(Region& r) const {
    for (const Pair& p : pairs_)
      if (p.host == r.data())
        check_cuda(cudaMemcpy(r.data(), p.device, static_cast<size_t>(p.bytes), cudaMemcpyDeviceToHost));
  }

 private:
  struct Pair {
    char* host;
    int64_t bytes;
    void* device = nullptr;
  };
  std::vector<Pair> pairs_;
};

void translate_all(const Mirror& m, AttentionParams& p) {
  m.translate(p.q), m.translate(p.q_sink), m.translate(p.out), m.translate(p.arena), m.translate(p.sinks);
  m.translate(p.query_start), m.translate(p.lengths), m.translate(p.block_table), m.translate(p.sink_slots),
      m.translate(p.windows);
  m.translate(p.lse), m.translate(p.row_logits), m.translate(p.column_sums), m.translate(p.partials);
  SharedPrefixes& s = p.prefixes;
  m.translate(s.node_slots), m.translate(s.node_sequence_start), m.translate(s.node_sequences);
  m.translate(s.sequence_member_start), m.translate(s.sequence_members), m.translate(s.private_start);
}

cuda::AttentionMachine this_machine() {
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, 0));
  return {.multiprocessors = properties.multiProcessorCount,
          .shared_bytes_per_block = static_cast<int>(properties.sharedMemPerBlockOptin),
          .compute_capability =
              kernel_capability(properties.major * 10 + properties.minor, probe_card_code().sm90a)};
}

__global__ void stand_between() {
  cuda::wait_for_previous_kernel();
}

// Several times with the plan that a step makes once, or once with the call's own.
Outputs on_card(Case& c, int repeats) {
  AttentionParams p = c.problem();
  OutputRegions out(p, c.shape().dtype);
  out.attach(p);
  Mirror mirror;
  for (Region* r : c.regions()) mirror.add(*r);
  for (Region* r : {&out.values, &out.lse, &out.row_logits, &out.column_sums, &out.partials}) mirror.add(*r);
  translate_all(mirror, p);
  cuda::AttentionContext context{.machine = this_machine()};
  context.decode = {.warps = c.shape().warps,
                    .stages = c.shape().stages,
                    .min_tiles = c.shape().min_tiles,
                    .aligned = c.shape().aligned};
  const auto need = cuda::attention_scratch_need(context.machine, context.decode, p.rows, p.num_sequences,
                                                 p.num_q_heads, p.head_dim);
  void* scratch = nullptr;
  check_cuda(cudaMalloc(&scratch, static_cast<size_t>(need.bytes())));
  check_cuda(cudaMemset(scratch, 0, static_cast<size_t>(need.bytes())));
  context.scratch = need.place(scratch);
  p.prefixes.num_splits = cuda::prefix_splits(context, c.shape().dtype, c.prefix_counts(), p.num_q_heads,
                                              p.num_kv_heads, p.head_dim);
  cudaStream_t stream;
  check_cuda(cudaStreamCreate(&stream));
  context.stream = stream;
  Region plan(cuda::attention_plan_bytes(context.machine, context.decode, p.num_sequences, p.num_q_heads));
  mirror.add(plan);
  if (repeats > 1) {
    p.plan = plan.data();
    mirror.translate(p.plan);
    cuda::plan_attention(context, c.shape().dtype, p);
    stand_between<<<1, 1, 0, stream>>>();
  }
  for (int i = 0; i < repeats; ++i) {
    if (p.column_sums != nullptr)
      check_cuda(cudaMemsetAsync(p.column_sums, 0, static_cast<size_t>(out.column_sums.bytes()), stream));
    cuda::attention(context, c.shape().dtype, p);
  }
  check_cuda(cudaStreamSynchronize(stream));
  for (Region* r : {&out.values, &out.lse, &out.row_logits, &out.column_sums, &out.partials})
    mirror.bring_back(*r);
  check_cuda(cudaStreamDestroy(stream));
  check_cuda(cudaFree(scratch));
  return out.take(c.shape().dtype, p.prefixes.num_nodes == 0);
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

class AttentionOnCard : public testing::TestWithParam<Shape> {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) GTEST_SKIP() << "no card";
  }
};

TEST_P(AttentionOnCard, EqualsTheReferenceAndItself) {
  Case c(GetParam(), 7);
  const Outputs got = on_card(c, 1);
  EXPECT_EQ(difference(c, got, c.reference()), "");
  const Outputs again = on_card(c, 5);
  EXPECT_TRUE(same_bits(got.values, again.values)) << "values differ between runs";
  EXPECT_TRUE(same_bits(got.lse, again.lse)) << "lse differs between runs";
  EXPECT_TRUE(same_bits(got.column_sums, again.column_sums)) << "column sums differ between runs";
  EXPECT_TRUE(same_bits(got.partials, again.partials)) << "partials differ between runs";
}

const auto name_of_case = [](const auto& info) { return info.param.name; };
INSTANTIATE_TEST_SUITE_P(Decode, AttentionOnCard, testing::ValuesIn(decode_shapes()), name_of_case);
INSTANTIATE_TEST_SUITE_P(Prefill, AttentionOnCard, testing::ValuesIn(prefill_shapes()), name_of_case);
INSTANTIATE_TEST_SUITE_P(Plain, AttentionOnCard, testing::ValuesIn(plain_shapes()), name_of_case);
INSTANTIATE_TEST_SUITE_P(Cascade, AttentionOnCard, testing::ValuesIn(cascade_shapes()), name_of_case);
INSTANTIATE_TEST_SUITE_P(Large, AttentionOnCard, testing::ValuesIn(large_shapes()), name_of_case);

}  // namespace
}  // namespace quire::attention_test
