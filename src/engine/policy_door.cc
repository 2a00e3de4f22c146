#include "src/engine/policy_door.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

namespace quire {
namespace {

std::string name_of(const PolicySpec& spec) {
  const std::string text = to_string(spec);
  return text.substr(0, text.find(':'));
}

}  // namespace

Result<PolicyDoor> PolicyDoor::create(const EngineConfig& config, const PolicySetting& model) {
  PolicyDoor door;
  door.default_policy_ = config.default_kv_policy;
  door.allowed_ = config.kv_policies_allowed;
  door.model_ = model;
  door.model_.recompute_preemption = config.preemption_mode == "recompute";
  const std::vector<std::string> known = policy_names();
  for (const std::string& name : door.allowed_)
    if (std::find(known.begin(), known.end(), name) == known.end())
      return invalid(fmt::format("kv_policies_allowed names '{}'; known: {}", name, fmt::join(known, ", ")),
                     "kv_policies_allowed");
  const Result<PolicySpec> spec = parse_policy(door.default_policy_);
  const Status usable = !spec ? Status(spec.error()) : door.check(*spec, door.model_);
  if (!usable) return invalid("default_kv_policy: " + usable.error().message, "default_kv_policy");
  return door;
}

Result<PolicySpec> PolicyDoor::choose(const Request& request) const {
  Result<PolicySpec> spec = parse_policy(request.kv_policy.empty() ? default_policy_ : request.kv_policy);
  if (!spec) return spec;
  PolicySetting setting = model_;
  setting.prompt_logprobs = request.sampling.prompt_logprobs >= 0;
  if (Status s = check(*spec, setting); !s) return s.error();
  return spec;
}

Status PolicyDoor::check(const PolicySpec& spec, const PolicySetting& setting) const {
  if (!traits(spec).drops_tokens) return ok();
  if (!allowed_.empty() && std::find(allowed_.begin(), allowed_.end(), name_of(spec)) == allowed_.end())
    return invalid(fmt::format("kv_policy '{}' is not allowed by this server (kv_policies_allowed: {})",
                               name_of(spec), fmt::join(allowed_, ", ")),
                   "kv_policy");
  return check_policy(spec, setting);
}

}  // namespace quire
