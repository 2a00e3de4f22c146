// An episode as a list of what happens to the engine from outside: the script that a failing seed is shrunk
// to, and that `quire bench sim --script FILE` plays again. A file of JSON lines: the first is the setup,
// each other one event.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "benchmarks/sim/setup.h"

namespace quire {

enum class SimEventKind : uint8_t {
  kSubmit,         // a request comes
  kCancel,         // its client goes
  kPause,          // its client stops reading
  kResume,         // and reads again
  kStop,           // sequence `value` of it meets a stop text
  kExecutorError,  // the next step that runs fails
  kCopyError,      // the next step with copies fails half way through them
  kCopyDelay,      // ... takes `value` us longer
  kNoRoom,         // the next time blocks are taken there are none
  kClock,          // the clock jumps by `value` us
  kTransferError,  // the next copy between tiers fails half way
  kTransferDelay,  // ... takes `value` us longer
  kDiskCorrupt,    // the next read from the disk meets a block that is not what was written
  kDiskHang,       // the next copy to or from the disk takes `value` us longer
  kSequenceError,  // a step runs but fails one of its sequences: the next after `value` others have run
};
inline constexpr int32_t kNumSimEventKinds = 15;
std::string_view name_of(SimEventKind kind);

struct SimEvent {
  int64_t tick = 0;  // before which step of the episode
  SimEventKind kind = SimEventKind::kClock;
  RequestId request = 0;
  int64_t value = 0;
  std::shared_ptr<const CoreRequest> submit;
};

struct SimScript {
  SimSetup setup;
  int64_t num_ticks = 0;  // steps before the episode is drained
  std::vector<SimEvent> events;
  std::optional<uint64_t> seed{};  // of the run whose episode was shrunk to it
};

std::string to_json_lines(const SimScript& script);
// Errors name file and line.
Result<SimScript> read_script(const std::string& path);
Status write_script(const SimScript& script, const std::string& path);

}  // namespace quire
