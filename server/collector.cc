#include "server/collector.h"

#include <algorithm>

namespace quire::server {

void Collector::on_event(const TokenEvent& event) {
  // Before whoever waits may know of the end: what on_text_ refers to lives until then.
  if (on_text_ && event.index == 0 && !event.text.empty()) on_text_(event.text);
  {
    const std::lock_guard lock(mutex_);
    if (!event.prompt_token_ids.empty()) completion_.prompt_token_ids = event.prompt_token_ids;
    if (!event.prompt_logprobs.empty()) completion_.prompt_logprobs = event.prompt_logprobs;
    if (event.error) completion_.error = event.error;
    Output& out = output(event.index);
    out.text += event.text;
    out.token_ids.insert(out.token_ids.end(), event.token_ids.begin(), event.token_ids.end());
    out.logprobs.insert(out.logprobs.end(), event.logprobs.begin(), event.logprobs.end());
    if (event.finish != FinishReason::kNone) {
      out.finish = event.finish;
      out.stop_text = event.stop_text;
      out.stop_token_id = event.stop_token_id;
      out.kv_dump = event.kv_dump;
    }
    if (event.last) {
      completion_.usage = event.usage;
      completion_.kv = event.kv;
      completion_.timings = event.timings;
      done_ = true;
    }
  }
  if (event.last) done_changed_.notify_all();
}

Output& Collector::output(int32_t index) {
  auto& outputs = completion_.outputs;
  const auto at = std::lower_bound(outputs.begin(), outputs.end(), index,
                                   [](const Output& o, int32_t i) { return o.index < i; });
  if (at != outputs.end() && at->index == index) return *at;
  Output fresh;
  fresh.index = index;
  return *outputs.insert(at, std::move(fresh));
}

Completion Collector::wait() {
  std::unique_lock lock(mutex_);
  done_changed_.wait(lock, [this] { return done_; });
  return completion_;
}

}  // namespace quire::server
