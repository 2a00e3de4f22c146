#include "src/model/rope_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

namespace quire {
namespace {

using nlohmann::json;

constexpr double kMinTheta = 2, kMaxTheta = 1e12, kMaxFactor = 1e4, kMaxPositions = 1 << 30;

std::optional<RopeScaling> scaling_named(const std::string& name) {
  static const std::array<std::pair<const char*, RopeScaling>, 5> kinds = {
      {{"default", RopeScaling::kNone},
       {"linear", RopeScaling::kLinear},
       {"dynamic", RopeScaling::kDynamic},
       {"yarn", RopeScaling::kYarn},
       {"llama3", RopeScaling::kLlama3}}};
  for (const auto& [word, kind] : kinds) {
    if (name == word) return kind;
  }
  return {};
}

// rope_scaling's own word is `type` in old files and `rope_type` in newer ones; some carry both.
std::string type_of(FieldReader& rope) {
  const bool has_both = rope.has("type") && rope.has("rope_type");
  const std::string old_word = rope.text("type", "default");
  const std::string word = rope.text("rope_type", old_word);
  if (has_both && word != old_word)
    rope.fail(Code::kInvalidArgument,
              fmt::format("field `type` is \"{}\" and field `rope_type` is \"{}\"", old_word, word));
  return word;
}

// In the dictionary in newer files, beside it in older ones; some carry both.
double theta_of(FieldReader& config, FieldReader& rope, double outer_theta) {
  const double theta = rope.number("rope_theta", kMinTheta, kMaxTheta, outer_theta);
  if (config.has("rope_theta") && theta != outer_theta)
    rope.fail(Code::kInvalidArgument,
              fmt::format("field `rope_theta` is {}, and `rope_theta` beside it is {}", theta, outer_theta));
  return theta;
}

// In the dictionary, beside it, or both. Releases of transformers differ in which of two they read.
double original_length_of(FieldReader& rope, std::optional<double> outer_length,
                          double max_position_embeddings) {
  const double length = rope.number("original_max_position_embeddings", 1, kMaxPositions,
                                    outer_length.value_or(max_position_embeddings));
  if (outer_length && length != *outer_length)
    rope.fail(Code::kInvalidArgument, fmt::format("field `original_max_position_embeddings` is {}, and "
                                                  "`original_max_position_embeddings` beside it is {}",
                                                  length, *outer_length));
  return length;
}

void read_yarn(FieldReader& rope, double max_position_embeddings, RopeSpec& spec) {
  spec.attention_factor = rope.optional_number("attention_factor", 1e-6, 1e6);
  spec.mscale = rope.optional_number("mscale", 0, 1e3);
  spec.mscale_all_dim = rope.optional_number("mscale_all_dim", 0, 1e3);
  spec.beta_fast = rope.number("beta_fast", 1e-6, 1e6, 32);
  spec.beta_slow = rope.number("beta_slow", 1e-6, 1e6, 1);
  spec.truncate = rope.boolean("truncate", true);
  rope.boolean("finetuned", false);  // written by the method's authors; says how the weights came about
  spec.factor = rope.number("factor", 1, kMaxFactor,
                            std::max(1.0, max_position_embeddings / spec.original_max_position));
}

void read_llama3(FieldReader& rope, RopeSpec& spec) {
  spec.factor = rope.number("factor", 1, kMaxFactor);
  spec.low_freq_factor = rope.number("low_freq_factor", 1e-6, 1e6);
  spec.high_freq_factor = rope.number("high_freq_factor", 1e-6, 1e6);
  if (!rope.fault() && spec.high_freq_factor <= spec.low_freq_factor) {
    rope.fail(Code::kInvalidArgument,
              fmt::format("field `high_freq_factor` is {}; it must be above `low_freq_factor`, {}",
                          spec.high_freq_factor, spec.low_freq_factor));
  }
}

// Transformers' dynamic scaling starts from max_position_embeddings and reads no other length.
void read_dynamic(FieldReader& rope, double max_position_embeddings, RopeSpec& spec) {
  spec.factor = rope.number("factor", 1, kMaxFactor);
  if (!rope.fault() && spec.original_max_position != max_position_embeddings) {
    rope.fail(Code::kUnimplemented,
              fmt::format("field `original_max_position_embeddings` is {}; dynamic scaling starts at "
                          "max_position_embeddings, {}, and another length is not supported",
                          spec.original_max_position, max_position_embeddings));
  }
}

void read_scaling(FieldReader& rope, double max_position_embeddings, std::optional<double> outer_length,
                  RopeSpec& spec) {
  const std::string type = type_of(rope);
  const std::optional<RopeScaling> kind = scaling_named(type);
  if (!kind) {
    rope.fail(Code::kUnimplemented, fmt::format("rope type `{}` changes the computation and is not supported "
                                                "(default, linear, dynamic, yarn, llama3 are)",
                                                type));
    return;
  }
  spec.scaling = *kind;
  spec.original_max_position = original_length_of(rope, outer_length, max_position_embeddings);
  if (*kind == RopeScaling::kLinear) spec.factor = rope.number("factor", 1, kMaxFactor);
  if (*kind == RopeScaling::kDynamic) read_dynamic(rope, max_position_embeddings, spec);
  if (*kind == RopeScaling::kYarn) read_yarn(rope, max_position_embeddings, spec);
  if (*kind == RopeScaling::kLlama3) read_llama3(rope, spec);
}

// The dictionary with the scaling, whichever of its two names it goes by; null when there is none.
const json* scaling_object(FieldReader& config) {
  const json* old_form = config.take("rope_scaling");
  const json* new_form = config.take("rope_parameters");
  if (old_form != nullptr && new_form != nullptr && *old_form != *new_form) {
    config.fail(Code::kInvalidArgument,
                "fields `rope_scaling` and `rope_parameters` are both set and differ");
  }
  return old_form != nullptr ? old_form : new_form;
}

void refuse_partial_rotation(FieldReader& reader) {
  const double part = reader.number("partial_rotary_factor", 0, 1, 1);
  if (part != 1) {
    reader.fail(
        Code::kUnimplemented,
        fmt::format("field `partial_rotary_factor` is {}; it changes the computation and is not supported",
                    part));
  }
}

}  // namespace

RopeSpec read_rope(FieldReader& config, int64_t max_position_embeddings) {
  RopeSpec spec;
  const auto length = static_cast<double>(max_position_embeddings);
  spec.theta = config.number("rope_theta", kMinTheta, kMaxTheta, 10000.0);
  const std::optional<double> outer_length =
      config.optional_number("original_max_position_embeddings", 1, kMaxPositions);
  spec.original_max_position = outer_length.value_or(length);
  refuse_partial_rotation(config);
  const json* object = scaling_object(config);
  if (object == nullptr) return spec;
  if (!object->is_object()) {
    config.fail(Code::kInvalidArgument,
                fmt::format("rope_scaling is {}; an object is wanted", shown(*object)));
    return spec;
  }
  FieldReader rope(*object, config.where() + ": rope_scaling");
  spec.theta = theta_of(config, rope, spec.theta);
  refuse_partial_rotation(rope);
  read_scaling(rope, length, outer_length, spec);
  for (const std::string& name : rope.unread()) {
    rope.fail(Code::kUnimplemented,
              fmt::format("field `{}` changes the computation and is not supported", name));
  }
  if (rope.fault()) config.fail_with(*rope.fault());
  return spec;
}

int64_t stretched_max_positions(const RopeSpec& rope, int64_t max_position_embeddings) {
  const auto length = static_cast<double>(max_position_embeddings);
  switch (rope.scaling) {
    case RopeScaling::kNone:
    case RopeScaling::kLlama3:
      return max_position_embeddings;
    case RopeScaling::kLinear:
    case RopeScaling::kDynamic:
      return static_cast<int64_t>(std::llround(length * rope.factor));
    case RopeScaling::kYarn:
      return std::max(max_position_embeddings,
                      static_cast<int64_t>(std::llround(rope.original_max_position * rope.factor)));
  }
  return max_position_embeddings;
}

}  // namespace quire
