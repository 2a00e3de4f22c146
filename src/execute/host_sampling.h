// What a step does with its logits on the host: logprobs of prompts, and sampling. They come in pieces of as many rows as a buffer holds; a
// piece may begin or end inside a sequence's rows. Executor thread; sized once, but for what grows with the batch.
#pragma once

#include <functional>
#include <vector>

#include "src/execute/host_step.h"
#include "src/execute/step_result.h"
#include "src/sample/sampler.h"

namespace quire {

class HostSampling {
 public:
  HostSampling(int64_t piece_rows, int64_t vocab) : piece_rows_(piece_rows), vocab_(vocab) {}

  // Logits of rows [first, first + count) of the step, in host memory until the next call. The sampler may write over them.
  using MakePiece = std::function<float*(int64_t first, int64_t count)>;
  void run(const HostStep& step, const MakePiece& make_piece, Sampler& sampler, StepResult& result);

 private:
  int64_t piece_rows_, vocab_;
  std::vector<SampleRow> samples_;  // of a piece
};

}  // namespace quire
