#include "src/engine/threaded_engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <utility>

#include "src/base/check.h"
#include "src/base/log.h"
#include "src/base/prompt_privacy.h"
#include "src/base/retry_delay.h"
#include "src/base/threads.h"

namespace quire {
namespace {

constexpr int64_t kMaxIdleWaitUs = 1'000'000;

Error draining() {
  Error e = error(Code::kUnavailable, "the server is draining and takes no new requests");
  e.retry_delay_ms = kRetryDelayMs;
  return e;
}

int64_t text_bytes(const Request& request) {
  if (const auto* text = std::get_if<std::string>(&request.prompt)) return static_cast<int64_t>(text->size());
  int64_t bytes = 0;
  if (const auto* messages = std::get_if<std::vector<ChatMessage>>(&request.prompt))
    for (const ChatMessage& message : *messages) bytes += static_cast<int64_t>(message.content.size());
  return bytes;
}

void fit_max_tokens(Request& request, size_t prompt_tokens, int32_t max_context_tokens) {
  const int64_t left = max_context_tokens - static_cast<int64_t>(prompt_tokens);
  int32_t& max_tokens = request.sampling.max_tokens;
  if (request.fit_max_tokens && left > 0)
    max_tokens = static_cast<int32_t>(std::min<int64_t>(max_tokens, left));
}

uint64_t entropy() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32) | device();
}

int64_t retry_delay_ms(int64_t queued_tokens, double tokens_per_s) {
  if (tokens_per_s <= 0) return kRetryDelayMs;
  return retry_delay_of(static_cast<int64_t>(1e3 * static_cast<double>(queued_tokens) / tokens_per_s));
}

}  // namespace

Result<std::unique_ptr<Engine>> ThreadedEngine::start(EngineParts parts) {
  std::unique_ptr<ThreadedEngine> engine(new ThreadedEngine(std::move(parts)));
  // Of a large disk gigabytes, which the cache takes up: not kept beside the parts.
  std::vector<StoredBlock> stored = std::exchange(engine->parts_.core.stored_blocks, {});
  CoreOptions options = engine->parts_.core;
  options.stored_blocks = std::move(stored);
  Result<std::unique_ptr<EngineCore>> core = EngineCore::create(
      std::move(options), *engine->parts_.executor, *engine->parts_.clock, engine->parts_.mover.get());
  if (!core) return core.error();
  engine->core_ = std::move(*core);
  engine->core_->fill_stats(engine->stats_);
  engine->core_->set_before_wait([e = engine.get()] { e->hand_over(false); });
  if (engine->parts_.mover != nullptr)
    engine->parts_.mover->set_on_end([e = engine.get()] { e->commands_.wake(); });
  Delivery::Hooks hooks;
  hooks.stop_sequence = [e = engine.get()](RequestId id, int32_t index) { e->commands_.stop(id, index); };
  hooks.request_ended = [e = engine.get()](RequestId id) { e->leave(id); };
  engine->delivery_ =
      std::make_unique<DeliveryThread>(*engine->parts_.text, engine->parts_.layer_windows, std::move(hooks));
  if (Status delivers = engine->delivery_->start(); !delivers) return delivers.error();
  Result<std::jthread> thread = start_thread("the engine", [e = engine.get()] { e->serve(); });
  if (!thread) return thread.error();
  engine->thread_ = std::move(*thread);
  return std::unique_ptr<Engine>(std::move(engine));
}

ThreadedEngine::ThreadedEngine(EngineParts parts) : parts_(std::move(parts)), seeds_(entropy()) {}

ThreadedEngine::~ThreadedEngine() {
  if (thread_.joinable()) {
    draining_ = true;
    abort_all();
    commands_.shutdown();
    thread_.join();
  }
  parts_.mover.reset();  // it may be waking this engine
  delivery_.reset();     // after the engine thread: every request has its last event
}

// ---- the door ----

