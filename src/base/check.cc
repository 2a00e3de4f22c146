#include "src/base/check.h"

#include <dlfcn.h>
#include <unwind.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

#include "quire/result.h"
#include "src/base/check_note.h"

namespace quire {
namespace {
CheckHandler handler_now = nullptr;
using Note = char[1001];
thread_local Note note_now = "";
// Of whichever thread noted last: a fault of a device may be told to another one, which waits for a copy.
std::mutex newest_mutex;
Note newest_note = "";

void put(Note& note, std::string_view line) {
  const size_t size = std::min(line.size(), sizeof note - 1);
  std::memcpy(note, line.data(), size);
  note[size] = '\0';
}

void print_note() {
  if (note_now[0] != '\0') {
    std::fprintf(stderr, "quire: %s\n", note_now);
  } else if (const std::unique_lock lock(newest_mutex, std::try_to_lock); lock && newest_note[0] != '\0') {
    std::fprintf(stderr, "quire: on another thread: %s\n", newest_note);
  }
}

struct Callers {
  static constexpr size_t kMost = 6;
  const void* innermost;
  size_t count = 0;
};

_Unwind_Reason_Code print_caller(_Unwind_Context* frame, void* of) {
  auto& callers = *static_cast<Callers*>(of);
  const uintptr_t returns_to = _Unwind_GetIP(frame);
  if (callers.count == 0 && returns_to != reinterpret_cast<uintptr_t>(callers.innermost))
    return _URC_NO_REASON;
  Dl_info place{};
  if (dladdr(reinterpret_cast<const void*>(returns_to), &place) == 0) return _URC_END_OF_STACK;
  std::fprintf(stderr, "quire: asked from %s 0x%zx\n", place.dli_fname,
               static_cast<size_t>(returns_to - 1 - reinterpret_cast<uintptr_t>(place.dli_fbase)));
  return ++callers.count == Callers::kMost ? _URC_END_OF_STACK : _URC_NO_REASON;
}

}  // namespace

void note_for_check(std::string_view line) {
  put(note_now, line);
  const std::lock_guard lock(newest_mutex);
  put(newest_note, line);
}

void set_check_handler(CheckHandler handler) {
  handler_now = handler;
}

void check_failed(std::string_view what, const char* file, int line) {
  if (handler_now != nullptr) handler_now(what, file, line);
  std::fprintf(stderr, "quire: check failed at %s:%d: %.*s\n", file, line, static_cast<int>(what.size()),
               what.data());
  print_note();
  std::fflush(stderr);
  std::abort();
}

// An operator knows no place of its caller's. Each line is the code's address as `addr2line -Cfie FILE ADDRESS` takes it.
void result_misused(const Error* held) {
  Callers callers{.innermost = __builtin_return_address(0)};
  if (handler_now == nullptr) _Unwind_Backtrace(print_caller, &callers);
  if (held == nullptr)
    check_failed("a result that holds a value was asked for its error", __FILE__, __LINE__);
  check_failed("a result that holds an error was asked for its value: " + held->message, __FILE__, __LINE__);
}

}  // namespace quire
