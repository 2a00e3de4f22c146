// What a thread was at, for the one who reads why the process ended.
#pragma once

#include <string_view>

namespace quire {

// check_failed() on this thread prints the line beside what failed, cut to 1000 bytes; the note before it is forgotten. A thread
// that has noted nothing prints the last note of any other. A copy: no allocation, so once a step is cheap.
void note_for_check(std::string_view line);

}  // namespace quire
