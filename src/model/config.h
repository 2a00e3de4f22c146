// Hugging Face config.json and generation_config.json -> ModelSpec.
// Every field is understood, known to be harmless, or an error that names it: a field that changes the
// computation is never ignored. Absent fields take the value that transformers 5 gives them for that
// architecture.
#pragma once

#include <string>
#include <string_view>

#include "quire/result.h"
#include "src/model/model_spec.h"

namespace quire {

// `generation_json` may be empty: then there are no sampling defaults and the ids are those of config.json. Errors name the
// configuration as `config_name`.
Result<ModelSpec> parse_model_config(std::string_view config_json, std::string_view generation_json = {},
                                     std::string_view config_name = "config.json");
// DIR/config.json and, where it exists, DIR/generation_config.json.
Result<ModelSpec> read_model_config(const std::string& model_dir);

// "LlamaForCausalLM, MistralForCausalLM, ...", for messages and docs.
std::string supported_architectures();

}  // namespace quire
