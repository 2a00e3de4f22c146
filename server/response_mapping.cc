#include "server/response_mapping.h"

#include <cmath>

#include "server/version.h"

namespace quire::server {
namespace {

void write(const TokenLogprob& logprob, v1::TokenLogprob* wire) {
  wire->set_token_id(logprob.token_id);
  if (!std::isnan(logprob.logprob)) wire->set_logprob(logprob.logprob);
  for (const auto& [id, value] : logprob.top) {
    v1::TopLogprob* top = wire->add_top();
    top->set_token_id(id);
    top->set_logprob(value);
  }
}

void write(const Timings& timings, v1::Timings* wire) {
  if (timings.queued_ms >= 0) wire->set_queued_ms(timings.queued_ms);
  if (timings.first_token_ms >= 0) wire->set_first_token_ms(timings.first_token_ms);
  if (timings.total_ms >= 0) wire->set_total_ms(timings.total_ms);
}

void write_totals(const TokenEvent& event, v1::GenerateResponse& wire) {
  wire.mutable_usage()->set_prompt_tokens(event.usage.prompt_tokens);
  wire.mutable_usage()->set_completion_tokens(event.usage.completion_tokens);
  wire.mutable_usage()->set_cached_tokens(event.usage.cached_tokens);
  wire.mutable_kv()->set_blocks_peak(event.kv.blocks_peak);
  wire.mutable_kv()->set_blocks_shared_peak(event.kv.blocks_shared_peak);
  wire.mutable_kv()->set_copies_on_write(event.kv.copies_on_write);
  wire.mutable_kv()->set_waste_percent(event.kv.waste_percent);
  wire.mutable_kv()->set_prefill_mode(event.kv.prefill_mode);
  write(event.timings, wire.mutable_timings());
}

}  // namespace

v1::FinishReason to_wire(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return v1::FINISH_REASON_UNSPECIFIED;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
    case FinishReason::kDeadline:
      return v1::FINISH_REASON_DEADLINE;
    case FinishReason::kFailed:
      return v1::FINISH_REASON_FAILED;
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

v1::KvDump to_wire(const KvDump& dump) {
  v1::KvDump wire;
  for (const auto& heads : dump) {
    v1::KvDump::Layer* layer = wire.add_layers();
    for (const auto& positions : heads)
      *layer->add_heads()->mutable_positions() = {positions.begin(), positions.end()};
  }
  return wire;
}

v1::GenerateResponse to_wire(const TokenEvent& event) {
  v1::GenerateResponse wire;
  wire.set_index(event.index);
  wire.set_text(event.text);
  *wire.mutable_token_ids() = {event.token_ids.begin(), event.token_ids.end()};
  for (const TokenLogprob& logprob : event.logprobs) write(logprob, wire.add_logprobs());
  wire.set_finish_reason(to_wire(event.finish));
  if (!event.stop_text.empty())
    wire.set_stop_text(event.stop_text);
  else if (event.stop_token_id)
    wire.set_stop_token_id(*event.stop_token_id);
  *wire.mutable_prompt_token_ids() = {event.prompt_token_ids.begin(), event.prompt_token_ids.end()};
  for (const TokenLogprob& logprob : event.prompt_logprobs) write(logprob, wire.add_prompt_logprobs());
  if (!event.kv_dump.empty()) *wire.mutable_kv_dump() = to_wire(event.kv_dump);
  if (event.last) write_totals(event, wire);
  return wire;
}

namespace {

void set_limits(const SamplingLimits& limits, v1::RequestLimits& wire) {
  wire.set_max_n(limits.max_n);
  wire.set_max_beam_width(limits.max_beam_width);
  wire.set_max_stop_strings(limits.max_stop_strings);
  wire.set_max_stop_bytes(limits.max_stop_bytes);
  wire.set_max_stop_token_ids(limits.max_stop_token_ids);
  wire.set_max_logprobs(limits.max_logprobs);
  wire.set_max_logit_bias(limits.max_logit_bias);
  wire.set_max_bad_words(limits.max_bad_words);
  wire.set_max_bad_word_tokens(limits.max_bad_word_tokens);
}

}  // namespace

v1::GetModelResponse to_wire(const ModelCard& card, const EngineConfig& config) {
  v1::GetModelResponse wire;
  wire.set_name(card.name);
  wire.set_architecture(card.architecture);
  wire.set_dtype(card.dtype);
  wire.set_device(card.device);
  wire.set_num_parameters(card.num_parameters);
  wire.set_num_layers(card.num_layers);
  wire.set_vocab_size(card.vocab_size);
  wire.set_max_context_tokens(card.max_context_tokens);
  wire.set_kv_bytes_per_token(card.kv_bytes_per_token);
  *wire.mutable_eos_token_ids() = {card.eos_token_ids.begin(), card.eos_token_ids.end()};
  if (card.bos_token_id >= 0) wire.set_bos_token_id(card.bos_token_id);
  wire.set_has_tokenizer(card.has_tokenizer);
  wire.set_has_chat_template(card.has_chat_template);
  wire.set_kv_cache_dtype(config.kv_cache_dtype);
  wire.set_block_tokens(config.block_tokens);
  wire.set_version(kVersion);
  set_limits(config.sampling_limits, *wire.mutable_limits());
  return wire;
}

namespace {

void set_tier(const TierStats& tier, int64_t prompt_tokens, v1::TierLoad& wire) {
  wire.set_blocks_total(tier.blocks_total);
  wire.set_blocks_cached(tier.blocks_cached);
  wire.set_hit_tokens_total(tier.hit_tokens_total);
  wire.set_hit_rate(prompt_tokens > 0
                        ? static_cast<double>(tier.hit_tokens_total) / static_cast<double>(prompt_tokens)
                        : 0.0);
  wire.set_blocks_written_total(tier.blocks_written_total);
  wire.set_evictions_total(tier.evictions_total);
  wire.set_write_failures_total(tier.write_failures_total);
  wire.set_read_failures_total(tier.read_failures_total);
}

void write_policies(const EngineStats& stats, v1::GetLoadResponse& wire) {
  for (const PolicyStats& policy : stats.policies) {
    v1::PolicyLoad& load = *wire.add_policies();
    load.set_name(policy.name);
    load.set_sequences(policy.sequences);
    load.set_slots(policy.slots);
    load.set_blocks(policy.blocks);
  }
  wire.set_policy_dropped_tokens_total(stats.policy_dropped_tokens_total);
  wire.set_attention_read_bytes_total(stats.attention_read_bytes_total);
  wire.set_bytes_from_device_total(stats.bytes_from_device_total);
  wire.set_bytes_to_device_total(stats.bytes_to_device_total);
  wire.set_bytes_host_to_disk_total(stats.bytes_host_to_disk_total);
}

}  // namespace

v1::GetLoadResponse to_wire(const EngineStats& stats) {
  v1::GetLoadResponse wire;
  wire.set_requests_waiting(stats.requests_waiting);
  wire.set_sequences_running(stats.sequences_running);
  wire.set_sequences_preempted(stats.sequences_preempted);
  wire.set_blocks_total(stats.blocks_total);
  wire.set_blocks_free(stats.blocks_free);
  wire.set_blocks_held(stats.blocks_held);
  wire.set_blocks_cached(stats.blocks_cached);
  wire.set_block_tokens(stats.block_tokens);
  wire.set_kv_bytes_total(stats.kv_bytes_total);
  wire.set_kv_usage(stats.blocks_total > 0 ? static_cast<double>(stats.blocks_held) / stats.blocks_total
                                           : 0.0);
  wire.set_waste_percent(stats.waste_percent);
  wire.set_requests_submitted_total(stats.requests_submitted_total);
  wire.set_requests_finished_total(stats.requests_finished_total);
  wire.set_requests_refused_total(stats.requests_refused_total);
  wire.set_requests_cancelled_total(stats.requests_cancelled_total);
  wire.set_requests_failed_total(stats.requests_failed_total);
  wire.set_prompt_tokens_total(stats.prompt_tokens_total);
  wire.set_generation_tokens_total(stats.generation_tokens_total);
  wire.set_cached_tokens_total(stats.cached_tokens_total);
  wire.set_prefix_queries_tokens_total(stats.prefix_queries_tokens_total);
  wire.set_preemptions_total(stats.preemptions_total);
  wire.set_copies_on_write_total(stats.copies_on_write_total);
  wire.set_evictions_total(stats.evictions_total);
  wire.set_steps_total(stats.steps_total);
  wire.set_failed_without_logits_total(stats.failed_without_logits_total);
  wire.set_shared_read_tokens_total(stats.shared_read_tokens_total);
  wire.set_tail_drops_total(stats.tail_drops_total);
  wire.set_heads_shortened_total(stats.heads_shortened_total);
  wire.set_tier_waits_given_up_total(stats.tier_waits_given_up_total);
  wire.set_swap_outs_total(stats.swap_outs_total);
  wire.set_swap_ins_total(stats.swap_ins_total);
  wire.set_swap_failures_total(stats.swap_failures_total);
  wire.set_swap_blocks_total(stats.swap_blocks_total);
  wire.set_swap_blocks_held(stats.swap_blocks_held);
  wire.set_host_us_per_step_p50(stats.host_us_per_step_p50);
  wire.set_step_ms_p50(stats.step_ms_p50);
  wire.set_last_step_age_ms(stats.last_step_age_ms);
  if (stats.host.blocks_total > 0) set_tier(stats.host, stats.prompt_tokens_total, *wire.mutable_host_tier());
  if (stats.disk.blocks_total > 0) set_tier(stats.disk, stats.prompt_tokens_total, *wire.mutable_disk_tier());
  wire.set_disk_kv_state(stats.disk_kv_state);
  wire.set_disk_corrupt_blocks_total(stats.disk_corrupt_blocks_total);
  write_policies(stats, wire);
  return wire;
}

void add_to_wire(const TenantStats& tenants, const HostMemoryStats& memory, const WorkPoolStats& texts,
                 v1::GetLoadResponse& load) {
  load.set_tenants_tracked(tenants.tenants);
  load.set_refused_tenant_parallel_total(tenants.refused_parallel_total);
  load.set_refused_tenant_requests_total(tenants.refused_requests_total);
  load.set_refused_tenant_tokens_total(tenants.refused_tokens_total);
  load.set_host_memory_bytes(memory.bytes);
  load.set_max_host_memory_bytes(memory.max_bytes);
  load.set_host_memory_pressure(to_string(memory.pressure));
  load.set_refused_host_memory_total(memory.refused_total);
  load.set_texts_waiting(static_cast<int32_t>(texts.waiting));
  load.set_refused_texts_total(texts.refused_total);
}

}  // namespace quire::server
