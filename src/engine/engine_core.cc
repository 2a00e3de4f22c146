#include "src/engine/engine_core.h"

#include <fmt/format.h>

#include <algorithm>

#include "src/base/check.h"
#include "src/base/engine_config.h"
#include "src/engine/invariants.h"

namespace quire {
namespace {

std::optional<PreemptionMode> preemption_mode_of(const std::string& name) {
  if (name == "auto") return PreemptionMode::kAuto;
  if (name == "swap") return PreemptionMode::kSwap;
  if (name == "recompute") return PreemptionMode::kRecompute;
  return {};
}

// Of one prompt's log-probabilities, which the host reads in some 60 ms.
constexpr int32_t kLogprobLogitsPerStep = 8 << 20;

ScheduleLimits schedule_limits(const CoreOptions& options) {
  const EngineConfig& config = options.config;
  ScheduleLimits limits;
  limits.reserve = options.reserve;
  limits.whole_block_hits = options.whole_block_hits;
  limits.both_ends = options.both_ends;
  limits.look_ahead = options.look_ahead;
  limits.max_priority_wait_us = config.max_priority_wait_ms * 1000;
  limits.preemption_mode = *preemption_mode_of(config.preemption_mode);
  limits.costs = options.preemption_costs;
  limits.policy_memory = options.policy_memory;
  limits.max_step_tokens = config.max_step_tokens;
  limits.max_sequences = config.max_sequences;
  limits.max_prefill_chunk_tokens =
      config.max_prefill_chunk_tokens > 0 ? config.max_prefill_chunk_tokens : config.max_step_tokens;
  limits.max_logprob_chunk_tokens =
      std::clamp(kLogprobLogitsPerStep / std::max(1, options.vocab_size), 1, limits.max_prefill_chunk_tokens);
  return limits;
}

AdmissionLimits admission_limits(const CoreOptions& options, const KvCache& cache) {
  AdmissionLimits limits;
  limits.vocab_size = options.vocab_size;
  limits.max_context_tokens = options.config.max_context_tokens;
  limits.max_sequences = options.config.max_sequences;
  limits.num_blocks = static_cast<int32_t>(cache.num_blocks());
  limits.block_tokens = cache.block_tokens();
  const ScheduleLimits schedule = schedule_limits(options);
  limits.max_chunk_tokens = std::min(schedule.max_prefill_chunk_tokens, schedule.max_step_tokens);
  limits.sampling = options.config.sampling_limits;
  limits.policy_memory = options.policy_memory;
  return limits;
}

int64_t max_queued_tokens(const EngineConfig& config, const KvCache& cache) {
  return static_cast<int64_t>(config.max_queued_kv_factor * static_cast<double>(cache.num_blocks()) *
                              cache.block_tokens());
}

}  // namespace

Result<std::unique_ptr<EngineCore>> EngineCore::create(CoreOptions options, Executor& executor,
                                                       const Clock& clock, BlockMover* mover) {
  if (Status s = validate(options.config); !s) return s.error();
  check(options.config.max_context_tokens > 0, "max_context_tokens is resolved");
  Result<std::unique_ptr<KvCache>> cache = KvCache::create(options.cache, options.eviction);
  if (!cache) return cache.error();
  check(((*cache)->swap_pool().num_blocks() == 0 && (*cache)->below() == nullptr) || mover != nullptr,
        "tiers below the device come with who copies there");
  return std::unique_ptr<EngineCore>(
      new EngineCore(std::move(options), std::move(*cache), executor, clock, mover));
}

EngineCore::EngineCore(CoreOptions options, std::unique_ptr<KvCache> cache, Executor& executor,
                       const Clock& clock, BlockMover* mover)
    : options_(std::move(options)),
      cache_(std::move(cache)),
      executor_(executor),
      mover_(mover),
      clock_(clock),
      limits_(admission_limits(options_, *cache_)),
      queue_budget_(options_.config.max_queued_requests, max_queued_tokens(options_.config, *cache_)),
      scheduler_(schedule_limits(options_), *cache_, queue_budget_),
      on_violation_([](const std::string& what) { check_failed(what, __FILE__, __LINE__); }) {
  cache_->restore(std::exchange(options_.stored_blocks, {}), clock.now_us());
}

// What was submitted must have run before the executor may go.
EngineCore::~EngineCore() {
  for (int32_t i = scheduler_.num_in_flight(); i > 0; --i) executor_.wait();
}

void EngineCore::submit(CoreRequest request) {
  GroupSetup setup;
  setup.request = request.request;
  setup.sampling = request.sampling;
  setup.prompt = std::move(request.prompt);
  setup.eos_token_ids = options_.eos_token_ids;
  setup.tenant = std::move(request.tenant);
  setup.priority = request.priority;
  setup.order = next_order_++;
  setup.arrival_us = request.arrival_us;
  setup.deadline_us = request.deadline_us;
  setup.seed = request.seed;
  setup.first_sequence = scheduler_.next_sequence_id();
  setup.policy = request.policy;
  setup.dump_kv = request.dump_kv;
  setup.retention = request.retention;
  // Logprobs of the prompt need every row of it computed.
  const PrefixRule rule = traits(request.policy).prefix;
  setup.share_prefix =
      options_.config.prefix_cache && !request.bypass_prefix_cache && request.sampling->prompt_logprobs < 0;
  NamespaceKey key = options_.identity;
  if (rule == PrefixRule::kOwnPolicy) key.policy = to_string(request.policy);
  key.salt = std::move(request.cache_salt);
  setup.ns = cache_->open_namespace(key);
  ++counts_.accepted;
  scheduler_.add(make_group(std::move(setup)));
  if (request.deadline_us != kNoDeadline) take_deadline(request.request, request.deadline_us);
}

// Of prompts, if every step were as full as it may be: that takes no less time than those of late did.
double EngineCore::most_tokens_per_s() const {
  const double step_us = timer_.prompt_step_us(clock_.now_us());
  return step_us > 0 ? 1e6 * scheduler_.limits().max_step_tokens / step_us : 0;
}

// One that cannot be met is told at once, before the request has cost anything.
void EngineCore::take_deadline(RequestId request, int64_t deadline_us) {
  deadline_of_.emplace(request, deadlines_.emplace(deadline_us, request));
  const double tokens_per_s = most_tokens_per_s();
  if (tokens_per_s <= 0) return;  // nothing is known yet
  const int64_t now_us = clock_.now_us();
  std::optional<Error> hopeless =
      refuse_hopeless(deadline_us - now_us, scheduler_.work_ahead(*scheduler_.find(request)), tokens_per_s);
  if (!hopeless) return;
  count_ends();  // of others
  scheduler_.end(request, FinishReason::kDeadline, std::move(hopeless), now_us, outcome_);
  forget_deadline(request);
  ++counts_.refused;
  counted_ends_ = outcome_.request_ends.size();
}

void EngineCore::abort(RequestId request) {
  scheduler_.end(request, FinishReason::kCancelled, {}, clock_.now_us(), outcome_);
  count_ends();
}

void EngineCore::stop(RequestId request, int32_t index) {
  scheduler_.stop(request, index, clock_.now_us(), outcome_);
  count_ends();
}

void EngineCore::set_paused(RequestId request, bool paused) {
  scheduler_.set_paused(request, paused, clock_.now_us());
}

void EngineCore::expire(int64_t now_us) {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now_us) {
    const RequestId request = deadlines_.begin()->second;
    forget_deadline(request);
    scheduler_.end(request, FinishReason::kDeadline,
                   error(Code::kDeadlineExceeded, "the request's deadline_ms has passed"), now_us, outcome_);
  }
}

