// quire tokenize and detokenize: a model's tokenizer without its model; DIR may hold only tokenizer files.
#include <fmt/format.h>

#include "server/commands/command.h"
#include "server/commands/text_file.h"
#include "server/flags.h"
#include "src/base/json_text.h"
#include "src/base/progress.h"
#include "src/base/utf8.h"
#include "src/text/tokenizer.h"

namespace quire::server {
namespace {

using Json = nlohmann::json;

struct Options {
  std::string model_dir, input;
  std::string output = "json";
  bool no_special_tokens = false, special_as_text = false, keep_special_tokens = false;
};

void bind(Flags& flags, Options& o, const char* input_help) {
  flags.add("model", o.model_dir, "Directory with tokenizer.json or tokenizer.model");
  flags.require("model");
  flags.add("input", o.input, input_help);
  flags.require("input");
  flags.add_choice("output", o.output, {"json", "jsonl"}, "one JSON array, or one line for each entry");
}

// The entries of a JSON array file.
Result<Json> read_array(const std::string& path) {
  const auto text = read_file(path, "--input");
  if (!text) return text.error();
  if (const auto offset = find_invalid_utf8(*text))
    return invalid(fmt::format("--input {}: not UTF-8 at byte {}", path, *offset));
  Result<Json> array = parse_json(*text);
  if (!array) return invalid(fmt::format("--input {}: {}", path, array.error().message));
  if (!array->is_array()) return invalid(fmt::format("--input {}: must be a JSON array", path));
  return array;
}

void print(const Json& results, const std::string& output) {
  if (output == "json") {
    fmt::print("{}\n", results.dump(-1, ' ', false, Json::error_handler_t::replace));
  } else {
    for (const Json& result : results)
      fmt::print("{}\n", result.dump(-1, ' ', false, Json::error_handler_t::replace));
  }
}

Result<Json> tokenize(const Options& o, const Tokenizer& tokenizer, const Json& texts) {
  Json results = Json::array();
  Progress progress("tokenizing", static_cast<int64_t>(texts.size()), "texts");
  for (const Json& text : texts) {
    if (!text.is_string())
      return invalid(fmt::format("--input {}: entry {} is not a string", o.input, results.size()));
    const auto ids =
        tokenizer.encode(text.get_ref<const std::string&>(), !o.no_special_tokens, o.special_as_text);
    if (!ids)
      return invalid(fmt::format("--input {}: entry {}: {}", o.input, results.size(), ids.error().message));
    results.push_back(*ids);
    progress.advance();
  }
  return results;
}

Result<Json> detokenize(const Options& o, const Tokenizer& tokenizer, const Json& lists) {
  Json results = Json::array();
  Progress progress("detokenizing", static_cast<int64_t>(lists.size()), "lists");
  for (const Json& list : lists) {
    std::vector<int32_t> ids;
    const auto bad = [&] {
      return invalid(
          fmt::format("--input {}: entry {} is not an array of token ids", o.input, results.size()));
    };
    if (!list.is_array()) return bad();
    for (const Json& id : list) {
      if (!id.is_number_integer()) return bad();
      if (id < 0 || id >= tokenizer.vocab_size())
        return invalid(fmt::format("--input {}: entry {} has {} at position {}; token ids run from 0 to {}",
                                   o.input, results.size(), shown(id), ids.size(),
                                   tokenizer.vocab_size() - 1));
      ids.push_back(id.get<int32_t>());
    }
    const auto text = tokenizer.decode(ids, !o.keep_special_tokens);
    if (!text)
      return invalid(fmt::format("--input {}: entry {}: {}", o.input, results.size(), text.error().message));
    results.push_back(*text);
    progress.advance();
  }
  return results;
}

int run(const Options& options, Result<Json> (*convert)(const Options&, const Tokenizer&, const Json&)) {
  const auto tokenizer = Tokenizer::open(options.model_dir);
  if (!tokenizer) return fail(tokenizer.error());
  const auto entries = read_array(options.input);
  if (!entries) return fail(entries.error());
  const auto results = convert(options, **tokenizer, *entries);
  if (!results) return fail(results.error());
  print(*results, options.output);
  return 0;
}

}  // namespace

int run_tokenize(const Arguments& arguments) {
  Options options;
  Flags flags("quire tokenize", "Texts to token ids: a JSON array of strings in, an array of id arrays out.");
  bind(flags, options, "JSON array of strings; - = standard input");
  flags.add("no-special-tokens", options.no_special_tokens, "Add no BOS or EOS");
  flags.add("special-as-text", options.special_as_text,
            "Read special tokens that stand in a text as plain text");
  const Result<bool> parsed = flags.parse(arguments);
  if (!parsed) return fail(parsed.error(), kExitUsage);
  return *parsed ? run(options, tokenize) : 0;
}

int run_detokenize(const Arguments& arguments) {
  Options options;
  Flags flags("quire detokenize",
              "Token ids to texts: a JSON array of id arrays in, an array of strings out.");
  bind(flags, options, "JSON array of arrays of token ids; - = standard input");
  flags.add("keep-special-tokens", options.keep_special_tokens, "Write special tokens out");
  const Result<bool> parsed = flags.parse(arguments);
  if (!parsed) return fail(parsed.error(), kExitUsage);
  return *parsed ? run(options, detokenize) : 0;
}

}  // namespace quire::server
