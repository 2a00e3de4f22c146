// Which KV policy a request runs under, and whether this engine takes it: the server's default, the operator's allow list and the
// model (policy/reject.h). A value; any thread.
#pragma once

#include <string>
#include <vector>

#include "quire/config.h"
#include "quire/request.h"
#include "src/policy/reject.h"

namespace quire {

class PolicyDoor {
 public:
  PolicyDoor() = default;  // takes every policy
  // `model` is what the model alone brings.
  // kInvalidArgument: an unknown name in kv_policies_allowed, or a default_kv_policy that would be refused.
  static Result<PolicyDoor> create(const EngineConfig& config, const PolicySetting& model);

  // The request's own policy, or the default where it names none ("none" keeps every token whatever the default).
  Result<PolicySpec> choose(const Request& request) const;

 private:
  Status check(const PolicySpec& spec, const PolicySetting& setting) const;

  std::string default_policy_;
  std::vector<std::string> allowed_;  // empty = all
  PolicySetting model_;
};

}  // namespace quire
