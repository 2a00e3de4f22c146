// The device's decisions about who stays in a list (kernels/retention.h) against the host's (src/policy/retention.h): random logits and
// column sums, some equal on purpose, over a prompt in chunks, its cut and the rows behind it. Method: the back end's own seam on the host
// shim with all its checks on; every slot, position and score is compared after every step.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/cuda/host_device.h"
#include "kernels/cuda/host_shim/runner.h"
#include "kernels/kernels.h"
#include "src/base/random.h"
#include "src/policy/retention.h"

namespace quire {
namespace {

constexpr int32_t kLayers = 2, kKvHeads = 2, kQHeads = 4, kBlockTokens = 8;

StreamDevice& device() {
  static StreamDevice* const opened = open_cuda_host_device().release();  // lives until the process ends
  return *opened;
}

template <class T>
DeviceBuffer upload(const std::vector<T>& v) {
  DeviceBuffer buffer =
      std::move(device().allocate(static_cast<int64_t>(v.size() * sizeof(T)), "test")).value();
  device().copy_to_device(buffer.data(), v.data(), buffer.bytes());
  device().synchronize();
  return buffer;
}
template <class T>
std::vector<T> download(const T* from, size_t count) {
  std::vector<T> v(count);
  device().copy_to_host(v.data(), from, static_cast<int64_t>(count * sizeof(T)));
  device().synchronize();
  return v;
}

struct Setting {
  const char* policy;
  int32_t prompt, chunk;
};

// One sequence under a policy: the device's state, and a RetentionList for each of its lists.
class Retained {
 public:
  Retained(Kernels& kernels, const Setting& setting, uint64_t seed)
      : kernels_(kernels),
        policy_(parse_policy(setting.policy).value()),
        random_(seed),
        prompt_(setting.prompt) {
    sums_ = traits(policy_).column_sums;
    item_.lists = sums_ ? kKvHeads : 1;
    item_.capacity = capacity(policy_);
    item_.room = item_.capacity + 1;
    item_.recent = policy_.recent;
    item_.prompt_room = prompt_;
    const auto lists = static_cast<size_t>(kLayers * item_.lists);
    positions_ = upload(std::vector<int32_t>(lists * static_cast<size_t>(item_.room), -1));
    free_ = upload(std::vector<int32_t>(lists, -1));
    scores_ = upload(std::vector<float>(lists * static_cast<size_t>(item_.room), -1));
    prompt_sums_ = upload(std::vector<float>(lists * static_cast<size_t>(prompt_), 0));
    item_.positions = positions_.as<int32_t>();
    item_.free_slots = free_.as<int32_t>();
    item_.scores = sums_ ? scores_.as<float>() : nullptr;
    item_.prompt_sums = sums_ ? prompt_sums_.as<float>() : nullptr;
    lists_.resize(lists);
    totals_.assign(lists, std::vector<float>(static_cast<size_t>(prompt_), 0));
  }

  void run_prompt(int32_t chunk) {
    for (int32_t end = 0; end < prompt_;) {
      const int32_t first = end;
      end = std::min(prompt_, first + chunk);
      for (RetentionList& list : lists_)
        for (int32_t p = first; p < end; ++p) list.append(p);
      item_.phase = end == prompt_ ? RetentionPhase::kCut : RetentionPhase::kSum;
      item_.length = end;
      item_.position = end - 1;
      run_layers();
    }
    length_ = std::min(prompt_, item_.capacity);
    expect_equal();
  }

  void run_row(int32_t position) {
    item_.phase = RetentionPhase::kDecode;
    item_.overwrites = length_ > item_.capacity ? 1 : 0;
    length_ += item_.overwrites == 0 ? 1 : 0;
    item_.length = length_;
    item_.position = position;
    expect_slots(position);
    run_layers();
    expect_equal();
  }

 private:
  int32_t heads_of_list() const { return kQHeads / item_.lists; }
  // Few different values now and then: equal scores must be told apart by age.
  float draw(float scale) {
    const auto u = static_cast<float>(random_.uniform());
    return scale * (coarse_ ? std::floor(4 * u) / 4 : u);
  }

