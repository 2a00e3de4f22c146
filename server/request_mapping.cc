#include "server/request_mapping.h"

#include <fmt/format.h>

#include <algorithm>

#include "src/base/longest_time.h"

namespace quire::server {
namespace {

std::vector<int32_t> to_vector(const google::protobuf::RepeatedField<int32_t>& ids) {
  return {ids.begin(), ids.end()};
}

void read_choice(const v1::SamplingParams& wire, SamplingParams& params) {
  if (wire.has_temperature()) params.temperature = wire.temperature();
  if (wire.has_top_k()) params.top_k = wire.top_k();
  if (wire.has_top_p()) params.top_p = wire.top_p();
  if (wire.has_min_p()) params.min_p = wire.min_p();
  if (wire.has_typical_p()) params.typical_p = wire.typical_p();
  if (wire.has_repetition_penalty()) params.repetition_penalty = wire.repetition_penalty();
  if (wire.has_presence_penalty()) params.presence_penalty = wire.presence_penalty();
  if (wire.has_frequency_penalty()) params.frequency_penalty = wire.frequency_penalty();
  if (wire.has_no_repeat_ngram()) params.no_repeat_ngram = wire.no_repeat_ngram();
  if (wire.has_seed()) params.seed = wire.seed();
  if (!wire.logit_bias().empty())
    params.logit_bias.assign(wire.logit_bias().begin(), wire.logit_bias().end());
  std::sort(params.logit_bias.begin(), params.logit_bias.end());  // a wire map has no order
  if (!wire.allowed_token_ids().empty()) params.allowed_token_ids = to_vector(wire.allowed_token_ids());
  if (!wire.forced_token_ids().empty()) params.forced_token_ids = to_vector(wire.forced_token_ids());
  if (!wire.bad_words().empty()) params.bad_words.clear();
  for (const v1::TokenIds& word : wire.bad_words()) params.bad_words.push_back(to_vector(word.ids()));
}

void read_ends(const v1::SamplingParams& wire, SamplingParams& params) {
  if (wire.has_max_tokens()) params.max_tokens = wire.max_tokens();
  if (wire.has_min_tokens()) params.min_tokens = wire.min_tokens();
  if (!wire.stop().empty()) params.stop.assign(wire.stop().begin(), wire.stop().end());
  if (!wire.stop_token_ids().empty()) params.stop_token_ids = to_vector(wire.stop_token_ids());
  if (wire.has_include_stop()) params.include_stop = wire.include_stop();
  if (wire.has_ignore_eos()) params.ignore_eos = wire.ignore_eos();
}

void read_counts_and_reports(const v1::SamplingParams& wire, SamplingParams& params) {
  if (wire.has_n()) params.n = wire.n();
  if (wire.has_best_of()) params.best_of = wire.best_of();
  if (wire.has_beam_width()) params.beam_width = wire.beam_width();
  if (wire.has_length_penalty()) params.length_penalty = wire.length_penalty();
  if (wire.has_early_stopping()) params.early_stopping = wire.early_stopping();
  if (wire.has_logprobs()) params.logprobs = wire.logprobs();
  if (wire.has_prompt_logprobs()) params.prompt_logprobs = wire.prompt_logprobs();
  if (wire.has_skip_special_tokens()) params.skip_special_tokens = wire.skip_special_tokens();
}

void read_retention(const v1::KvRetention& wire, KvRetention& retention) {
  if (wire.has_retention_class()) retention.retention_class = wire.retention_class();
  if (wire.has_ttl_ms()) retention.ttl_ms = wire.ttl_ms();
  if (wire.has_cost()) retention.cost = wire.cost();
}

Result<Prompt> read_prompt(const v1::GenerateRequest& wire, int32_t vocab_size) {
  switch (wire.prompt_case()) {
    case v1::GenerateRequest::kText:
      return Prompt(wire.text());
    case v1::GenerateRequest::kTokenIds:
      if (wire.token_ids().ids().empty())
        return invalid("token_ids is empty; a prompt has at least one token", "token_ids");
      if (Status s = check_token_ids(wire.token_ids().ids(), vocab_size, "token_ids"); !s) return s.error();
      return Prompt(to_vector(wire.token_ids().ids()));
    case v1::GenerateRequest::kMessages: {
      if (wire.messages().messages().empty())
        return invalid("messages is empty; a chat has at least one message", "messages");
      std::vector<ChatMessage> messages;
      for (const v1::ChatMessage& m : wire.messages().messages()) {
        if (m.role().empty())
          return invalid(fmt::format("messages[{}] has no role", messages.size()), "messages");
        if (m.role().size() > kMaxNameBytes)
          return invalid(fmt::format("messages[{}].role has {} bytes; at most {}", messages.size(),
                                     m.role().size(), kMaxNameBytes),
                         "messages");
        messages.push_back({.role = m.role(), .content = m.content()});
      }
      return Prompt(std::move(messages));
    }
    case v1::GenerateRequest::PROMPT_NOT_SET:
      break;
  }
  return invalid("the request has no prompt; set one of text, token_ids, messages", "prompt");
}

Status check_bytes(const char* field, const std::string& value, size_t max_bytes) {
  if (value.size() <= max_bytes) return ok();
  return invalid(fmt::format("{} has {} bytes; at most {}", field, value.size(), max_bytes), field);
}

Status check_names(const v1::GenerateRequest& wire) {
  if (Status s = check_bytes("request_id", wire.request_id(), kMaxNameBytes); !s) return s;
  if (Status s = check_bytes("tenant", wire.tenant(), kMaxNameBytes); !s) return s;
  if (Status s = check_bytes("cache_salt", wire.cache_salt(), kMaxNameBytes); !s) return s;
  if (wire.has_deadline_ms() && (wire.deadline_ms() < 1 || wire.deadline_ms() > kLongestMs))
    return invalid(fmt::format("deadline_ms is {}; it must be from 1 to {}", wire.deadline_ms(), kLongestMs),
                   "deadline_ms");
  return ok();
}

}  // namespace

const char* wire_field(const Prompt& prompt) {
  if (std::holds_alternative<std::string>(prompt)) return "text";
  return std::holds_alternative<std::vector<int32_t>>(prompt) ? "token_ids" : "messages";
}

Status check_token_ids(const google::protobuf::RepeatedField<int32_t>& ids, int32_t vocab_size,
                       const char* field) {
  for (int i = 0; i < ids.size(); ++i)
    if (ids[i] < 0 || (vocab_size > 0 && ids[i] >= vocab_size))
      return invalid(fmt::format("{} has id {} at position {}; ids of this model run from 0 to {}", field,
                                 ids[i], i, vocab_size - 1),
                     field);
  return ok();
}

Result<Request> to_request(const v1::GenerateRequest& wire, int32_t vocab_size, const Request& defaults) {
  if (Status s = check_names(wire); !s) return s.error();
  Result<Prompt> prompt = read_prompt(wire, vocab_size);
  if (!prompt) return prompt.error();
  Request request = defaults;
  request.client_request_id = wire.request_id();
  request.prompt = std::move(prompt).value();
  read_choice(wire.sampling(), request.sampling);
  read_ends(wire.sampling(), request.sampling);
  if (wire.sampling().has_max_tokens()) request.fit_max_tokens = false;
  read_counts_and_reports(wire.sampling(), request.sampling);
  if (wire.has_add_special_tokens()) request.add_special_tokens = wire.add_special_tokens();
  if (wire.has_special_as_text()) request.special_as_text = wire.special_as_text();
  if (wire.has_stream()) request.stream = wire.stream();
  if (!wire.kv_policy().empty()) request.kv_policy = wire.kv_policy();
  if (wire.has_dump_kv()) request.dump_kv = wire.dump_kv();
  if (wire.has_bypass_prefix_cache()) request.bypass_prefix_cache = wire.bypass_prefix_cache();
  if (!wire.cache_salt().empty()) request.cache_salt = wire.cache_salt();
  read_retention(wire.kv_retention(), request.kv_retention);
  if (!wire.tenant().empty()) request.tenant = wire.tenant();
  if (wire.has_priority()) request.priority = wire.priority();
  if (wire.has_deadline_ms()) request.deadline_ms = wire.deadline_ms();
  return request;
}

}  // namespace quire::server
