#include "kernels/cuda/matmul/cublaslt.h"

#include <fmt/format.h>

#include <tuple>
#include <unordered_map>

#include "kernels/cuda/matmul/cublaslt_api.h"
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

class CublasLt final : public GemmLibrary {
 public:
  CublasLt(const Api& api, Handle handle, StreamDevice& device, DType activations, DeviceBuffer workspace)
      : api_(api),
        handle_(handle),
        device_(device),
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
    const float one = 1, zero = 0;
    check_call(api_.matmul(handle_, desc_, &one, p.w, plan.layouts.a, p.x, plan.layouts.b, &zero, p.out,
                           plan.layouts.d, p.out, plan.layouts.d, &plan.algo, workspace_.data(),
                           kWorkspaceBytes, static_cast<cudaStream_t>(device_.stream())),
               "matmul");
  }

 private:
  Plan& plan_for(const Product& p) {
    const Shape shape = shape_of(p);
    if (const auto known = plans_.find(shape); known != plans_.end()) return known->second;
    if (plans_.size() >= kMostPlans)
      plans_.clear();  // made anew as they are asked for; nothing queued reads them
    Plan plan{.layouts = Layouts(api_, p, type_, p.out_f32 ? CUDA_R_32F : type_)};
    Heuristic best{};
    int found = 0;
    const StatusCode status =
        api_.get_heuristic(handle_, desc_, plan.layouts.a, plan.layouts.b, plan.layouts.d, plan.layouts.d,
                           preference_, 1, &best, &found);
    if (status != 0 || found == 0)
      check_failed(
          fmt::format("cuBLASLt has no way to multiply m={} n={} k={} (status {})", p.m, p.n, p.k, status),
          __FILE__, __LINE__);
    plan.algo = best.algo;
    return plans_.emplace(shape, std::move(plan)).first->second;
  }

  Api api_;
  Handle handle_;
  StreamDevice& device_;
  cudaDataType_t type_;
  DeviceBuffer workspace_;
  Desc desc_ = nullptr;
  Preference preference_ = nullptr;
  std::unordered_map<Shape, Plan, ShapeHash> plans_;
};

}  // namespace

Result<std::unique_ptr<GemmLibrary>> open_cublaslt(StreamDevice& device, DType activations) {
  Result<Api> api = load();
  if (!api) return api.error();
  auto workspace = device.allocate(kWorkspaceBytes, "workspace of cuBLASLt");
  if (!workspace) return workspace.error();
  Handle handle = nullptr;
  if (const StatusCode status = api->create(&handle); status != 0)
    return error(Code::kUnavailable,
                 fmt::format("cuBLASLt {} does not start: status {}", api->get_version(), status));
  return std::unique_ptr<GemmLibrary>(
      std::make_unique<CublasLt>(*api, handle, device, activations, *std::move(workspace)));
}

}  // namespace quire