Result<std::vector<int32_t>> ThreadedEngine::encode(const Request& request) const {
  if (const auto* ids = std::get_if<std::vector<int32_t>>(&request.prompt)) return *ids;
  const int32_t max_context_tokens = core_->limits().max_context_tokens;
  const auto max_ids = static_cast<size_t>(max_prompt_tokens(request.sampling, max_context_tokens));
  const auto* text = std::get_if<std::string>(&request.prompt);
  Result<std::vector<int32_t>> ids =
      text != nullptr
          ? parts_.text->encode(*text, request.add_special_tokens, request.special_as_text, max_ids)
          : parts_.text->encode_chat(std::get<std::vector<ChatMessage>>(request.prompt),
                                     request.special_as_text, max_ids);
  if (!ids && ids.error().code == Code::kOutOfRange)
    return prompt_too_long(
        fmt::format("more than {} tokens ({} bytes of text)", max_ids, text_bytes(request)), request.sampling,
        max_context_tokens);
  return ids;
}

Status ThreadedEngine::check_door(const Request& request, const std::vector<int32_t>& prompt,
                                  const PolicySpec& policy) {
  if (Status s = check_request(request.sampling, prompt, core_->limits(), policy); !s) return s;
  if (Status s = check_retention(request.kv_retention, core_->retention_limits()); !s) return s;
  if (!request.sampling.stop.empty() && !parts_.text->has_tokenizer())
    return invalid("stop texts need a tokenizer, and this engine has none; use stop_token_ids",
                   "sampling.stop");
  return check_deadline(request.deadline_ms);
}

Error ThreadedEngine::refuse(Error error, const std::string& client_request_id) {
  ++refused_;
  log_line(LogLevel::kDebug, "refused",
           {{"client_id", client_request_id},
            {"code", static_cast<int>(error.code)},
            {"why", loggable_message(error)}});
  return error;
}

Result<ThreadedEngine::Entrant> ThreadedEngine::pass_door(Submission submission) {
  check(submission.sink != nullptr, "a request has a sink");
  Request& request = submission.request;
  if (draining_) return draining();
  Result<std::vector<int32_t>> prompt = encode(request);
  if (!prompt) {
    Error e = prompt.error();
    if (e.field.empty()) e.field = "prompt";
    return e;
  }
  fit_max_tokens(request, prompt->size(), core_->limits().max_context_tokens);
  const Result<PolicySpec> policy = parts_.policies.choose(request);
  if (!policy) return policy.error();
  if (Status s = check_door(request, *prompt, *policy); !s) return s.error();
  QueueBudget& budget = core_->queue_budget();
  const auto prompt_tokens = static_cast<int64_t>(prompt->size());
  if (Status s = budget.take(prompt_tokens, retry_delay_ms(budget.num_tokens(), core_->tokens_per_s())); !s)
    return s.error();
  return Entrant{.request = std::move(request),
                 .prompt = *std::move(prompt),
                 .prompt_tokens = prompt_tokens,
                 .policy = *policy,
                 .sink = std::move(submission.sink)};
}

Error ThreadedEngine::turn_away(const Entrant& entrant, Error error) {
  core_->queue_budget().give_back(entrant.prompt_tokens);
  return refuse(std::move(error), entrant.request.client_request_id);
}

Result<RequestId> ThreadedEngine::submit(Request request, std::shared_ptr<TokenSink> sink) {
  ++submitted_;
  const std::string client_request_id = request.client_request_id;
  Result<Entrant> entrant = pass_door({.request = std::move(request), .sink = std::move(sink)});
  if (!entrant) return refuse(entrant.error(), client_request_id);
  if (const std::optional<RequestId> id = enter(*entrant)) return *id;
  return turn_away(*entrant, draining());
}

