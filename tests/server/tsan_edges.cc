// What the thread sanitizer cannot see. Debian's gRPC is not instrumented: between a batch that one thread starts and the callback
// that another runs for it the sanitizer sees no order, and reports every object that is handed over. Linked with --wrap, this gives
// it the order that gRPC promises, as one mutex that is taken when a batch starts, before a callback runs and after an answer is
// taken from a queue. It is more order than there is (any start before any later callback), so a race that only this hides stays
// unseen; what our threads do to each other without gRPC between is seen.
#include <grpc/grpc.h>

#include <mutex>
#include <thread>
#include <unordered_map>

namespace {

using Functor = grpc_completion_queue_functor;
using Run = void (*)(Functor*, int);

std::mutex edge;

std::unordered_map<Functor*, Run>& originals() {
  static auto* map = new std::unordered_map<Functor*, Run>;  // callbacks come until the very end
  return *map;
}

void cross() {
  const std::lock_guard lock(edge);
}

void run(Functor* functor, int ok) {
  Run original;
  {
    const std::lock_guard lock(edge);
    original = originals().at(functor);
  }
  original(functor, ok);
}

extern "C" char __executable_start, etext;

// A tag is a callback's functor, which begins with a function, or an object of a queue, which begins with a table.
bool is_functor(void* tag) {
  const char* first = *static_cast<const char**>(tag);
  return first >= &__executable_start && first < &etext;
}

}  // namespace

extern "C" {

grpc_call_error __real_grpc_call_start_batch(grpc_call*, const grpc_op*, size_t, void*, void*);
grpc_event __real_grpc_completion_queue_next(grpc_completion_queue*, gpr_timespec, void*);
grpc_event __real_grpc_completion_queue_pluck(grpc_completion_queue*, void*, gpr_timespec, void*);
void __real__ZN4grpc8internal18ServerCallbackCall14ScheduleOnDoneEb(void*, bool);

grpc_call_error __wrap_grpc_call_start_batch(grpc_call* call, const grpc_op* ops, size_t count, void* tag,
                                             void* reserved) {
  {
    const std::lock_guard lock(edge);
    if (tag != nullptr && is_functor(tag)) {
      auto* functor = static_cast<Functor*>(tag);
      if (functor->functor_run != run) originals()[functor] = functor->functor_run;
      functor->functor_run = run;
    }
  }
  return __real_grpc_call_start_batch(call, ops, count, tag, reserved);
}

grpc_event __wrap_grpc_completion_queue_next(grpc_completion_queue* queue, gpr_timespec deadline,
                                             void* reserved) {
  const grpc_event event = __real_grpc_completion_queue_next(queue, deadline, reserved);
  cross();
  return event;
}

grpc_event __wrap_grpc_completion_queue_pluck(grpc_completion_queue* queue, void* tag, gpr_timespec deadline,
                                              void* reserved) {
  const grpc_event event = __real_grpc_completion_queue_pluck(queue, tag, deadline, reserved);
  cross();
  return event;
}

// grpc::internal::ServerCallbackCall::ScheduleOnDone(bool): a reactor's OnDone on gRPC's executor; here on a thread of its own.
void __wrap__ZN4grpc8internal18ServerCallbackCall14ScheduleOnDoneEb(void* call, bool is_inline) {
  cross();
  if (is_inline) return __real__ZN4grpc8internal18ServerCallbackCall14ScheduleOnDoneEb(call, true);
  std::thread([call] {
    cross();
    __real__ZN4grpc8internal18ServerCallbackCall14ScheduleOnDoneEb(call, true);
  }).detach();
}

}  // extern "C"
