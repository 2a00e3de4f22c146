// What the thread sanitizer cannot see. gRPC and Abseil come from the system and are not instrumented: what they order looks unordered
// to it, and every object that one of gRPC's threads hands to another is reported. Linked with --wrap (server.cmake), this tells it of
// two things, in gRPC's own archives as well: an absl::Mutex, which gpr_mu is too, is taken or given back; a batch that was started
// calls its callback. That is the order that there is and no more: what our threads do to each other beside it is seen.
#include <absl/synchronization/mutex.h>
#include <absl/time/time.h>
#include <grpc/grpc.h>
#include <sanitizer/tsan_interface.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <utility>

namespace {

using absl::CondVar, absl::Duration, absl::Mutex, absl::Time;

void taken(Mutex* mutex) {
  __tsan_acquire(mutex);
}
void given_back(Mutex* mutex) {
  __tsan_release(mutex);
}

// A batch's tag is a callback's functor, which begins with a function, or an object of a queue, which begins with a table.
using Functor = grpc_completion_queue_functor;
using Run = void (*)(Functor*, int);

extern "C" char __executable_start, etext;

bool is_functor(void* tag) {
  const char* first = *static_cast<const char**>(tag);
  return first >= &__executable_start && first < &etext;
}

// gRPC has a handful of such functions, whatever the callback; each gets one that stands in for it. Relaxed: they order nothing.
std::array<std::atomic<Run>, 8> originals;

template <size_t I>
void run(Functor* functor, int ok) {
  __tsan_acquire(functor);
  originals[I].load(std::memory_order_relaxed)(functor, ok);
}

template <size_t... I>
constexpr std::array<Run, sizeof...(I)> all_runs(std::index_sequence<I...>) {
  return {run<I>...};
}
constexpr auto kRuns = all_runs(std::make_index_sequence<originals.size()>());

Run stand_in_for(Run original) {
  for (size_t i = 0; i < originals.size(); ++i) {
    Run known = nullptr;
    if (original == kRuns[i] ||
        originals[i].compare_exchange_strong(known, original, std::memory_order_relaxed) ||
        known == original) {
      return kRuns[i];
    }
  }
  std::abort();  // more kinds of callbacks than this has room for
}

}  // namespace

extern "C" {

grpc_call_error __real_grpc_call_start_batch(grpc_call*, const grpc_op*, size_t, void*, void*);

grpc_call_error __wrap_grpc_call_start_batch(grpc_call* call, const grpc_op* ops, size_t count, void* tag,
                                             void* reserved) {
  if (tag != nullptr && is_functor(tag)) {
    auto* functor = static_cast<Functor*>(tag);
    functor->functor_run = stand_in_for(functor->functor_run);
    __tsan_release(functor);
  }
  return __real_grpc_call_start_batch(call, ops, count, tag, reserved);
}

}  // extern "C"

// QUIRE_ABSL is how a symbol of Abseil begins, with its inline namespace: another in each of its releases.
#define REAL(name) asm("__real_" QUIRE_ABSL name)
#define WRAP(name) asm("__wrap_" QUIRE_ABSL name)

void real_lock(Mutex*) REAL("5Mutex4LockEv");
void wrap_lock(Mutex*) WRAP("5Mutex4LockEv");
void wrap_lock(Mutex* mutex) {
  real_lock(mutex);
  taken(mutex);
}

bool real_try_lock(Mutex*) REAL("5Mutex7TryLockEv");
bool wrap_try_lock(Mutex*) WRAP("5Mutex7TryLockEv");
bool wrap_try_lock(Mutex* mutex) {
  const bool locked = real_try_lock(mutex);
  if (locked) taken(mutex);
  return locked;
}

void real_unlock(Mutex*) REAL("5Mutex6UnlockEv");
void wrap_unlock(Mutex*) WRAP("5Mutex6UnlockEv");
void wrap_unlock(Mutex* mutex) {
  given_back(mutex);
  real_unlock(mutex);
}

void real_wait(CondVar*, Mutex*) REAL("7CondVar4WaitEPNS0_5MutexE");
void wrap_wait(CondVar*, Mutex*) WRAP("7CondVar4WaitEPNS0_5MutexE");
void wrap_wait(CondVar* condition, Mutex* mutex) {
  given_back(mutex);
  real_wait(condition, mutex);
  taken(mutex);
}

bool real_wait_with_timeout(CondVar*, Mutex*, Duration)
    REAL("7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE");
bool wrap_wait_with_timeout(CondVar*, Mutex*, Duration)
    WRAP("7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE");
bool wrap_wait_with_timeout(CondVar* condition, Mutex* mutex, Duration timeout) {
  given_back(mutex);
  const bool expired = real_wait_with_timeout(condition, mutex, timeout);
  taken(mutex);
  return expired;
}

bool real_wait_with_deadline(CondVar*, Mutex*, Time)
    REAL("7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");
bool wrap_wait_with_deadline(CondVar*, Mutex*, Time)
    WRAP("7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE");
bool wrap_wait_with_deadline(CondVar* condition, Mutex* mutex, Time deadline) {
  given_back(mutex);
  const bool expired = real_wait_with_deadline(condition, mutex, deadline);
  taken(mutex);
  return expired;
}