// Texts are read before anything is held: others' commands wait for what is pushed here, and for nothing else.
Result<std::vector<RequestId>> ThreadedEngine::submit_together(std::vector<Submission> batch) {
  submitted_ += static_cast<int64_t>(batch.size());
  std::vector<Entrant> entrants;
  entrants.reserve(batch.size());
  for (size_t i = 0; i < batch.size(); ++i) {
    const std::string client_request_id = batch[i].request.client_request_id;
    Result<Entrant> entrant = pass_door(std::move(batch[i]));
    if (entrant) {
      entrants.push_back(*std::move(entrant));
      continue;
    }
    for (const Entrant& e : entrants) turn_away(e, entrant.error());
    for (size_t rest = i + 1; rest < batch.size(); ++rest)
      refuse(entrant.error(), batch[rest].request.client_request_id);
    return refuse(entrant.error(), client_request_id);
  }
  return enter_together(std::move(entrants));
}

Result<std::vector<RequestId>> ThreadedEngine::enter_together(std::vector<Entrant> entrants) {
  std::vector<RequestId> ids;
  commands_.hold();
  for (Entrant& entrant : entrants) {
    const std::optional<RequestId> id = enter(entrant);
    if (!id) break;
    ids.push_back(*id);
  }
  const bool all = ids.size() == entrants.size();
  for (size_t i = 0; !all && i < ids.size(); ++i) abort(ids[i]);
  commands_.release();
  if (all) return ids;
  for (size_t i = ids.size(); i < entrants.size(); ++i) turn_away(entrants[i], draining());
  return draining();
}

// Nothing if draining began meanwhile.
std::optional<RequestId> ThreadedEngine::enter(Entrant& entrant) {
  Request& request = entrant.request;
  CoreRequest core;
  core.sampling = std::make_shared<const SamplingParams>(std::move(request.sampling));
  core.prompt = entrant.prompt;
  core.cache_salt = std::move(request.cache_salt);
  core.tenant = std::move(request.tenant);
  core.bypass_prefix_cache = request.bypass_prefix_cache;
  core.policy = entrant.policy;
  core.dump_kv = request.dump_kv;
  core.retention = request.kv_retention;
  core.priority = request.priority;
  DeliveryRequest delivery;
  delivery.client_request_id = request.client_request_id;
  delivery.sink = std::move(entrant.sink);
  delivery.sampling = core.sampling;
  delivery.first_text = parts_.text->stream(*core.sampling, entrant.prompt);
  delivery.prompt = std::move(entrant.prompt);
  delivery.stream = request.stream;
  delivery.dump_kv = request.dump_kv;
  delivery.policy = entrant.policy;
  RequestId id;
  {
    const std::lock_guard lock(live_mutex_);
    if (draining_) return {};
    core.request = delivery.request = id = next_id_++;
    core.arrival_us = parts_.clock->now_us();  // in the order of ids: the queue counts on it
    if (request.deadline_ms) core.deadline_us = core.arrival_us + *request.deadline_ms * 1000;
    ++arriving_;
    core.seed = core.sampling->seed.value_or(seeds_.next());
    live_.insert(id);
    // Under the lock: who finds it live and aborts it is heard after it. Delivery knows it before the engine thread can have an
    // outcome for it.
    delivery_->open(std::move(delivery));
    commands_.submit(std::move(core));
  }
  return id;
}

bool ThreadedEngine::is_live(RequestId id) const {
  const std::lock_guard lock(live_mutex_);
  return live_.contains(id);
}

void ThreadedEngine::leave(RequestId id) {
  {
    const std::lock_guard lock(live_mutex_);
    live_.erase(id);
  }
  live_changed_.notify_all();
}

void ThreadedEngine::abort(RequestId id) {
  if (is_live(id)) commands_.abort(id);
}

void ThreadedEngine::set_paused(RequestId id, bool paused) {
  if (is_live(id)) commands_.set_paused(id, paused);
}

void ThreadedEngine::abort_all() {
  const std::lock_guard lock(live_mutex_);
  for (const RequestId id : live_) commands_.abort(id);
}

Result<std::vector<int32_t>> ThreadedEngine::tokenize(const std::string& text, bool add_special_tokens,
                                                      bool special_as_text) {
  return parts_.text->encode(text, add_special_tokens, special_as_text, TextFront::kAnyNumber);
}

Result<std::string> ThreadedEngine::detokenize(const std::vector<int32_t>& token_ids,
                                               bool skip_special_tokens) {
  return parts_.text->decode(token_ids, skip_special_tokens);
}

