#include "kernels/cuda/matmul/cublaslt.h"

#include <fmt/format.h>

#include <limits>
#include <tuple>
#include <unordered_map>

#include "kernels/cuda/matmul/cublaslt_api.h"
#include "kernels/cuda/matmul/plan_choice.h"
#include "src/base/check.h"

namespace quire {
namespace {

using namespace cublaslt;

constexpr int64_t kWorkspaceBytes = 32 << 20;  // what cuBLAS recommends on Hopper
constexpr size_t kMostPlans = 8192;  // a step's row counts times a model's products; about 1 KB each

void check_call(StatusCode status, const char* what, const char* file = __builtin_FILE(),
                int line = __builtin_LINE()) {
  if (status != 0) [[unlikely]]
    check_failed(fmt::format("cuBLASLt {}: status {}", what, status), file, line);
}

cudaDataType_t cuda_type(DType t) {
  return t == DType::kBF16 ? CUDA_R_16BF : t == DType::kF16 ? CUDA_R_16F : CUDA_R_32F;
}

// What a plan depends on; pointers do not matter, since all buffers are aligned to 256 bytes.
struct Shape {
  int32_t m, n, k;
  int64_t w_stride;
  bool out_f32;
  bool operator==(const Shape&) const = default;
};
struct ShapeHash {
  size_t operator()(const Shape& s) const {
    uint64_t h = static_cast<uint64_t>(s.m);
    for (uint64_t v : {static_cast<uint64_t>(s.n), static_cast<uint64_t>(s.k),
                       static_cast<uint64_t>(s.w_stride), uint64_t{s.out_f32}})
      h = (h ^ v) * 0x9E3779B97F4A7C15ull;
    return h;
  }
};
Shape shape_of(const Product& p) {
  return {p.m, p.n, p.k, p.w_stride, p.out_f32};
}

// Row-major out[m][n] is column-major [n, m]: D = op(A) B with A = w (k x n, transposed) and B = x (k x m).
class Layouts {
 public:
  Layouts(const Api& api, const Product& p, cudaDataType_t in, cudaDataType_t out) : api_(&api) {
    check_call(api.layout_create(&a, in, static_cast<uint64_t>(p.k), static_cast<uint64_t>(p.n), p.w_stride),
               "layout of w");
    check_call(api.layout_create(&b, in, static_cast<uint64_t>(p.k), static_cast<uint64_t>(p.m), p.k),
               "layout of x");
    check_call(api.layout_create(&d, out, static_cast<uint64_t>(p.n), static_cast<uint64_t>(p.m), p.n),
               "layout of out");
  }
  Layouts(Layouts&& other) noexcept
      : a(std::exchange(other.a, nullptr)),
        b(std::exchange(other.b, nullptr)),
        d(std::exchange(other.d, nullptr)),
        api_(other.api_) {}
  Layouts& operator=(Layouts&&) = delete;
  ~Layouts() {
    for (Layout layout : {a, b, d})
      if (layout != nullptr) api_->layout_destroy(layout);
  }

  Layout a = nullptr, b = nullptr, d = nullptr;

 private:
  const Api* api_;
};

struct Plan {
  Layouts layouts;
  Algo algo{};
};

// So short that a card's clock would count its ticks: several are timed as one.
constexpr int kRunsTimed = 3;

class CublasLt final : public GemmLibrary {
 public:
  CublasLt(const Api& api, Handle handle, StreamDevice& device, const Clock& clock, DType activations,
           DeviceBuffer workspace)
      : api_(api),
        handle_(handle),
        device_(device),
        clock_(clock),
        type_(cuda_type(activations)),
        workspace_(std::move(workspace)) {
    check_call(api_.desc_create(&desc_, kCompute32F, CUDA_R_32F), "operation");
    check_call(api_.desc_set(desc_, kDescTransA, &kOpTranspose, sizeof(kOpTranspose)), "transpose w");
    check_call(api_.preference_create(&preference_), "preference");
    const uint64_t bytes = kWorkspaceBytes;
    check_call(api_.preference_set(preference_, kPreferenceMaxWorkspace, &bytes, sizeof(bytes)),
               "workspace limit");
    // Parts of a split sum are added in f32; by default a kernel may be chosen that rounds them to the
    // output's type first.
    check_call(api_.preference_set(preference_, kPreferenceReductions, &kReduceInComputeType,
                                   sizeof(kReduceInComputeType)),
               "reductions");
  }
  ~CublasLt() override {
    plans_.clear();
    api_.preference_destroy(preference_);
    api_.desc_destroy(desc_);
    api_.destroy(handle_);
  }
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  // Rows that do not begin at 16 bytes would drive it to slow kernels; ours take those.
  bool takes(const Product& p) const override { return p.k % 8 == 0 && p.n % 8 == 0; }
  void run(const Product& p) override {
    const Plan& plan = plan_for(p);
    check_call(multiply(p, plan.layouts, plan.algo), "matmul");
  }

  TuningResult tune(std::span<const ProductFamily> families, int32_t least_rows, int64_t budget_us) override {
    const int64_t start = clock_.now_us();
    int32_t most = 0;
    for (const ProductFamily& family : families) most = std::max(most, family.front().m);
    begun_ = device_.make_event();
    done_ = device_.make_event();
    TuningResult result;
    for (const int32_t rows : plan_row_classes(least_rows, most))
      for (const ProductFamily& family : families) {
        if (!takes(family.front()) || rows > plan_rows(family.front().m)) continue;
        ++result.shapes;
        tune_shape(family, std::min(rows, family.front().m), start + budget_us, result);
      }
    device_.synchronize();
    result.us = clock_.now_us() - start;
    return result;
  }

