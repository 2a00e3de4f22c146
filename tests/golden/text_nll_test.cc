// The mean negative log-likelihood of a text under each trained model, by the procedure that its golden
// states: it sees every position of long windows, and the tokenizer and the forward pass together.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "src/text/tokenizer.h"
#include "tests/golden/model_runner.h"

namespace quire::golden {
namespace {

using nlohmann::json;

// <|endoftext|> removed, every run of white space replaced by one space.
std::string prepared(std::string text, size_t bytes) {
  const std::string end = "<|endoftext|>";
  for (size_t at = text.find(end); at != std::string::npos; at = text.find(end, at))
    text.erase(at, end.size());
  std::string out;
  for (const char c : text) {
    const bool space = c == ' ' || c == '\n' || c == '\t' || c == '\r';
    if (!space)
      out += c;
    else if (out.empty() || out.back() != ' ')
      out += ' ';
    if (out.size() >= bytes && (static_cast<unsigned char>(c) & 0x80) == 0) break;
  }
  return out;
}

// Mean over the ids after BOS of one window.
double window_nll(ModelRunner& runner, const std::vector<int32_t>& window) {
  runner.clear();
  const auto vocab = static_cast<size_t>(runner.spec().vocab_size);
  const std::vector<float> logits = runner.extend(window);
  double sum = 0;
  for (size_t i = 0; i + 1 < window.size(); ++i) {
    const float* row = logits.data() + i * vocab;
    const double top = *std::max_element(row, row + vocab);
    double mass = 0;
    for (size_t v = 0; v < vocab; ++v) mass += std::exp(static_cast<double>(row[v]) - top);
    sum += top + std::log(mass) - static_cast<double>(row[window[i + 1]]);
  }
  return sum / static_cast<double>(window.size() - 1);
}

class TextNll : public testing::TestWithParam<std::string> {};

TEST_P(TextNll, IsThatOfFloat64) {
  if (shared_dir().empty()) GTEST_SKIP() << "no shared data (QUIRE_SHARED)";
  const std::string dir = shared_dir() + "/models/" + GetParam();
  const json golden =
      json::parse(std::ifstream(shared_dir() + "/goldens/" + GetParam() + ".json"))["text_nll"];
  std::stringstream text;
  text << std::ifstream(shared_dir() + "/text/" + golden["text"].get<std::string>()).rdbuf();
  const auto tokenizer = Tokenizer::open(dir);
  ASSERT_TRUE(tokenizer) << tokenizer.error().message;
  const size_t window = golden["window"], count = golden["windows"];
  const auto ids = (*tokenizer)->encode(prepared(text.str(), 8 * window * count), false, true);
  ASSERT_TRUE(ids) << ids.error().message;
  ASSERT_GE(ids->size(), count * (window - 1));
  const auto first = golden["first_ids"].get<std::vector<int32_t>>();
  ASSERT_EQ(std::vector<int32_t>(ids->begin(), ids->begin() + static_cast<int64_t>(first.size())), first);
  const auto runner = ModelRunner::open(dir, {.back_end = BackEnd::kCpu});
  ASSERT_TRUE(runner) << runner.error().message;
  for (size_t w = 0; w < count; ++w) {
    std::vector<int32_t> rows = {(*runner)->spec().bos_token_id};
    const auto begin = ids->begin() + static_cast<int64_t>(w * (window - 1));
    rows.insert(rows.end(), begin, begin + static_cast<int64_t>(window - 1));
    // Stored with six decimals; single logits differ by up to 2.4e-5.
    EXPECT_NEAR(window_nll(**runner, rows), golden["per_window"][w].get<double>(), 1e-5) << "window " << w;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, TextNll,
                         testing::Values("babyllama-tok105", "babyllama-tok105-hd64-bf16", "recall-9M",
                                         "stories260K", "stories260K-hd128-bf16", "tinystories-3.5M-qwen3"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
                           return name;
                         });

}  // namespace
}  // namespace quire::golden
