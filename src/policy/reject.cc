#include "src/policy/reject.h"

#include <fmt/format.h>

namespace quire {

const std::vector<PolicyRejection>& policy_rejections() {
  using Kind = RetentionKind;
  using Setting = PolicySetting;
  static const std::vector<PolicyRejection> table = {
      {Kind::kStream, &Setting::dynamic_ntk_rope,
       "it moves positions, and with dynamic rope scaling stored rotations depend on the length"},
      {Kind::kStream, &Setting::model_has_sliding_window,
       "the model was trained with a sliding window that already decides what stays; sinks are not part of "
       "it"},
      {Kind::kTova, &Setting::model_has_sliding_window,
       "the model's sliding window already decides what stays"},
      {Kind::kH2o, &Setting::model_has_sliding_window,
       "the model's sliding window already decides what stays"},
      {Kind::kTova, &Setting::shares_kv_across_layers,
       "a list that several layers read belongs to its producer; scores per layer are not defined"},
      {Kind::kH2o, &Setting::shares_kv_across_layers,
       "a list that several layers read belongs to its producer; scores per layer are not defined"},
      {Kind::kTova, &Setting::recompute_preemption,
       "preemption_mode is 'recompute', and a list computed again would be cut anew, with the output as part "
       "of its prompt"},
      {Kind::kH2o, &Setting::recompute_preemption,
       "preemption_mode is 'recompute', and a list computed again would be cut anew, with the output as part "
       "of its prompt"},
      {Kind::kWindow, &Setting::prompt_logprobs,
       "prompt logprobs are those of full attention; ask for them without a policy"},
      {Kind::kStream, &Setting::prompt_logprobs,
       "prompt logprobs are those of full attention; ask for them without a policy"},
  };
  return table;
}

Status check_policy(const PolicySpec& spec, const PolicySetting& setting) {
  for (const PolicyRejection& row : policy_rejections())
    if (row.kind == spec.kind && setting.*(row.setting))
      return invalid(fmt::format("kv_policy '{}' cannot be used here: {}", to_string(spec), row.why),
                     "kv_policy");
  return ok();
}

}  // namespace quire