void EngineCore::forget_deadline(RequestId request) {
  const auto known = deadline_of_.find(request);
  if (known == deadline_of_.end()) return;
  deadlines_.erase(known->second);
  deadline_of_.erase(known);
}

void EngineCore::take_transfer_ends() {
  if (scheduler_.transfers().size() == 0) return;
  transfer_ends_.clear();
  mover_->poll(transfer_ends_);
  for (const TransferEnd& end : transfer_ends_) scheduler_.transferred(end, clock_.now_us(), outcome_);
}

bool EngineCore::wait_for_copy() {
  if (scheduler_.transfers().size() == 0) return false;
  mover_->wait();
  return true;
}

bool EngineCore::step() {
  expire(clock_.now_us());
  take_transfer_ends();
  const bool planned = plan_step();
  const int32_t under_way = scheduler_.num_in_flight();
  const bool commits = under_way == kMaxStepsInFlight || (!planned && under_way > 0);
  if (commits && before_wait_ && !executor_.ready()) {
    count_ends();
    before_wait_();
  }
  if (commits) commit_step();
  count_ends();
  watch();
  return planned || commits;
}

bool EngineCore::plan_step() {
  const int64_t start = clock_.now_us();
  std::shared_ptr<const BatchPlan> plan = scheduler_.plan(start, outcome_);
  for (BlockTransfer& transfer : scheduler_.take_transfers()) mover_->submit(std::move(transfer));
  timer_.planned(clock_.now_us() - start);
  if (plan == nullptr) return false;
  if (scheduler_.num_in_flight() == 1) step_started_us_ = start;
  if (options_.config.check_invariants)
    if (auto broken = check_plan(*plan, *cache_, slots_written_)) on_violation_(*broken);
  executor_.submit(std::move(plan));
  return true;
}

