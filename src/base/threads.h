// Starting threads, which the system may refuse: a limit of the user, of a cgroup or of the machine, or no room for a stack. A thread that
// the process cannot do without is an Error of whoever starts it; one that only shares work is done without.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>
#include <thread>
#include <vector>

#include "quire/result.h"

namespace quire {

// `name` stands in the error, beside what the system said and the limits that may be why.
Result<std::jthread> start_thread(std::string_view name, std::function<void()> body);

// Whether so many threads more could be started now, for a library that ends the process, or answers nobody, where one is refused. Starts
// them, and ends them again.
Status check_thread_room(std::string_view name, int32_t count);

// work(part) for each part of [0, count), once: on this thread and as many others as the system starts, at most one for each part.
template <class Work>
void run_side_by_side(int64_t count, const Work& work) {
  std::vector<std::jthread> others;
  int64_t begun = 1;
  for (; begun < count; ++begun) {
    Result<std::jthread> other = start_thread("a part of some work", [&work, begun] { work(begun); });
    if (!other) break;
    others.push_back(std::move(*other));
  }
  for (int64_t part = begun; part < count; ++part) work(part);
  if (count > 0) work(int64_t{0});
}

}  // namespace quire
