#include "src/request/queue_budget.h"

#include <fmt/format.h>

#include "src/base/check.h"

namespace quire {
namespace {

Error full(std::string message, int64_t retry_delay_ms) {
  Error e = error(Code::kResourceExhausted, std::move(message));
  e.retry_delay_ms = retry_delay_ms;
  return e;
}

}  // namespace

Status QueueBudget::take(int64_t prompt_tokens, int64_t retry_delay_ms) {
  const int32_t before = requests_.fetch_add(1, std::memory_order_relaxed);
  if (before >= max_requests_) {
    requests_.fetch_sub(1, std::memory_order_relaxed);
    return full(
        fmt::format("{} requests are waiting; at most {} may (max_queued_requests)", before, max_requests_),
        retry_delay_ms);
  }
  const int64_t tokens = tokens_.fetch_add(prompt_tokens, std::memory_order_relaxed) + prompt_tokens;
  if (tokens > max_tokens_ && before > 0) {
    tokens_.fetch_sub(prompt_tokens, std::memory_order_relaxed);
    requests_.fetch_sub(1, std::memory_order_relaxed);
    return full(
        fmt::format("{} prompt tokens would wait; at most {} may (max_queued_kv_factor x the cache's tokens)",
                    tokens, max_tokens_),
        retry_delay_ms);
  }
  return ok();
}

void QueueBudget::give_back(int64_t prompt_tokens) {
  const int32_t requests = requests_.fetch_sub(1, std::memory_order_relaxed) - 1;
  const int64_t tokens = tokens_.fetch_sub(prompt_tokens, std::memory_order_relaxed) - prompt_tokens;
  check(requests >= 0 && tokens >= 0, "the queue's budget is given back once");
}

}  // namespace quire
