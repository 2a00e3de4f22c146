#include "server/json_output.h"

#include <charconv>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "server/status.h"

namespace quire::server {
namespace {

using Json = nlohmann::ordered_json;

Json number(double value) {
  return std::isfinite(value) ? Json(value) : Json(nullptr);
}  // JSON has no NaN, no infinity

Json number(float value) {
  return std::isfinite(value) ? Json(shortest(value)) : Json(nullptr);
}

Json to_object(const std::vector<TokenLogprob>& logprobs) {
  Json list = Json::array();
  for (const TokenLogprob& logprob : logprobs) {
    Json top = Json::array();
    for (const auto& [id, value] : logprob.top) top.push_back({{"token_id", id}, {"logprob", number(value)}});
    list.push_back(
        {{"token_id", logprob.token_id}, {"logprob", number(logprob.logprob)}, {"top", std::move(top)}});
  }
  return list;
}

Json to_object(const KvDump& dump) {
  Json layers = Json::array();
  for (const auto& heads : dump) layers.push_back({{"heads", heads}});
  return {{"layers", std::move(layers)}};
}

Json to_object(const Output& output) {
  Json object = {{"index", output.index},
                 {"text", output.text},
                 {"token_ids", output.token_ids},
                 {"finish_reason", to_string(output.finish)},
                 {"logprobs", to_object(output.logprobs)}};
  if (!output.stop_text.empty()) object["stop_text"] = output.stop_text;
  if (output.stop_token_id) object["stop_token_id"] = *output.stop_token_id;
  if (!output.kv_dump.empty()) object["kv_dump"] = to_object(output.kv_dump);
  return object;
}

Json to_object(const Error& error) {
  Json object = {{"code", code_name(error.code)}, {"message", error.message}};
  if (!error.field.empty()) object["field"] = error.field;
  if (error.retry_delay_ms) object["retry_delay_ms"] = *error.retry_delay_ms;
  return object;
}

Json named(std::string_view request_id) {
  Json object = Json::object();
  if (!request_id.empty()) object["request_id"] = request_id;
  return object;
}

std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace

double shortest(float value) {
  char digits[32];
  *std::to_chars(digits, digits + sizeof digits - 1, value).ptr = '\0';
  return std::strtod(digits, nullptr);
}

std::string to_json(const Completion& c, std::string_view request_id) {
  Json object = named(request_id);
  object["prompt_token_ids"] = c.prompt_token_ids;
  object["outputs"] = Json::array();
  for (const Output& output : c.outputs) object["outputs"].push_back(to_object(output));
  if (!c.prompt_logprobs.empty()) object["prompt_logprobs"] = to_object(c.prompt_logprobs);
  object["usage"] = {{"prompt_tokens", c.usage.prompt_tokens},
                     {"completion_tokens", c.usage.completion_tokens},
                     {"cached_tokens", c.usage.cached_tokens}};
  object["kv"] = {{"blocks_peak", c.kv.blocks_peak},
                  {"blocks_shared_peak", c.kv.blocks_shared_peak},
                  {"copies_on_write", c.kv.copies_on_write},
                  {"waste_percent", number(c.kv.waste_percent)},
                  {"prefill_mode", c.kv.prefill_mode}};
  object["timings"] = Json::object();
  for (const auto& [name, ms] :
       {std::pair{"queued_ms", c.timings.queued_ms}, std::pair{"first_token_ms", c.timings.first_token_ms},
        std::pair{"total_ms", c.timings.total_ms}})
    if (ms >= 0) object["timings"][name] = number(ms);  // absent = did not happen
  if (c.error) object["error"] = to_object(*c.error);
  return dump(object);
}

std::string to_json(const Error& error, std::string_view request_id) {
  Json object = named(request_id);
  object["error"] = to_object(error);
  return dump(object);
}

}  // namespace quire::server