 private:
  StatusCode multiply(const Product& p, const Layouts& layouts, const Algo& algo) {
    const float one = 1, zero = 0;
    return api_.matmul(handle_, desc_, &one, p.w, layouts.a, p.x, layouts.b, &zero, p.out, layouts.d, p.out,
                       layouts.d, &algo, workspace_.data(), kWorkspaceBytes,
                       static_cast<cudaStream_t>(device_.stream()));
  }

  // Every run takes the next weight of the family, as the layers of a step do: together they are larger than any cache, or in a small
  // model as warm as in its steps.
  void tune_shape(const ProductFamily& family, int32_t rows, int64_t deadline_us, TuningResult& result) {
    Product p = family.front();
    p.m = rows;
    const Layouts layouts(api_, p, type_, out_type(p));
    const TuningRules rules;
    std::vector<Heuristic> ways = ways_for(layouts, rules.candidates);
    bool in_time = true;
    size_t next = 0;
    const auto time = [&](int way) -> std::optional<double> {
      if (clock_.now_us() >= deadline_us) in_time = false;
      if (!in_time) return {};
      begun_->record();
      for (int run = 0; run < kRunsTimed; ++run) {
        p.w = family[next++ % family.size()].w;
        if (multiply(p, layouts, ways[static_cast<size_t>(way)].algo) != 0)
          return std::numeric_limits<double>::infinity();
      }
      done_->record();
      done_->wait();
      return done_->ms_since(*begun_) * 1000 / kRunsTimed;
    };
    const int chosen = choose_plan(static_cast<int>(ways.size()), rules, time);
    if (!in_time) return;
    ++result.timed;
    if (chosen == 0) return;
    ++result.changed;
    p.m = plan_rows(rows);
    tuned_.insert_or_assign(shape_of(p), ways[static_cast<size_t>(chosen)].algo);
  }

  std::vector<Heuristic> ways_for(const Layouts& l, int wanted) {
    std::vector<Heuristic> ways(static_cast<size_t>(wanted));
    int found = 0;
    const StatusCode status =
        api_.get_heuristic(handle_, desc_, l.a, l.b, l.d, l.d, preference_, wanted, ways.data(), &found);
    ways.resize(status == 0 ? static_cast<size_t>(found) : 0);
    std::erase_if(ways, [](const Heuristic& way) { return way.state != 0; });
    return ways;
  }

  // What was fastest for the class, if it makes this very shape too.
  bool take_tuned(const Product& p, Plan& plan) {
    Shape of_class = shape_of(p);
    of_class.m = plan_rows(p.m);
    const auto tuned = tuned_.find(of_class);
    if (tuned == tuned_.end()) return false;
    const Layouts& l = plan.layouts;
    Heuristic checked{};
    const StatusCode status = api_.algo_check(handle_, desc_, l.a, l.b, l.d, l.d, &tuned->second, &checked);
    if (status != 0 || checked.state != 0 || checked.workspace_bytes > kWorkspaceBytes) return false;
    plan.algo = tuned->second;
    return true;
  }

  cudaDataType_t out_type(const Product& p) const { return p.out_f32 ? CUDA_R_32F : type_; }

  Plan& plan_for(const Product& p) {
    const Shape shape = shape_of(p);
    if (const auto known = plans_.find(shape); known != plans_.end()) return known->second;
    if (plans_.size() >= kMostPlans)
      plans_.clear();  // made anew as they are asked for; nothing queued reads them
    Plan plan{.layouts = Layouts(api_, p, type_, out_type(p))};
    if (!take_tuned(p, plan)) {
      const std::vector<Heuristic> first = ways_for(plan.layouts, 1);
      if (first.empty())
        check_failed(fmt::format("cuBLASLt has no way to multiply m={} n={} k={}", p.m, p.n, p.k), __FILE__,
                     __LINE__);
      plan.algo = first.front().algo;
    }
    return plans_.emplace(shape, std::move(plan)).first->second;
  }

  Api api_;
  Handle handle_;
  StreamDevice& device_;
  const Clock& clock_;
  cudaDataType_t type_;
  DeviceBuffer workspace_;
  Desc desc_ = nullptr;
  Preference preference_ = nullptr;
  std::unordered_map<Shape, Plan, ShapeHash> plans_;
  std::unordered_map<Shape, Algo, ShapeHash> tuned_;  // m: the most rows of a class
  std::unique_ptr<StreamEvent> begun_, done_;
};

}  // namespace

Result<std::unique_ptr<GemmLibrary>> make_cublaslt(const cublaslt::Api& api, StreamDevice& device,
                                                   DType activations, const Clock& clock) {
  auto workspace = device.allocate(kWorkspaceBytes, "workspace of cuBLASLt");
  if (!workspace) return workspace.error();
  Handle handle = nullptr;
  if (const StatusCode status = api.create(&handle); status != 0)
    return error(Code::kUnavailable,
                 fmt::format("cuBLASLt {} does not start: status {}", api.get_version(), status));
  return std::unique_ptr<GemmLibrary>(
      std::make_unique<CublasLt>(api, handle, device, clock, activations, *std::move(workspace)));
}

Result<std::unique_ptr<GemmLibrary>> open_cublaslt(StreamDevice& device, DType activations) {
  static const SteadyClock clock;
  Result<Api> api = load();
  if (!api) return api.error();
  return make_cublaslt(*api, device, activations, clock);
}

}  // namespace quire
