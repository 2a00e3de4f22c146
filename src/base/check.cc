#include "src/base/check.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "src/base/check_note.h"

namespace quire {
namespace {
CheckHandler handler_now = nullptr;
thread_local char note_now[1001] = "";
}  // namespace

void note_for_check(std::string_view line) {
  const size_t size = std::min(line.size(), sizeof note_now - 1);
  std::memcpy(note_now, line.data(), size);
  note_now[size] = '\0';
}

void set_check_handler(CheckHandler handler) {
  handler_now = handler;
}

void check_failed(std::string_view what, const char* file, int line) {
  if (handler_now != nullptr) handler_now(what, file, line);
  std::fprintf(stderr, "quire: check failed at %s:%d: %.*s\n", file, line, static_cast<int>(what.size()),
               what.data());
  if (note_now[0] != '\0') std::fprintf(stderr, "quire: %s\n", note_now);
  std::fflush(stderr);
  std::abort();
}

}  // namespace quire