  void expect_slots(int32_t position) {
    const std::vector<int32_t> table = {7, 2, 9, 4, 5, 6, 3};
    const DeviceBuffer on_device = upload(table), items = upload(std::vector<RetentionItem>{item_}),
                       of_row = upload(std::vector<int32_t>{-1, 0}),
                       row_slots = upload(std::vector<int64_t>{77, -1}),
                       slots = upload(std::vector<int64_t>(kLayers * 2 * kKvHeads, -5));
    RetentionSlotsParams p{.items = items.as<const RetentionItem>(),
                           .item_of_row = of_row.as<const int32_t>(),
                           .row_slots = row_slots.as<const int64_t>(),
                           .slots = slots.as<int64_t>(),
                           .block_table = on_device.as<const int32_t>(),
                           .table_stride = static_cast<int64_t>(table.size()),
                           .rows = 2,
                           .num_layers = kLayers,
                           .num_kv_heads = kKvHeads,
                           .block_tokens = kBlockTokens};
    kernels_.retention_slots(p);
    const std::vector<int64_t> got = download(slots.as<const int64_t>(), kLayers * 2 * kKvHeads);
    for (int32_t layer = 0; layer < kLayers; ++layer)
      for (int32_t list = 0; list < item_.lists; ++list) {
        const int32_t slot = lists_[static_cast<size_t>(layer * item_.lists + list)].append(position);
        for (int32_t head = list * kKvHeads / item_.lists; head < (list + 1) * kKvHeads / item_.lists;
             ++head) {
          EXPECT_EQ(got[static_cast<size_t>((layer * 2 + 0) * kKvHeads + head)], 77) << "a row of nobody's";
          EXPECT_EQ(
              got[static_cast<size_t>((layer * 2 + 1) * kKvHeads + head)],
              int64_t{table[static_cast<size_t>(slot / kBlockTokens)]} * kBlockTokens + slot % kBlockTokens);
        }
      }
  }

  void run_layers() {
    coarse_ = random_.below(3) == 0;
    for (int32_t layer = 0; layer < kLayers; ++layer) run_layer(layer);
  }

  void run_layer(int32_t layer) {
    const auto n = static_cast<size_t>(item_.length);
    std::vector<float> logits(kQHeads * n), columns(kQHeads * n), lse(2 * kQHeads, 0.5f);
    for (float& x : logits) x = draw(6);
    for (float& x : columns) x = draw(1);
    if (coarse_)  // equal over all heads too
      for (size_t i = n; i < logits.size(); ++i) logits[i] = logits[i % n], columns[i] = columns[i % n];
    item_.row = 1;
    const DeviceBuffer on_device = upload(logits), sums = upload(columns),
                       items = upload(std::vector<RetentionItem>{item_}), l = upload(lse),
                       start = upload(std::vector<int64_t>{0});
    kernels_.retention_scores({.items = items.as<const RetentionItem>(),
                               .num_items = 1,
                               .layer = layer,
                               .num_q_heads = kQHeads,
                               .num_kv_heads = kKvHeads,
                               .lse = l.as<const float>(),
                               .row_logits = on_device.as<float>(),
                               .row_logits_start = start.as<const int64_t>(),
                               .column_sums = sums.as<float>(),
                               .column_sums_start = start.as<const int64_t>()});
    for (int32_t list = 0; list < item_.lists; ++list) mirror(layer, list, logits, columns);
    if (!sums_ || item_.phase == RetentionPhase::kDecode) return;
    const std::vector<float> left = download(sums.as<const float>(), columns.size());
    ASSERT_EQ(left, std::vector<float>(columns.size(), 0.0f)) << "columns are for the next layer";
  }

