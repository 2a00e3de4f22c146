#include "src/policy/policy_spec.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <span>

#include "src/base/blocks_for.h"
#include "src/base/utf8.h"

namespace quire {
namespace {

struct Key {
  const char* name;
  int32_t PolicySpec::* field;
  int32_t least;
};

struct PolicyForm {
  const char* name;
  RetentionKind kind;
  std::vector<Key> keys;  // all required
};

constexpr int32_t kMostSlots = 1 << 24;
constexpr size_t kMaxPolicyBytes = 1024;

// In the order of RetentionKind.
const std::vector<PolicyForm>& forms() {
  static const std::vector<PolicyForm> table = {
      {"none", RetentionKind::kKeepAll, {}},
      {"window", RetentionKind::kWindow, {{"size", &PolicySpec::window, 1}}},
      {"stream",
       RetentionKind::kStream,
       {{"sinks", &PolicySpec::sinks, 0}, {"recent", &PolicySpec::recent, 1}}},
      {"tova", RetentionKind::kTova, {{"budget", &PolicySpec::budget, 1}}},
      {"h2o", RetentionKind::kH2o, {{"heavy", &PolicySpec::heavy, 0}, {"recent", &PolicySpec::recent, 1}}},
  };
  return table;
}

std::string known_keys(const PolicyForm& form) {
  std::vector<std::string> names;
  for (const Key& key : form.keys) names.emplace_back(key.name);
  return names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", "));
}

Error policy_error(const std::string& message) {  // which quotes what was given
  return invalid(escape_controls(message), "kv_policy");
}

Result<int32_t> parse_value(const PolicyForm& form, const Key& key, std::string_view text) {
  int32_t number = 0;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (problem != std::errc() || end != text.data() + text.size() || number < key.least || number > kMostSlots)
    return policy_error(
        fmt::format("kv_policy '{}': {} is '{}'; it must be a whole number of tokens from {} to {}",
                    form.name, key.name, text, key.least, kMostSlots));
  return number;
}

// "window:size=4,tova:budget=4": a second policy where a setting should be.
Status check_one_policy(const PolicyForm& form, std::string_view assignment) {
  const std::string_view name = assignment.substr(0, assignment.find(':'));
  if (std::none_of(forms().begin(), forms().end(), [&](const PolicyForm& f) { return name == f.name; }))
    return ok();
  return policy_error(
      fmt::format("kv_policy names '{}' and '{}'; two policies on one list would disagree on what to drop: "
                  "choose one",
                  form.name, name));
}

Status set_key(const PolicyForm& form, std::string_view assignment, PolicySpec& spec,
               std::vector<std::string_view>& seen) {
  if (Status one = check_one_policy(form, assignment); !one) return one;
  if (assignment.empty())
    return policy_error(fmt::format("kv_policy '{}' has an empty setting; its settings (name=tokens) are: {}",
                                    form.name, known_keys(form)));
  const size_t equals = assignment.find('=');
  const std::string_view name = assignment.substr(0, equals);
  const auto key =
      std::find_if(form.keys.begin(), form.keys.end(), [&](const Key& k) { return name == k.name; });
  if (key == form.keys.end() || equals == std::string_view::npos)
    return policy_error(fmt::format("kv_policy '{}' has no setting '{}'; its settings (name=tokens) are: {}",
                                    form.name, assignment, known_keys(form)));
  if (std::find(seen.begin(), seen.end(), name) != seen.end())
    return policy_error(fmt::format("kv_policy '{}' sets {} twice", form.name, name));
  seen.push_back(name);
  Result<int32_t> number = parse_value(form, *key, assignment.substr(equals + 1));
  if (!number) return number.error();
  spec.*(key->field) = *number;
  return ok();
}

}  // namespace

std::vector<std::string> policy_names() {
  std::vector<std::string> names;
  for (const PolicyForm& form : forms()) names.emplace_back(form.name);
  return names;
}

