// What stands around a text, where tokenizer_config.json tells. What is expected was seen of Hugging Face transformers 4.57.6, with the
// same files; where no flag is told it is what the file says, as of 5.24.
#include "tests/unit/text_fixture.h"

namespace quire::test {
namespace {

using Json = nlohmann::json;
using Ids = std::vector<int32_t>;

const Json kByteLevel = {
    {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}};

Json puts_before(const std::string& token, int32_t id) {
  const Json text = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}},
             pair = {{"Sequence", {{"id", "B"}, {"type_id", 1}}}};
  return {{"type", "TemplateProcessing"},
          {"single", {{{"SpecialToken", {{"id", token}, {"type_id", 0}}}}, text}},
          {"pair", {text, pair}},
          {"special_tokens", {{token, {{"id", token}, {"ids", {id}}, {"tokens", {token}}}}}}};
}

class Around : public testing::Test {
 protected:
  Around() : json_(Json::parse(read_file(root_dir() + "/models/demo/tokenizer.json"))) {
    const Json& added = json_["added_tokens"];
    bos_ = added[0]["id"], other_ = added[2]["id"];
    config_ = {{"bos_token", added[0]["content"]}, {"eos_token", {{"content", added[2]["content"]}}}};
    before_ = puts_before(added[2]["content"], other_);
  }

  Result<std::unique_ptr<Tokenizer>> open(const Json& post_processor, const Json& told) {
    TempDir dir;
    json_["post_processor"] = post_processor;
    Json config = config_;
    config.update(told);
    write_file(dir.path() + "/tokenizer.json", json_.dump());
    write_file(dir.path() + "/tokenizer_config.json", config.dump());
    return Tokenizer::open(dir.path());
  }

  Ids around(const Json& post_processor, const Json& told) {
    const auto tokenizer = open(post_processor, told);
    EXPECT_TRUE(tokenizer.has_value()) << (tokenizer ? "" : tokenizer.error().message);
    if (!tokenizer) return {};
    Ids ids = *(*tokenizer)->encode("Who are you?", /*add_special_tokens=*/true, true);
    const Ids text = *(*tokenizer)->encode("Who are you?", false, true);
    const auto at = std::search(ids.begin(), ids.end(), text.begin(), text.end());
    EXPECT_NE(at, ids.end());
    ids.erase(at, at + static_cast<int64_t>(text.size()));
    return ids;
  }

  Json json_, config_, before_;
  int32_t bos_ = 0, other_ = 0;
};

Json class_of(const char* name, const Json& flags) {
  Json told = {{"tokenizer_class", name}};
  told.update(flags);
  return told;
}

const Json kBos = {{"add_bos_token", true}}, kNoBos = {{"add_bos_token", false}},
           kEos = {{"add_eos_token", true}};

TEST_F(Around, AClassThatGoesByTheConfigurationPutsWhatItTells) {
  for (const char* name : {"LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "GemmaTokenizerFast",
                           "CohereTokenizerFast"})
    for (const Json& file : {Json(), kByteLevel, before_}) {
      EXPECT_EQ(around(file, class_of(name, kBos)), (Ids{bos_})) << name;
      EXPECT_EQ(around(file, class_of(name, kNoBos)), Ids{}) << name;
      EXPECT_EQ(around(file, class_of(name, kEos)), (Ids{bos_, other_})) << name << ": BOS is its default";
    }
  EXPECT_EQ(around(before_, class_of("GPTNeoXTokenizerFast", kEos)), (Ids{other_})) << "BOS is not";
}

TEST_F(Around, AnotherClassOrAClassThatIsToldNothingPutsWhatTheFileSays) {
  for (const char* name : {"PreTrainedTokenizerFast", "Qwen2Tokenizer", "TokenizersBackend", ""})
    for (const Json& flags : {kBos, kNoBos, kEos}) {
      EXPECT_EQ(around(kByteLevel, class_of(name, flags)), Ids{}) << name;
      EXPECT_EQ(around(before_, class_of(name, flags)), (Ids{other_})) << name;
    }
  const Json null = {{"add_bos_token", nullptr}};
  for (const Json& flags : {Json::object(), null}) {
    EXPECT_EQ(around(kByteLevel, class_of("LlamaTokenizer", flags)), Ids{});
    EXPECT_EQ(around(before_, class_of("LlamaTokenizer", flags)), (Ids{other_}));
  }
}

// BOS of DeepSeek-R1-Distill-Qwen: an object, in a file whose post-processor puts nothing.
TEST_F(Around, ABosThatIsAnObjectIsPutBefore) {
  const Json bos = {{"__type", "AddedToken"}, {"content", config_["bos_token"]}, {"normalized", true}};
  Json told = class_of("LlamaTokenizerFast", kBos);
  told.update({{"bos_token", bos}, {"add_eos_token", false}});
  EXPECT_EQ(around(kByteLevel, told), (Ids{bos_}));
}

TEST_F(Around, ABosThatIsNoTokenIsRefused) {
  Json told = class_of("LlamaTokenizer", kBos);
  told["bos_token"] = "<none>";
  const auto refused = open(kByteLevel, told);
  ASSERT_FALSE(refused.has_value());
  EXPECT_NE(refused.error().message.find("its bos_token \"<none>\" is not in its vocabulary"),
            std::string::npos)
      << refused.error().message;
  told["add_bos_token"] = false;
  EXPECT_TRUE(open(kByteLevel, told).has_value()) << "it is not asked for";
}

}  // namespace
}  // namespace quire::test
