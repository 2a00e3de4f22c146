#include "tests/server/fake_engine.h"

#include <fmt/format.h>

#include <chrono>

#include "src/base/clock.h"

namespace quire::server {
namespace {

constexpr int32_t kVocabSize = 512;
constexpr int32_t kMaxContextTokens = 1 << 20;

std::vector<int32_t> ids_of(const std::string& text) {
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<uint8_t>(c));
  return ids;
}

}  // namespace

FakeEngine::FakeEngine(const FakeEngineOptions& options) : options_(options), thread_([this] { run(); }) {
  config_.kv_cache_dtype = "f32";
  config_.sampling_limits.vocab_size = kVocabSize;
  config_.drain_timeout_ms = options.drain_timeout_ms;
}

FakeEngine::~FakeEngine() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
  std::this_thread::sleep_for(std::chrono::milliseconds(options_.close_ms));
}

Result<RequestId> FakeEngine::submit(Request request, std::shared_ptr<TokenSink> sink) {
  if (Status s = validate(request.sampling, config_.sampling_limits); !s) return s.error();
  if (std::holds_alternative<std::string>(request.prompt)) read_text();
  const std::lock_guard lock(mutex_);
  if (draining_) return error(Code::kUnavailable, "the server is draining");
  if (running_.size() >= static_cast<size_t>(options_.max_requests))
    return Error{.code = Code::kResourceExhausted,
                 .message = fmt::format("{} requests are queued; at most {} (max_queued_requests)",
                                        running_.size(), options_.max_requests),
                 .field = {},
                 .retry_delay_ms = 1500};
  last_request_ = request;
  const RequestId id = next_id_++;
  Running& running = running_[id];
  running.request = std::move(request);
  running.sink = std::move(sink);
  running.started_us = SteadyClock().now_us();
  changed_.notify_all();
  return id;
}

void FakeEngine::abort(RequestId id) {
  const std::lock_guard lock(mutex_);
  const auto found = running_.find(id);
  if (found == running_.end()) return;
  found->second.ending = FinishReason::kCancelled;
  ++num_aborted_;
  changed_.notify_all();
}

void FakeEngine::set_paused(RequestId id, bool paused) {
  const std::lock_guard lock(mutex_);
  if (paused) ++num_pauses_;
  if (const auto found = running_.find(id); found != running_.end()) found->second.paused = paused;
  changed_.notify_all();
}

Result<std::vector<int32_t>> FakeEngine::tokenize(const std::string& text, bool, bool) {
  read_text();
  return ids_of(text);
}

Result<std::string> FakeEngine::detokenize(const std::vector<int32_t>& token_ids, bool) {
  read_text();
  std::string text;
  for (const int32_t id : token_ids) text += static_cast<char>(id);
  return text;
}

Result<std::string> FakeEngine::render_chat(const std::vector<ChatMessage>&) {
  return error(Code::kFailedPrecondition, "the model has no chat template");
}

ModelCard FakeEngine::model() const {
  ModelCard card;
  card.name = name_;
  card.architecture = "FakeForCausalLM";
  card.vocab_size = kVocabSize;
  card.max_context_tokens = kMaxContextTokens;
  card.eos_token_ids = {0};
  card.default_sampling = options_.default_sampling;
  return card;
}

EngineStats FakeEngine::stats() const {
  const std::lock_guard lock(mutex_);
  EngineStats stats;
  stats.sequences_running = static_cast<int32_t>(running_.size());
  stats.blocks_total = 100;
  stats.blocks_held = 25;
  stats.requests_submitted_total = static_cast<int64_t>(next_id_) - 1;
  stats.last_step_age_ms = running_.empty() ? 0 : last_step_age_ms_;
  return stats;
}

void FakeEngine::drain(int64_t timeout_ms) {
  std::unique_lock lock(mutex_);
  draining_ = true;
  changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), [this] { return running_.empty(); });
  for (auto& [id, running] : running_) running.ending = FinishReason::kCancelled;
  changed_.notify_all();
  changed_.wait(lock, [this] { return running_.empty(); });
}

