// Steps on the CPU: host memory is device memory, so the step's arrays are used where they were built.
#pragma once

#include <memory>

#include "src/execute/executor_thread.h"
#include "src/execute/model_parts.h"

namespace quire {

std::unique_ptr<StepRunner> make_cpu_runner(ModelParts parts);

}  // namespace quire