Result<PolicySpec> parse_policy(std::string_view text) {
  if (text.empty()) return PolicySpec{};
  if (text.size() > kMaxPolicyBytes)
    return policy_error(fmt::format("kv_policy has {} bytes; at most {}", text.size(), kMaxPolicyBytes));
  const size_t colon = text.find(':');
  const std::string_view name = text.substr(0, colon);
  const auto form =
      std::find_if(forms().begin(), forms().end(), [&](const PolicyForm& f) { return name == f.name; });
  if (form == forms().end())
    return policy_error(
        fmt::format("unknown kv_policy '{}'; known: {}", name, fmt::join(policy_names(), ", ")));
  PolicySpec spec{.kind = form->kind};
  std::vector<std::string_view> seen;
  for (size_t at = colon; at != std::string_view::npos;) {  // of ':' or ',': a setting follows
    const size_t comma = text.find(',', at + 1);
    if (Status s = set_key(*form, text.substr(at + 1, comma - at - 1), spec, seen); !s) return s.error();
    at = comma;
  }
  for (const Key& key : form->keys)
    if (std::find(seen.begin(), seen.end(), key.name) == seen.end())
      return policy_error(fmt::format("kv_policy '{}' needs {}=TOKENS; its settings are: {}", form->name,
                                      key.name, known_keys(*form)));
  return spec;
}

std::string to_string(const PolicySpec& spec) {
  for (const PolicyForm& form : forms()) {
    if (form.kind != spec.kind) continue;
    std::vector<std::string> settings;
    for (const Key& key : form.keys) settings.push_back(fmt::format("{}={}", key.name, spec.*(key.field)));
    return settings.empty() ? form.name : fmt::format("{}:{}", form.name, fmt::join(settings, ","));
  }
  return "none";
}

std::string_view name_of(RetentionKind kind) {
  return forms()[static_cast<size_t>(kind)].name;
}

std::string_view prefill_mode_of(const PolicySpec& spec) {
  if (spec.kind == RetentionKind::kKeepAll) return "full";
  return traits(spec).cuts_after_prompt ? "full_then_cut" : "windowed";
}

PolicyTraits traits(const PolicySpec& spec) {
  switch (spec.kind) {
    case RetentionKind::kKeepAll:
      return {};
    // Position-only: a row sees a function of its position, so every chunking and every recomputation gives the same numbers.
    // On a model trained with full attention the K and V above layer 0 depend on the policy, so they are published under its key.
    case RetentionKind::kWindow:
      return {.drops_tokens = true, .slides = true, .prefix = PrefixRule::kOwnPolicy};
    case RetentionKind::kStream:
      return {.drops_tokens = true, .slides = true, .sink_rotation = true, .prefix = PrefixRule::kOwnPolicy};
    case RetentionKind::kTova:
      return {.shard = ListShard::kLayer,
              .drops_tokens = true,
              .row_logits = true,
              .cuts_after_prompt = true,
              .overwrites_slots = true,
              .recompute_safe = false,
              .prefix = PrefixRule::kBlocks};
    case RetentionKind::kH2o:
      return {.shard = ListShard::kLayerHead,
              .drops_tokens = true,
              .row_logits = true,
              .column_sums = true,
              .cuts_after_prompt = true,
              .overwrites_slots = true,
              .recompute_safe = false,
              .prefix = PrefixRule::kNone};
  }
  return {};
}

int32_t sliding_window(const PolicySpec& spec) {
  if (!traits(spec).slides) return 0;
  return spec.kind == RetentionKind::kWindow ? spec.window : spec.recent;
}

int32_t capacity(const PolicySpec& spec) {
  switch (spec.kind) {
    case RetentionKind::kKeepAll:
      return 0;
    case RetentionKind::kWindow:
      return spec.window;
    case RetentionKind::kStream:
      return spec.sinks + spec.recent;
    case RetentionKind::kTova:
      return spec.budget;
    case RetentionKind::kH2o:
      return spec.heavy + spec.recent;
  }
  return 0;
}

