// Where the text tests find tokenizers: models/demo in the repository, and the data folder beside it where
// there is one.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <unistd.h>
#include <nlohmann/json.hpp>

#include "src/text/tokenizer.h"

namespace quire::test {

inline std::string env_or(const char* name, const std::string& otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : otherwise;
}

inline std::string root_dir() {
  return env_or("QUIRE_ROOT", ".");
}
inline std::string shared_dir() {
  return env_or("QUIRE_SHARED", root_dir() + "/../shared");
}
inline bool has_shared() {
  return std::filesystem::exists(shared_dir() + "/tokenizers");
}

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

inline void write_file(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "quire_text_XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// The files of a tokenizer of the data folder, unpacked where they are kept compressed. use_model: tokenizer.model
// though there is a tokenizer.json.
inline void copy_shared(const std::string& name, const std::string& to, bool use_model = false) {
  const std::string from = shared_dir() + "/tokenizers/" + name;
  const auto copy = [&](const std::string& file) {
    if (std::filesystem::exists(from + "/" + file))
      std::filesystem::copy_file(from + "/" + file, to + "/" + file);
  };
  copy("tokenizer.model");
  if (!use_model) copy("tokenizer.json");
  if (!use_model && std::filesystem::exists(from + "/tokenizer.json.gz")) {
    const std::string unpack = "gzip -dc '" + from + "/tokenizer.json.gz' > '" + to + "/tokenizer.json'";
    if (std::system(unpack.c_str()) != 0) ADD_FAILURE() << "cannot unpack " << from;
  }
}

// Opened once and kept: nothing changes a tokenizer, and reading megabytes of JSON takes longer than most tests.
inline const Tokenizer* open_shared(const std::string& name, bool use_model = false) {
  static std::map<std::pair<std::string, bool>, std::unique_ptr<Tokenizer>> kept;
  std::unique_ptr<Tokenizer>& tokenizer = kept[{name, use_model}];
  if (tokenizer != nullptr) return tokenizer.get();
  TempDir dir;
  copy_shared(name, dir.path(), use_model);
  Result<std::unique_ptr<Tokenizer>> opened = Tokenizer::open(dir.path());
  if (opened)
    tokenizer = std::move(*opened);
  else
    ADD_FAILURE() << name << ": " << opened.error().message;
  return tokenizer.get();
}

inline std::unique_ptr<Tokenizer> open_demo() {
  Result<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::open(root_dir() + "/models/demo");
  EXPECT_TRUE(tokenizer.has_value()) << (tokenizer ? "" : tokenizer.error().message);
  return tokenizer ? std::move(*tokenizer) : nullptr;
}

inline const std::vector<std::string>& shared_names() {
  static const std::vector<std::string> names = {"deepseek-llm", "gpt2", "llama2", "llama3", "minimind",
                                                 "mistral-v3",   "mpt",  "phi-3",  "qwen2.5"};
  return names;
}

class SharedTokenizer : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (!has_shared()) GTEST_SKIP() << "no " << shared_dir() << "/tokenizers (set QUIRE_SHARED)";
  }
};

inline std::string shared_test_name(const testing::TestParamInfo<std::string>& info) {
  std::string name = info.param;
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); }, '_');
  return name;
}

inline bool is_too_long(const Result<std::vector<int32_t>>& ids) {
  return !ids && ids.error().code == Code::kOutOfRange;
}

}  // namespace quire::test
