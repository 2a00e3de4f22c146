// The combinations that make no sense, as data: checked at load for a server's default and at admission per request.
#pragma once

#include <string_view>
#include <vector>

#include "src/policy/policy_spec.h"

namespace quire {

// What else a request or a model brings that a policy may not go with.
struct PolicySetting {
  bool model_has_sliding_window = false;
  bool dynamic_ntk_rope = false;
  bool shares_kv_across_layers = false;  // kv_source[l] != l for some layer
  bool prompt_logprobs = false;
  bool recompute_preemption = false;  // the server's only way to make room is to compute lists again
};

struct PolicyRejection {
  RetentionKind kind;
  bool PolicySetting::* setting;
  std::string_view why;
};

const std::vector<PolicyRejection>& policy_rejections();

// kInvalidArgument naming the policy and the reason of the first row that applies.
Status check_policy(const PolicySpec& spec, const PolicySetting& setting);

}  // namespace quire