void FakeEngine::read_text() {
  std::unique_lock lock(mutex_);
  ++num_reading_;
  changed_.wait(lock, [this] { return !texts_held_ || stopping_; });
  changed_.wait_for(lock, std::chrono::milliseconds(options_.text_ms), [this] { return stopping_; });
  --num_reading_;
}

void FakeEngine::run() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    changed_.wait_for(lock, std::chrono::microseconds(options_.step_us), [this] { return stopping_; });
    step(lock);
  }
}

// Events go out without the lock, as from a delivery thread.
void FakeEngine::step(std::unique_lock<std::mutex>& lock) {
  std::vector<std::pair<std::shared_ptr<TokenSink>, TokenEvent>> events;
  for (auto at = running_.begin(); at != running_.end();) {
    auto& [id, running] = *at;
    const std::shared_ptr<TokenSink> sink = running.sink;
    bool last = false;
    for (TokenEvent& event : advance(id, running)) {
      last = last || event.last;
      events.emplace_back(sink, std::move(event));
    }
    at = last ? running_.erase(at) : std::next(at);
  }
  lock.unlock();
  for (auto& [sink, event] : events) sink->on_event(event);
  events.clear();
  lock.lock();
  changed_.notify_all();
}

std::vector<TokenEvent> FakeEngine::advance(RequestId id, Running& running) {
  const Request& request = running.request;
  const int64_t age_ms = (SteadyClock().now_us() - running.started_us) / 1000;
  if (request.deadline_ms && age_ms >= *request.deadline_ms && !running.ending)
    running.ending = FinishReason::kDeadline;
  if (running.paused && !running.ending) return {};
  ++running.made;
  made_[id] = running.made;
  std::vector<TokenEvent> events;
  const bool last_step = running.ending || running.made >= request.sampling.max_tokens;
  for (int32_t i = 0; i < request.sampling.n; ++i) {
    TokenEvent event;
    event.request = id;
    event.index = i;
    event.text = token_text(i, running.made - 1);
    event.token_ids = {running.made % kVocabSize};
    if (std::exchange(running.first, false)) event.prompt_token_ids = {1, 2, 3};
    if (last_step) event.finish = running.ending.value_or(FinishReason::kLength);
    if (last_step && request.dump_kv) event.kv_dump = {{{0, 1, 2}}, {{0, 2}}};
    event.last = last_step && i == request.sampling.n - 1;
    if (event.last)
      event.usage = {
          .prompt_tokens = 3, .completion_tokens = running.made * request.sampling.n, .cached_tokens = 2};
    if (event.last) event.timings.queued_ms = 0;
    if (event.last && event.finish == FinishReason::kDeadline)
      event.error =
          error(Code::kDeadlineExceeded, fmt::format("deadline_ms of {} passed", *request.deadline_ms));
    events.push_back(std::move(event));
  }
  return events;
}

std::string FakeEngine::token_text(int32_t index, int32_t position) const {
  return options_.text_bytes > 0 ? std::string(static_cast<size_t>(options_.text_bytes), 'x')
                                 : fmt::format("{}.{} ", index, position);
}

int FakeEngine::num_running() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int>(running_.size());
}
int FakeEngine::num_aborted() const {
  const std::lock_guard lock(mutex_);
  return num_aborted_;
}
int FakeEngine::num_pauses() const {
  const std::lock_guard lock(mutex_);
  return num_pauses_;
}
int64_t FakeEngine::tokens_made(RequestId id) const {
  const std::lock_guard lock(mutex_);
  const auto found = made_.find(id);
  return found == made_.end() ? 0 : found->second;
}
Request FakeEngine::last_request() const {
  const std::lock_guard lock(mutex_);
  return last_request_;
}
void FakeEngine::hold_texts(bool held) {
  const std::lock_guard lock(mutex_);
  texts_held_ = held;
  changed_.notify_all();
}
int FakeEngine::num_reading() const {
  const std::lock_guard lock(mutex_);
  return num_reading_;
}
void FakeEngine::set_last_step_age_ms(double age) {
  const std::lock_guard lock(mutex_);
  last_step_age_ms_ = age;
}

bool FakeEngine::eventually(const std::function<bool()>& holds) const {
  for (int i = 0; i < 1000; ++i) {
    if (holds()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return holds();
}

}  // namespace quire::server
