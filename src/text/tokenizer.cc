#include "src/text/tokenizer.h"

#include "src/base/check.h"
#include "src/base/text_file.h"
#include "src/text/detokenizer.h"
#include "src/text/ffi/quire_text_ffi.h"
#include "src/text/ffi_result.h"

namespace quire {
namespace {

constexpr size_t kPartBytes = 64 << 10;  // takes some 8 MB to read

// Empty where there is none.
Result<std::string> read_config(const std::string& path) {
  return entry_exists(path) ? read_text_file(path, kMaxModelTextBytes) : Result<std::string>("");
}

Result<quire_tokenizer*> open_json(const std::string& path, const std::string& config_path) {
  const Result<std::string> json = read_text_file(path, kMaxModelTextBytes);
  if (!json) return json.error();
  const Result<std::string> config = read_config(config_path);
  if (!config) return config.error();
  quire_tokenizer* handle = nullptr;
  quire_text error{};
  const int code =
      quire_tokenizer_open_json(json->data(), json->size(), config->data(), config->size(), &handle, &error);
  if (code != 0) return ffi_error(code, error, path + ": ");
  return handle;
}

// SentencePiece starts its first piece's field (tag 0x0a). A file of that name whose first line is base64, a
// space and a rank is tiktoken's, which has no rule for splitting text in it.
bool is_tiktoken(std::string_view file) {
  const std::string_view line = file.substr(0, file.find('\n'));
  return line.ends_with(" 0") &&
         line.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/= ") ==
             line.npos;
}

Result<quire_tokenizer*> open_sentencepiece(const std::string& path, const std::string& config_path) {
  Result<std::string> model = read_text_file(path, kMaxModelTextBytes);
  if (!model) return model.error();
  if (is_tiktoken(*model))
    return invalid(path +
                   ": it is a tiktoken vocabulary, which does not say how text is split; convert it to a "
                   "tokenizer.json");
  const Result<std::string> config = read_config(config_path);
  if (!config) return config.error();
  quire_tokenizer* handle = nullptr;
  quire_text error{};
  const int code = quire_tokenizer_open_sentencepiece(model->data(), model->size(), config->data(),
                                                      config->size(), &handle, &error);
  if (code != 0) return ffi_error(code, error, path + ": ");
  return handle;
}

}  // namespace

bool Tokenizer::exists(const std::string& dir) {
  return entry_exists(dir + "/tokenizer.json") || entry_exists(dir + "/tokenizer.model");
}

Result<std::unique_ptr<Tokenizer>> Tokenizer::open(const std::string& dir, int32_t model_vocab_size) {
  const bool json = entry_exists(dir + "/tokenizer.json");
  const std::string path = dir + (json ? "/tokenizer.json" : "/tokenizer.model");
  if (!json && !entry_exists(path))
    return error(Code::kNotFound, dir + ": it has neither tokenizer.json nor tokenizer.model");
  const std::string config_path = dir + "/tokenizer_config.json";
  Result<quire_tokenizer*> handle =
      json ? open_json(path, config_path) : open_sentencepiece(path, config_path);
  if (!handle) return handle.error();
  const int32_t num_ids = quire_tokenizer_num_ids(*handle);
  const quire_decode_rules rules = quire_tokenizer_decode_rules(*handle);
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer(*handle,
                                                     model_vocab_size > 0 ? model_vocab_size : num_ids,
                                                     {.strip_leading_space = rules.strip_leading_space != 0,
                                                      .replace_each_byte = rules.replace_each_byte != 0}));
  if (model_vocab_size > 0 && num_ids > model_vocab_size)
    return invalid(path + ": its highest token id is " + std::to_string(num_ids - 1) + " (\"" +
                   tokenizer->token_text(num_ids - 1).value_or("") + "\"); the model's vocab_size is " +
                   std::to_string(model_vocab_size));
  return tokenizer;
}

Tokenizer::~Tokenizer() {
  quire_tokenizer_close(handle_);
}

Result<std::vector<int32_t>> Tokenizer::run_encode(std::string_view text, uint32_t flags,
                                                   size_t max_ids) const {
  quire_ids ids{};
  quire_text error{};
  const int code =
      quire_tokenizer_encode(handle_, text.data(), text.size(), flags, max_ids, kPartBytes, &ids, &error);
  if (code != 0) return ffi_error(code, error);
  std::vector<int32_t> result(ids.data, ids.data + ids.count);
  quire_ids_free(ids);
  return result;
}

Result<std::vector<int32_t>> Tokenizer::encode(std::string_view text, bool add_special_tokens,
                                               bool special_as_text, size_t max_ids) const {
  return run_encode(text,
                    (add_special_tokens ? unsigned{QUIRE_ADD_SPECIAL} : 0u) |
                        (special_as_text ? unsigned{QUIRE_SPECIAL_AS_TEXT} : 0u),
                    max_ids);
}

Result<std::vector<int32_t>> Tokenizer::encode_guarded(std::string_view rendered, size_t max_ids) const {
  return run_encode(rendered, QUIRE_GUARDED, max_ids);
}

Result<std::string> Tokenizer::guard(std::string_view part) const {
  quire_text guarded{}, error{};
  const int code = quire_tokenizer_guard(handle_, part.data(), part.size(), &guarded, &error);
  if (code != 0) return ffi_error(code, error);
  return take_text(guarded);
}

Result<std::string> Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  Detokenizer detokenizer(*this, skip_special_tokens);
  std::string text;
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocab_size_)
      return invalid(
          "token id " + std::to_string(id) + " is not below " + std::to_string(vocab_size_) + " (vocab_size)",
          "token_ids");
    text += detokenizer.push(id);
  }
  return text + detokenizer.flush();
}

bool Tokenizer::reads_in_parts() const {
  return quire_tokenizer_reads_in_parts(handle_) != 0;
}

std::optional<int32_t> Tokenizer::token_id(std::string_view token) const {
  const int32_t id = quire_tokenizer_token_id(handle_, token.data(), token.size());
  return id < 0 ? std::nullopt : std::optional<int32_t>(id);
}

std::optional<std::string> Tokenizer::token_text(int32_t id) const {
  const quire_token token = quire_tokenizer_token(handle_, id);
  if (token.spelling == nullptr) return std::nullopt;
  return std::string(token.spelling, token.spelling_bytes);
}

int32_t Tokenizer::ids_without_a_token() const {
  int32_t without = 0;
  for (int32_t id = 0; id < vocab_size_; ++id)
    without += quire_tokenizer_token(handle_, id).spelling == nullptr ? 1 : 0;
  return without;
}

TokenBytes Tokenizer::token_bytes(int32_t id) const {
  const quire_token token = quire_tokenizer_token(handle_, id);
  return {.bytes = {token.bytes, token.num_bytes}, .special = token.special != 0};
}

}  // namespace quire