PolicyBound bound(const PolicySpec& spec, int64_t prompt_tokens, int64_t max_new_tokens,
                  int64_t chunk_tokens) {
  const int64_t all = prompt_tokens + max_new_tokens;
  const int64_t kept = capacity(spec);
  switch (spec.kind) {
    case RetentionKind::kKeepAll:
      return {.peak_slots = all, .steady_slots = all};
    case RetentionKind::kWindow:
    case RetentionKind::kStream:  // a chunk's first row still sees the window before it: window - 1 + chunk
      return {
          .peak_slots = std::min(all, kept - 1 + std::max<int64_t>(1, std::min(chunk_tokens, prompt_tokens))),
          .steady_slots = std::min(all, kept)};
    case RetentionKind::kTova:
    case RetentionKind::
        kH2o:  // the whole prompt until the cut, then one slot more than is kept: attended before the victim is known
      return {.peak_slots = std::max(prompt_tokens, std::min(all, kept + 1)),
              .steady_slots = std::min(all, kept + 1)};
  }
  return {};
}

int64_t most_chunk_tokens(const PolicySpec& spec, int64_t prompt_tokens, int64_t chunk_tokens) {
  constexpr int64_t kLeastWindowChunk = 64;
  const bool is_window = spec.kind == RetentionKind::kWindow || spec.kind == RetentionKind::kStream;
  return is_window ? std::min(chunk_tokens, std::max(kLeastWindowChunk, prompt_tokens)) : chunk_tokens;
}

bool cuts_prompt(const PolicySpec& spec, int64_t prompt_tokens) {
  return traits(spec).cuts_after_prompt && prompt_tokens > capacity(spec);
}

int64_t overwrite_copies(const PolicySpec& spec, int64_t prompt_tokens, int64_t tokens,
                         int32_t block_tokens) {
  const bool fills = traits(spec).overwrites_slots && tokens - 1 > capacity(spec);
  return fills ? prompt_tokens / block_tokens : 0;
}

int64_t list_blocks(const PolicySpec& spec, int64_t tokens, int64_t chunk_tokens, int32_t block_tokens) {
  const int64_t all = blocks_for(tokens, block_tokens);
  switch (spec.kind) {
    case RetentionKind::kKeepAll:
      return all;
    case RetentionKind::kWindow:
    case RetentionKind::kStream: {  // the window before a chunk's first row may begin inside a block
      const int64_t window = spec.kind == RetentionKind::kWindow ? spec.window : spec.recent;
      return std::min(all, blocks_for(spec.sinks, block_tokens) +
                               blocks_for(window - 1 + std::max<int64_t>(1, chunk_tokens), block_tokens) + 1);
    }
    case RetentionKind::kTova:
    case RetentionKind::kH2o:
      return blocks_for(bound(spec, tokens, 0, chunk_tokens).steady_slots, block_tokens);
  }
  return all;
}

int64_t peak_blocks(const PolicySpec& spec, int64_t prompt_tokens, int64_t max_new_tokens, int64_t sequences,
                    int64_t chunk_tokens, int32_t block_tokens) {
  const int64_t tokens = prompt_tokens + max_new_tokens;
  chunk_tokens = most_chunk_tokens(spec, prompt_tokens, chunk_tokens);
  const int64_t lists = sequences * list_blocks(spec, tokens, chunk_tokens, block_tokens);
  if (traits(spec).cuts_after_prompt) {
    // Each cuts, or overwrites, the prompt that all share.
    const bool alone = sequences == 1 && !cuts_prompt(spec, prompt_tokens);
    return lists + (alone ? overwrite_copies(spec, prompt_tokens, tokens, block_tokens)
                          : blocks_for(prompt_tokens, block_tokens));
  }
  return sequences == 1 ? lists : lists + list_blocks(spec, prompt_tokens, chunk_tokens, block_tokens);
}

std::vector<int32_t> visible_positions(const PolicySpec& spec, int32_t last, int32_t layer_window) {
  int32_t window = layer_window;
  const int32_t own = spec.kind == RetentionKind::kWindow   ? spec.window
                      : spec.kind == RetentionKind::kStream ? spec.recent
                                                            : 0;
  if (own > 0) window = window > 0 ? std::min(window, own) : own;
  const int32_t first = window > 0 ? std::max(0, last - window + 1) : 0;
  std::vector<int32_t> positions;
  for (int32_t p = 0; p < std::min(spec.sinks, first); ++p) positions.push_back(p);
  for (int32_t p = first; p <= last; ++p) positions.push_back(p);
  return positions;
}

}  // namespace quire