void EngineCore::commit_step() {
  const SubmittedStep& oldest = scheduler_.in_flight().front();
  const BatchPlan& plan = *oldest.plan;
  if (options_.config.check_invariants) {
    if (auto broken = check_held(plan, *cache_)) on_violation_(*broken);
    if (auto broken = check_follows(oldest)) on_violation_(*broken);
  }
  const int64_t tokens = plan.num_tokens(), sequences = static_cast<int64_t>(plan.sequences.size());
  StepResult result = executor_.wait();
  shared_read_tokens_ += result.shared_read_tokens;
  host_sampled_steps_ += result.sampled_on_host ? 1 : 0;
  uploaded_bytes_ += result.uploaded_bytes;
  if (result.device_idle_us) timer_.stood_idle(*result.device_idle_us);
  const int64_t start = clock_.now_us();
  std::vector<StepView::Prompt> prompts;
  for (SequencePromptLogprobs& p : result.prompt_logprobs) {
    StepView::Prompt& to = prompts.emplace_back();
    to.sequence = p.sequence;
    to.first_position = p.first_position;
    for (PromptLogprob& l : p.tokens) to.tokens.push_back({l.token, l.logprob, std::move(l.top)});
  }
  std::vector<StepView::Dump> dumps;
  for (SequenceKvDump& d : result.kv_dumps) dumps.push_back({d.sequence, std::move(d.positions)});
  std::vector<StepView::Failure> failures;
  for (SequenceFailure& f : result.failures) failures.push_back({f.sequence, std::move(f.error)});
  scheduler_.commit({result.step, result.samples, prompts, dumps, result.status, failures}, start, outcome_);
  executor_.recycle(std::move(result));
  timer_.committed({.now_us = start,
                    .host_us = clock_.now_us() - start,
                    .step_us = start - step_started_us_,
                    .tokens = tokens,
                    .sequences = sequences});
  step_started_us_ = start;
}

void EngineCore::count_ends() {
  for (size_t i = counted_ends_; i < outcome_.request_ends.size(); ++i) {
    const FinishReason reason = outcome_.request_ends[i].finish;
    forget_deadline(outcome_.request_ends[i].request);
    if (reason == FinishReason::kCancelled)
      ++counts_.cancelled;
    else if (reason == FinishReason::kFailed || reason == FinishReason::kDeadline)
      ++counts_.failed;
    else
      ++counts_.finished;
  }
  counted_ends_ = outcome_.request_ends.size();
}

void EngineCore::watch() {
  const bool audit =
      options_.config.check_invariants && scheduler_.counters().steps % options_.audit_every == 0;
  const std::optional<std::string> broken = audit ? check_all(*this) : check_cheap(*this);
  if (broken) on_violation_(*broken);
}

Outcome EngineCore::take_outcome() {
  counted_ends_ = 0;
  return std::exchange(outcome_, {});
}

void EngineCore::take_outcome(Outcome& into) {
  into.clear();
  counted_ends_ = 0;
  std::swap(into, outcome_);
}

namespace {

TierStats tier_stats(const KvCache* tier, const TierCounters::Tier& counted) {
  TierStats stats{.hit_tokens_total = counted.hit_tokens,
                  .blocks_written_total = counted.writes,
                  .write_failures_total = counted.write_failures,
                  .read_failures_total = counted.read_failures};
  if (tier == nullptr) return stats;
  stats.evictions_total = tier->counters().evictions;
  stats.blocks_total = tier->num_blocks();
  stats.blocks_cached = tier->num_cached() + tier->num_held();
  return stats;
}

// At each step: their names are written once.
void count_policies(std::span<Sequence* const> running, std::vector<PolicyStats>& all) {
  if (all.empty())
    for (std::string& name : policy_names()) all.push_back({.name = std::move(name)});
  for (PolicyStats& policy : all) policy.sequences = 0, policy.slots = policy.blocks = 0;
  for (const Sequence* s : running) {
    PolicyStats& policy = all[static_cast<size_t>(s->group->policy.kind)];
    ++policy.sequences;
    policy.slots += s->table.length();
    policy.blocks += s->table.num_blocks();
  }
}

}  // namespace