  void mirror(int32_t layer, int32_t list, const std::vector<float>& logits,
              const std::vector<float>& columns) {
    const auto n = static_cast<size_t>(item_.length), index = static_cast<size_t>(layer * item_.lists + list),
               first = static_cast<size_t>(list * heads_of_list()) * n,
               heads = static_cast<size_t>(heads_of_list());
    const std::vector<float> lse(heads, 0.5f);
    const std::span<const float> own(logits.data() + first, heads * n);
    std::vector<float> given(n, 0);
    if (item_.phase == RetentionPhase::kDecode) {
      sums_ ? add_probabilities(own, static_cast<int64_t>(n), lse, given)
            : mean_probabilities(own, static_cast<int64_t>(n), lse, given);
      return lists_[index].on_decode_row(policy_, given);
    }
    for (size_t h = 0; sums_ && h < heads; ++h)
      for (size_t j = 0; j < n; ++j) totals_[index][j] += columns[first + h * n + j];
    if (item_.phase == RetentionPhase::kSum) return;
    if (!sums_) mean_probabilities(own, static_cast<int64_t>(n), lse, given);
    lists_[index].cut(policy_, sums_ ? std::span<const float>(totals_[index]) : given);
  }

  void expect_equal() {
    const auto room = static_cast<size_t>(item_.room), lists = lists_.size();
    const std::vector<int32_t> positions = download(item_.positions, lists * room),
                               free = download(item_.free_slots, lists);
    for (size_t i = 0; i < lists; ++i) {
      ASSERT_EQ(lists_[i].num_slots(), length_);
      std::vector<int32_t> live;
      for (int32_t slot = 0; slot < length_; ++slot) {
        const int32_t position = positions[i * room + static_cast<size_t>(slot)];
        ASSERT_EQ(position, lists_[i].position_of(slot)) << "list " << i << " slot " << slot;
        if (slot != free[i]) live.push_back(position);
      }
      std::sort(live.begin(), live.end());
      ASSERT_EQ(live, lists_[i].live_positions()) << "list " << i << ": another victim";
    }
    if (!sums_) return;
    const std::vector<float> scores = download(item_.scores, lists * room);
    for (size_t i = 0; i < lists; ++i)
      for (int32_t slot = 0; slot < length_; ++slot)
        ASSERT_NEAR(scores[i * room + static_cast<size_t>(slot)],
                    lists_[i].scores()[static_cast<size_t>(slot)],
                    1e-5f * lists_[i].scores()[static_cast<size_t>(slot)]);
  }

  Kernels& kernels_;
  PolicySpec policy_;
  Random random_;
  int32_t prompt_, length_ = 0;
  bool sums_ = false, coarse_ = false;
  RetentionItem item_;
  DeviceBuffer positions_, free_, scores_, prompt_sums_;
  std::vector<RetentionList> lists_;
  std::vector<std::vector<float>> totals_;
};

class CudaRetention : public testing::TestWithParam<Setting> {
 protected:
  void SetUp() override {
    shim::set_shim_options({.checking = true, .order_seed = 3});
    kernels_ = std::move(make_cuda_kernels(device(), {.activations = DType::kF32})).value();
  }
  void TearDown() override { shim::set_shim_options({}); }
  std::unique_ptr<Kernels> kernels_;
};

TEST_P(CudaRetention, DecidesAsTheHostDoes) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE(seed);
    Retained sequence(*kernels_, GetParam(), seed);
    sequence.run_prompt(GetParam().chunk);
    for (int32_t row = 0; row < 12 && !HasFatalFailure(); ++row) sequence.run_row(GetParam().prompt + row);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Policies, CudaRetention,
    testing::Values(Setting{"tova:budget=1", 9, 4}, Setting{"tova:budget=8", 5, 2},
                    Setting{"tova:budget=16", 40, 40}, Setting{"tova:budget=40", 300, 299},
                    Setting{"h2o:heavy=1,recent=1", 9, 3}, Setting{"h2o:heavy=0,recent=8", 20, 7},
                    Setting{"h2o:heavy=8,recent=1", 20, 20}, Setting{"h2o:heavy=9,recent=7", 6, 1},
                    Setting{"h2o:heavy=20,recent=13", 300, 128}),
    [](const auto& info) {
      std::string name = info.param.policy + std::string("_prompt_") + std::to_string(info.param.prompt);
      for (char& c : name)
        if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
      return name;
    });

}  // namespace
}  // namespace quire