Result<std::string> ThreadedEngine::render_chat(const std::vector<ChatMessage>& messages) {
  return parts_.text->render_chat(messages);
}

void ThreadedEngine::drain(int64_t timeout_ms) {
  std::unique_lock lock(live_mutex_);
  draining_ = true;
  const auto empty = [this] { return live_.empty(); };
  if (live_changed_.wait_for(lock, std::chrono::milliseconds(std::max<int64_t>(timeout_ms, 0)), empty))
    return;
  log_line(LogLevel::kWarn, "drain_timeout",
           {{"timeout_ms", timeout_ms}, {"cancelled", static_cast<int64_t>(live_.size())}});
  lock.unlock();
  abort_all();
  lock.lock();
  live_changed_.wait(lock, empty);
}

EngineStats ThreadedEngine::stats() const {
  EngineStats stats;
  {
    const std::lock_guard lock(stats_mutex_);
    stats = stats_;
    stats.requests_waiting += arriving_;  // since the last look at the core
  }
  stats.requests_submitted_total = submitted_;
  stats.requests_refused_total += refused_;  // before the core saw them
  const int64_t since = busy_since_us_;
  stats.last_step_age_ms = since < 0 ? 0 : static_cast<double>(parts_.clock->now_us() - since) * 1e-3;
  return stats;
}

// ---- the engine thread ----

bool ThreadedEngine::apply_commands() {
  Commands commands;
  if (!commands_.take(commands)) return false;
  for (CoreRequest& r : commands.submits) core_->submit(std::move(r));
  taken_ += static_cast<int32_t>(commands.submits.size());
  for (const auto& [id, index] : commands.stops) core_->stop(id, index);
  for (const auto& [id, control] : commands.controls) {
    if (control.abort)
      core_->abort(id);
    else if (control.paused)
      core_->set_paused(id, *control.paused);
  }
  return commands.shutdown;
}

// Between steps a reader is not waited for; before an idle wait it is, so that what is read then is the last
// word.
void ThreadedEngine::publish_stats(bool is_idle) {
  std::unique_lock lock(stats_mutex_, std::defer_lock);
  if (is_idle)
    lock.lock();
  else if (!lock.try_lock())
    return;
  core_->fill_stats(stats_);
  arriving_ -= std::exchange(taken_, 0);
}

// Counts come first: who has seen a request's end finds it counted.
void ThreadedEngine::hand_over(bool is_idle) {
  Outcome outcome = core_->take_outcome();
  publish_stats(is_idle);
  if (!outcome.empty()) delivery_->deliver(std::move(outcome));
}

void ThreadedEngine::log_hanging_copies() {
  if (core_->copies_hang() == copies_hang_) return;
  copies_hang_ = !copies_hang_;
  if (copies_hang_)
    log_line(LogLevel::kWarn, "tier_copies_hang",
             {{"what", "a copy to or from a tier of the KV cache has not returned; what it holds stays held"},
              {"seconds", kLongestTierWaitUs / 1'000'000}});
  else
    log_line(LogLevel::kInfo, "tier_copies_returned", {});
}

void ThreadedEngine::serve() {
  bool stopping = false, worked = false;
  for (;;) {
    stopping = apply_commands() || stopping;
    if (stopping) core_->forget_owed_writes();
    // Not anew while nothing but a copy is waited for: one that hangs shows as a step that does not end.
    if (worked || busy_since_us_ < 0) busy_since_us_ = parts_.clock->now_us();
    worked = core_->step();
    log_hanging_copies();
    hand_over(!worked);
    if (worked) continue;
    if (!core_->waits_for_copy()) busy_since_us_ = -1;
    if (stopping && core_->idle()) return;
    const int64_t until_us = core_->next_deadline_us();
    const int64_t wait_us = until_us == kNoDeadline
                                ? -1
                                : std::clamp<int64_t>(until_us - parts_.clock->now_us(), 0, kMaxIdleWaitUs);
    commands_.wait(wait_us);
  }
}

}  // namespace quire
