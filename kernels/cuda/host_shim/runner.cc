#include "kernels/cuda/host_shim/runner.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <mutex>
#include <numeric>
#include <string_view>
#include <utility>

#include "fmt/format.h"
#include "kernels/cuda/host_shim/fiber_switch.h"
#include "kernels/cuda/host_shim/memory_check.h"
#include "kernels/cuda/host_shim/runner_access.h"
#include "kernels/cuda/host_shim/stack_pool.h"
#include "src/base/check.h"
#include "src/base/random.h"

namespace quire::shim {

thread_local constinit Hot hot;
thread_local constinit Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace {

constexpr int kMaxThreads = StackPool::kMaxStacks;
constexpr unsigned kMostBlocksX = 0x7fffffff,
                   kMostBlocksYZ = 65535;  // of a grid, compute capability 3.0 and later
constexpr int kMaxSharedBytes = 227 * 1024;

// "decode<bf16>", without the bracket that ends the compiler's text.
std::string_view kernel_of(const LaunchShape& shape) {
  const std::string_view name = shape.name;
  return name.substr(0, name.size() - (name.ends_with(']') ? 1 : 0));
}

// Read when a thread's runner is made, so no lock is on a launch's path.
struct DefaultOptions {
  std::mutex mutex;
  ShimOptions options;
};
DefaultOptions& default_options() {
  static DefaultOptions d;
  return d;
}
ShimOptions options_of_new_threads() {
  const std::lock_guard lock(default_options().mutex);
  return default_options().options;
}

class Runner {
 public:
  void run_grid(const LaunchShape& shape, const std::function<void()>& body);

  bool block_barrier_or(bool value, int line);
  void fault(std::string what);

  ShimOptions options = options_of_new_threads();
  SharedShadow shared_shadow;
  GlobalShadow global_shadow;
  bool dependent = false;

 private:
  static void fiber_main();
  void run_block();
  void begin_launch();
  void begin_block();
  void start_warp(uint32_t w);
  void resume(Fiber& fiber);
  bool open_barrier();
  void finish_block();
  std::string stuck() const;
  std::vector<uint32_t> order(uint64_t count, uint64_t salt) const;

  StackPool stacks_;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  std::vector<char> shared_;
  const std::function<void()>* body_ = nullptr;
  std::string fault_;
  LaunchShape shape_;
  uint32_t num_threads_ = 0;
  bool vote_ = false, vote_result_ = false, running_ = false;
};

Runner& runner() {
  static thread_local Runner r;
  return r;
}
// The same for kernels, without the question whether it is made.
thread_local constinit Runner* current = nullptr;

// What is continued when a fiber stops at `context`: another lane of its warp, or the scheduler.
void* after(Fiber& self, void* context) {
  self.stack_pointer = context;
  Warp& warp = *self.warp;
  if (warp.ready == 0) return hot.scheduler;
  Fiber& next = warp.fibers[std::countr_zero(warp.ready)];
  warp.ready &= warp.ready - 1;
  hot.fiber = &next;
  threadIdx = next.index;
  return next.stack_pointer;
}

[[gnu::noinline]] void diverge(const Warp& warp, const WarpOp& op, int line) {
  fault(fmt::format(
      "divergent warp operation: this lane is at {} (line {}), others of its warp at {} (line {})", op.name,
      line, warp.op->name, warp.line));
}

// The running lane stands at an operation; true for the one that comes last, which then lets the others go.
inline bool comes_last(Warp& warp, const WarpOp& op, uint32_t bit, int line) {
  if (warp.at_op == 0) {
    warp.op = &op;
    warp.line = line;
  } else if (warp.op != &op || warp.line != line) [[unlikely]] {
    diverge(warp, op, line);
  }
  warp.at_op |= bit;
  if (warp.at_op != warp.exists) return false;
  if (warp.exists != ~0u) [[unlikely]]
    fault(fmt::format("{} in a warp of fewer than 32 threads", op.name));
  return true;
}
inline void let_others_go(Warp& warp, uint32_t bit) {
  warp.at_op = 0;
  warp.ready = warp.exists & ~bit;
}

void Runner::fiber_main() {
  Runner& r = runner();
  (*r.body_)();
  Fiber& self = *hot.fiber;
  if (r.options.checking && r.dependent && !self.waited_for_previous_kernel)
    r.fault("thread ends without wait_for_previous_kernel() in a dependent launch");
  self.warp->done |= 1u << (self.thread % kLanes);
  r.stacks_.give_back(self.stack);  // nothing takes it before the switch below
  self.stack = -1;
  switch_by(nullptr, nullptr, 0,
            [](const void*, void*, int, void* context) { return after(*hot.fiber, context); });
}

void Runner::resume(Fiber& fiber) {
  switch_by(nullptr, &fiber, 0, [](const void*, void* to, int, void* context) {
    hot.scheduler = context;
    hot.fiber = static_cast<Fiber*>(to);
    threadIdx = hot.fiber->index;
    return hot.fiber->stack_pointer;
  });
}

bool Runner::block_barrier_or(bool value, int line) {
  vote_ = vote_ || value;
  block_barrier("sync_threads_or", line);
  return vote_result_;
}

// The scheduler takes over at once and ends the launch; this fiber is never continued.
void Runner::fault(std::string what) {
  fault_ = running_ && hot.fiber != nullptr ? fmt::format("{}: {}: {}", kernel_of(shape_), place(), what)
                                            : fmt::format("{}: {}", kernel_of(shape_), what);
  std::string().swap(what);  // its destructor will not run
  if (!running_ || hot.fiber == nullptr) {
    running_ = false;
    throw ShimFault(std::exchange(fault_, {}));
  }
  switch_by(nullptr, nullptr, 0, [](const void*, void*, int, void*) { return hot.scheduler; });
}

std::vector<uint32_t> Runner::order(uint64_t count, uint64_t salt) const {
  std::vector<uint32_t> o(count);
  std::iota(o.begin(), o.end(), 0u);
  if (options.order_seed == 0) return o;
  Random random(options.order_seed ^ (salt * 0x9E3779B97F4A7C15ull));
  for (size_t i = o.size(); i > 1; --i) std::swap(o[i - 1], o[random.below(i)]);
  return o;
}

void Runner::run_grid(const LaunchShape& shape, const std::function<void()>& body) {
  check(!running_, "a kernel launch inside a kernel");
  shape_ = shape;
  num_threads_ = static_cast<uint32_t>(shape.block.count());
  if (num_threads_ == 0 || num_threads_ > kMaxThreads)
    fault(fmt::format("block of {} threads; a block takes 1 to {}", num_threads_, kMaxThreads));
  if (shape.shared_bytes < 0 || shape.shared_bytes > kMaxSharedBytes)
    fault(fmt::format("{} bytes of shared memory; a block has at most {}", shape.shared_bytes,
                      kMaxSharedBytes));
  if (shape.grid.count() == 0) fault("empty grid");
  if (shape.grid.x > kMostBlocksX || std::max(shape.grid.y, shape.grid.z) > kMostBlocksYZ)
    fault(fmt::format("grid of ({}, {}, {}) blocks; a card takes ({}, {}, {})", shape.grid.x, shape.grid.y,
                      shape.grid.z, kMostBlocksX, kMostBlocksYZ, kMostBlocksYZ));
  body_ = &body;
  current = this;
  dependent = shape.dependent;
  blockDim = shape.block;
  gridDim = shape.grid;
  shared_.resize(std::max<size_t>(shared_.size(), static_cast<size_t>(shape.shared_bytes) + 1024));
  auto aligned = (reinterpret_cast<uintptr_t>(shared_.data()) + 1023) & ~uintptr_t{1023};
  hot.shared = reinterpret_cast<char*>(aligned);
  hot.shared_bytes = static_cast<uint32_t>(shape.shared_bytes);
  hot.checking = options.checking;
  if (options.checking) global_shadow.begin_launch(shape.dependent);
  begin_launch();
  running_ = true;
  for (const uint32_t b : order(shape.grid.count(), 1)) {
    blockIdx = {b % shape.grid.x, b / shape.grid.x % shape.grid.y, b / shape.grid.x / shape.grid.y};
    run_block();
  }
  running_ = false;
}

// What is the same for all blocks.
void Runner::begin_launch() {
  const Dim3 d = blockDim;
  fibers_.resize(num_threads_);
  warps_.assign((num_threads_ + kLanes - 1) / kLanes, {});
  for (uint32_t t = 0; t < num_threads_; ++t) {
    Fiber& f = fibers_[t];
    f.thread = t;
    f.index = {t % d.x, t / d.x % d.y, t / d.x / d.y};
    f.warp = &warps_[t / kLanes];
    f.warp->exists |= 1u << (t % kLanes);
  }
  for (size_t w = 0; w < warps_.size(); ++w) warps_[w].fibers = &fibers_[w * kLanes];
}

void Runner::begin_block() {
  for (Warp& w : warps_) w.ready = w.at_op = w.at_barrier = w.done = 0;
  for (Fiber& f : fibers_) {
    f.waited_for_previous_kernel = false;
    f.open_group.clear();
    f.async_groups.clear();
  }
  vote_ = vote_result_ = false;
  if (!options.checking) return;
  std::memset(hot.shared, 0xff,
              hot.shared_bytes);  // NaN in every float type, for whoever reads what he should not
  shared_shadow.begin_block(hot.shared_bytes, static_cast<uint32_t>(warps_.size()));
}

void Runner::start_warp(uint32_t w) {
  for (uint32_t lane = 0; lane < kLanes && w * kLanes + lane < num_threads_; ++lane) {
    Fiber& f = fibers_[w * kLanes + lane];
    f.stack = stacks_.take();
    f.stack_pointer = prepare_stack(stacks_.at(f.stack), StackPool::bytes_of(f.stack), &Runner::fiber_main);
    resume(f);
    if (!fault_.empty()) return;
  }
}

void Runner::run_block() {
  begin_block();
  const std::vector<uint32_t> warp_order = order(warps_.size(), 2 + blockIdx.x);
  for (const uint32_t w : warp_order) {
    start_warp(w);
    if (!fault_.empty()) return finish_block();
  }
  for (;;) {
    bool progressed = false;
    for (const uint32_t w : warp_order) {
      Warp& warp = warps_[w];
      while (warp.ready != 0) {
        const uint32_t lane = std::countr_zero(warp.ready);
        warp.ready &= warp.ready - 1;
        resume(fibers_[w * kLanes + lane]);
        if (!fault_.empty()) return finish_block();
        progressed = true;
      }
    }
    if (progressed) continue;
    if (std::all_of(warps_.begin(), warps_.end(), [](const Warp& x) { return x.done == x.exists; })) break;
    if (!open_barrier()) {
      fault_ = fmt::format("{}: block ({},{},{}): {}", kernel_of(shape_), blockIdx.x, blockIdx.y, blockIdx.z,
                           stuck());
      return finish_block();
    }
  }
  hot.fiber = nullptr;
}

// Lets every thread past the barrier if all of them stand there, at the same line.
bool Runner::open_barrier() {
  for (const Warp& w : warps_)
    if (w.at_barrier != w.exists) return false;
  for (const Fiber& f : fibers_)
    if (f.line != fibers_[0].line || f.waits_at != fibers_[0].waits_at) return false;
  for (Warp& w : warps_) {
    w.ready = w.exists;
    w.at_barrier = 0;
  }
  vote_result_ = std::exchange(vote_, false);
  if (options.checking) shared_shadow.block_barrier();
  return true;
}

// After a fault: forget the fibers and tell the caller of launch.
void Runner::finish_block() {
  stacks_.reset();
  hot.fiber = nullptr;
  running_ = false;
  throw ShimFault(std::exchange(fault_, {}));
}

// Why nothing can run: names one thread that waits and one that keeps it waiting.
std::string Runner::stuck() const {
  for (uint32_t w = 0; w < warps_.size(); ++w) {
    const Warp& warp = warps_[w];
    if (warp.at_op == 0) continue;
    return fmt::format(
        "divergent warp operation: {} (line {}) waits for lanes {:#010x} of warp {}, of which {:#010x} are "
        "at a barrier and "
        "{:#010x} have ended",
        warp.op->name, warp.line, warp.exists & ~warp.at_op, w, warp.at_barrier, warp.done);
  }
  uint32_t at_barrier = 0, done = 0;
  const Fiber* first = nullptr;
  const Fiber* other = nullptr;
  for (const Fiber& f : fibers_) {
    const bool waits = warps_[f.thread / kLanes].at_barrier >> (f.thread % kLanes) & 1;
    (waits ? at_barrier : done)++;
    if (waits && first == nullptr) first = &f;
    if (waits && (f.line != first->line || f.waits_at != first->waits_at)) other = &f;
  }
  std::string s =
      fmt::format("divergent barrier: {} threads wait and {} have ended; thread {} is at {} (line {})",
                  at_barrier, done, first->thread, first->waits_at, first->line);
  if (other != nullptr)
    s += fmt::format(", thread {} at {} (line {})", other->thread, other->waits_at, other->line);
  return s;
}

}  // namespace

void set_default_shim_options(const ShimOptions& options) {
  const std::lock_guard lock(default_options().mutex);
  default_options().options = options;
}
void set_shim_options(const ShimOptions& options) {
  runner().options = options;
}
const ShimOptions& shim_options() {
  return runner().options;
}

void run_or_record(void* stream, std::function<void()> work) {
  auto* s = static_cast<HostStream*>(stream);
  if (s != nullptr && s->recording != nullptr) return s->recording->push_back(std::move(work));
  work();
}

void run_grid(const LaunchShape& shape, const std::function<void()>& body) {
  runner().run_grid(shape, body);
}
namespace {

void* at_operation(const void* operation, void* args, int line, void* context) {
  Fiber& self = *hot.fiber;
  Warp& warp = *self.warp;
  const WarpOp& op = *static_cast<const WarpOp*>(operation);
  const uint32_t lane = self.thread % kLanes, bit = 1u << lane;
  warp.args[lane] = args;
  if (!comes_last(warp, op, bit, line)) return after(self, context);
  if (op.execute != nullptr) {
    op.execute(warp.args);
  } else if (hot.checking) {
    current->shared_shadow.warp_barrier(self.thread / kLanes);
  }
  let_others_go(warp, bit);
  return context;
}

void* at_shuffle(const void* operation, void*, int line, void* context) {
  Fiber& self = *hot.fiber;
  Warp& warp = *self.warp;
  const uint32_t bit = 1u << (self.thread % kLanes);
  if (!comes_last(warp, *static_cast<const WarpOp*>(operation), bit, line)) return after(self, context);
  for (uint32_t i = 0; i < kLanes; ++i) warp.shuffled[i] = warp.words[warp.sources[i]];
  let_others_go(warp, bit);
  return context;
}

void* at_barrier(const void* name, void*, int line, void* context) {
  Fiber& self = *hot.fiber;
  self.waits_at = static_cast<const char*>(name);
  self.line = line;
  self.warp->at_barrier |= 1u << (self.thread % kLanes);
  return after(self, context);
}

}  // namespace

void warp_operation(const WarpOp& op, void* args, int line) {
  switch_by(&op, args, line, at_operation);
}
void wait_for_shuffle(const WarpOp& op, int line) {
  switch_by(&op, nullptr, line, at_shuffle);
}
void block_barrier(const char* name, int line) {
  switch_by(name, nullptr, line, at_barrier);
}
bool block_barrier_or(bool value, int line) {
  return runner().block_barrier_or(value, line);
}
void fault(std::string what) {
  runner().fault(std::move(what));
  __builtin_unreachable();
}

std::string place() {
  return fmt::format("block ({},{},{}) thread {}", blockIdx.x, blockIdx.y, blockIdx.z, hot.fiber->thread);
}

// ---- asynchronous copies, while checking is on ----
namespace {

void land(const AsyncCopy& copy) {
  if (copy.source == nullptr) {
    std::memset(hot.shared + copy.target, 0, copy.bytes);
  } else {
    std::memcpy(hot.shared + copy.target, copy.source, copy.bytes);
  }
}

}  // namespace

void begin_async_copy(const AsyncCopy& copy) {
  if (copy.target % copy.bytes != 0)
    fault(
        fmt::format("asynchronous copy of {} bytes to shared byte {}: misaligned", copy.bytes, copy.target));
  if (reinterpret_cast<uintptr_t>(copy.source) % copy.bytes != 0)
    fault("asynchronous copy from a misaligned address");
  if (copy.source != nullptr) current->global_shadow.read(copy.source, copy.bytes);
  current->shared_shadow.begin_async_write(copy.target, copy.bytes, hot.fiber->thread);
  hot.fiber->open_group.push_back(copy);
}

void commit_async_copies() {
  hot.fiber->async_groups.push_back(std::exchange(hot.fiber->open_group, {}));
}

void wait_async_copies(int newest_left) {
  auto& groups = hot.fiber->async_groups;
  const int landing = static_cast<int>(groups.size()) - newest_left;
  if (landing <= 0) return;
  for (int i = 0; i < landing; ++i)
    for (const AsyncCopy& copy : groups[i]) {
      land(copy);
      current->shared_shadow.land_async_write(copy.target, copy.bytes, hot.fiber->thread);
    }
  groups.erase(groups.begin(), groups.begin() + landing);
}

// ---- dependent launches ----
void mark_waited_for_previous_kernel() {
  hot.fiber->waited_for_previous_kernel = true;
}

void mark_next_kernel_may_start() {
  if (hot.checking && runner().dependent && !hot.fiber->waited_for_previous_kernel)
    fault("let_next_kernel_start() before wait_for_previous_kernel()");
}

// ---- accesses, checked ----
void check_shared_read(uint32_t offset, uint32_t bytes) {
  current->shared_shadow.read(offset, bytes, hot.fiber->thread);
}
void check_shared_read_by(uint32_t offset, uint32_t bytes, uint32_t thread) {
  current->shared_shadow.read(offset, bytes, thread);
}
void check_shared_write(uint32_t offset, uint32_t bytes) {
  current->shared_shadow.write(offset, bytes, hot.fiber->thread);
}
void check_shared_atomic(uint32_t offset, uint32_t bytes) {
  current->shared_shadow.atomic(offset, bytes, hot.fiber->thread);
}
void check_global_read(const void* p, int64_t bytes) {
  current->global_shadow.read(p, bytes);
}
void check_global_write(const void* p, int64_t bytes) {
  current->global_shadow.write(p, bytes);
}

}  // namespace quire::shim