std::string EngineCore::disk_kv_state() const {
  const TierTransfers& transfers = scheduler_.transfers();
  if (!transfers.disk_write_error().empty()) return "not written: " + transfers.disk_write_error();
  const int32_t waiting = transfers.num_behind_stalled_disk();
  if (waiting == 0 || options_.disk_kv_state != "on") return options_.disk_kv_state;
  return fmt::format("hangs: {} copies have not returned", waiting);
}

void EngineCore::fill_stats(EngineStats& stats) const {
  fill_policy_stats(stats);
  const SchedulerCounters& c = scheduler_.counters();
  const TierCounters& tiers = scheduler_.transfers().counters();
  stats.requests_finished_total = counts_.finished;
  stats.requests_refused_total = counts_.refused;
  stats.requests_cancelled_total = counts_.cancelled;
  stats.requests_failed_total = counts_.failed;
  stats.prompt_tokens_total = c.prompt_tokens;
  stats.prefix_queries_tokens_total = c.prefix_query_tokens;
  stats.shared_read_tokens_total = shared_read_tokens_;
  stats.host_sampled_steps_total = host_sampled_steps_;
  stats.uploaded_bytes_total = uploaded_bytes_;
  stats.generation_tokens_total = c.output_tokens;
  stats.cached_tokens_total = c.cached_tokens;
  stats.failed_without_logits_total = c.failed_without_logits;
  stats.preemptions_total = c.preemptions;
  stats.host = tier_stats(cache_->tier(CacheTier::kHost), tiers.host);
  stats.disk = tier_stats(cache_->tier(CacheTier::kDisk), tiers.disk);
  stats.disk_corrupt_blocks_total = options_.damaged_records + tiers.corrupt_blocks;
  stats.disk_kv_state = disk_kv_state();
  stats.tier_waits_given_up_total = tiers.waits_given_up;
  stats.tail_drops_total = c.tail_drops;
  stats.heads_shortened_total = c.heads_shortened;
  stats.swap_outs_total = c.swap_outs;
  stats.swap_ins_total = c.swap_ins;
  stats.swap_failures_total = c.swap_failures;
  stats.swap_blocks_total = static_cast<int32_t>(cache_->swap_pool().num_blocks());
  stats.swap_blocks_held = static_cast<int32_t>(cache_->swap_pool().num_held());
  stats.steps_total = c.steps;
  stats.copies_on_write_total = cache_->counters().copies_on_write;
  stats.evictions_total = cache_->counters().evictions;
  stats.requests_waiting = scheduler_.num_waiting_groups();
  stats.sequences_running = scheduler_.num_running();
  stats.sequences_preempted = scheduler_.num_preempted();
  stats.blocks_total = static_cast<int32_t>(cache_->num_blocks());
  stats.blocks_free = static_cast<int32_t>(cache_->num_free());
  stats.blocks_held = static_cast<int32_t>(cache_->num_held());
  stats.blocks_cached = static_cast<int32_t>(cache_->num_cached());
  stats.block_tokens = cache_->block_tokens();
  stats.kv_bytes_total = cache_->spec().arena_bytes;
  stats.waste_percent = cache_->waste_percent();
  stats.host_us_per_step_p50 = timer_.host_us_p50();
  stats.device_idle_us_p50 = timer_.device_idle_us_p50();
  stats.step_ms_p50 = timer_.step_ms_p50();
}

void EngineCore::fill_policy_stats(EngineStats& stats) const {
  const SchedulerCounters& c = scheduler_.counters();
  const TierCounters& tiers = scheduler_.transfers().counters();
  const GroupSpec& group = cache_->spec().groups.front();
  const int64_t block_bytes = group.block_bytes();
  count_policies(scheduler_.running(), stats.policies);
  stats.policy_dropped_tokens_total = c.dropped_tokens;
  stats.attention_read_bytes_total = (c.decode_reads - shared_read_tokens_) * group.token_bytes();
  stats.bytes_from_device_total = tiers.blocks_from_device * block_bytes;
  stats.bytes_to_device_total = tiers.blocks_to_device * block_bytes;
  stats.bytes_host_to_disk_total = tiers.blocks_host_to_disk * block_bytes;
}

}  // namespace quire
