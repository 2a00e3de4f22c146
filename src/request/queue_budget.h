// The bound on what may wait: requests and prompt tokens. Taken by the thread that submits, before anything
// is queued, so that a refusal is an answer and not an event; given back by the engine thread at admission or
// at the request's end. Any thread.
#pragma once

#include <atomic>
#include <cstdint>

#include "quire/result.h"

namespace quire {

class QueueBudget {
 public:
  QueueBudget(int32_t max_requests, int64_t max_tokens)
      : max_requests_(max_requests), max_tokens_(max_tokens) {}

  // kResourceExhausted, with the value, the limit and a delay to retry after, when the queue is full. A
  // request may always wait alone, however long its prompt.
  Status take(int64_t prompt_tokens, int64_t retry_delay_ms);
  void give_back(int64_t prompt_tokens);
  int32_t num_requests() const { return requests_.load(std::memory_order_relaxed); }
  int64_t num_tokens() const { return tokens_.load(std::memory_order_relaxed); }

 private:
  const int32_t max_requests_;
  const int64_t max_tokens_;
  std::atomic<int32_t> requests_{0};
  std::atomic<int64_t> tokens_{0};
};

}  // namespace quire
