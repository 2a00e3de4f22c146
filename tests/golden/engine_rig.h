// What the golden tests of the whole engine share: the stored cases, a sink that collects a request's events,
// and an engine that takes prompts of ids.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <nlohmann/json.hpp>

#include "quire/engine.h"

namespace quire::golden {

inline std::string env_or(const char* name, const std::string& otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : value;
}
inline std::string root_dir() {
  return env_or("QUIRE_ROOT", ".");
}
inline std::string shared_data() {
  return env_or("QUIRE_SHARED", root_dir() + "/../shared");
}

// Collects a request's events; wait() returns once the last has come, and fails if the request did.
class Collector final : public TokenSink {
 public:
  void on_event(const TokenEvent& event) override {
    const std::lock_guard lock(mutex_);
    auto& ids = ids_[event.index];
    ids.insert(ids.end(), event.token_ids.begin(), event.token_ids.end());
    text_[event.index] += event.text;
    auto& logprobs = logprobs_[event.index];
    logprobs.insert(logprobs.end(), event.logprobs.begin(), event.logprobs.end());
    if (event.finish != FinishReason::kNone) finish_[event.index] = event.finish;
    if (event.error) error_ = event.error->message;
    EXPECT_FALSE(done_) << "an event after the last";
    done_ = event.last;
    if (event.last) last_ = event;
    if (done_) changed_.notify_all();
  }
  void wait(const std::string& error = "") {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, std::chrono::seconds(120), [this] { return done_; }))
        << "no last event";
    EXPECT_EQ(error_, error);
  }
  void refuse(const Error& why) {
    const std::lock_guard lock(mutex_);
    error_ = why.message;
    done_ = true;
  }
  size_t num_ids(int32_t index = 0) {
    const std::lock_guard lock(mutex_);
    return ids_[index].size();
  }
  std::vector<int32_t> ids(int32_t index = 0) { return ids_[index]; }
  std::vector<TokenLogprob> logprobs(int32_t index = 0) { return logprobs_[index]; }
  std::string text(int32_t index = 0) { return text_[index]; }
  FinishReason finish(int32_t index = 0) { return finish_[index]; }
  const TokenEvent& last() const { return last_; }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<int32_t, std::vector<int32_t>> ids_;
  std::map<int32_t, std::vector<TokenLogprob>> logprobs_;
  std::map<int32_t, std::string> text_;
  std::map<int32_t, FinishReason> finish_;
  TokenEvent last_;
  std::string error_;
  bool done_ = false;
};

// A step's likeliest tokens with their log probabilities.
using StoredTop = std::vector<std::pair<int32_t, double>>;

struct Case {
  std::vector<int32_t> prompt, greedy;
  std::vector<double> margins;      // between the two likeliest logits of each step
  std::vector<double> logprobs;     // of each greedy token
  std::map<size_t, StoredTop> top;  // of the steps for which they are stored
};

// What bf16 may move a log probability or a margin of the stored models by, against float64. recall-9M over its stored cases:
// margins by 0.31 at most in float64 sums with every activation rounded, 0.27 on a CPU however the cases are run (its products
// give a row the same bits in any company), 0.28 on an H100 with each case alone, 0.41 over 54 runs of all ways there; 0.046 in
// the mean everywhere. A margin of 0.134 was turned alone, one of 0.127 together, one of 0.134 preempted. A wrong key or value
// moves them by whole logits.
constexpr double kMostBf16Noise = 0.6;

inline std::vector<Case> read_cases(const std::string& path) {
  std::ifstream file(path);
  const nlohmann::json goldens = nlohmann::json::parse(file);
  std::vector<Case> cases;
  for (const auto& c : goldens["cases"]) {
    Case& to = cases.emplace_back();
    c["prompt_ids"].get_to(to.prompt);
    c["greedy_ids"].get_to(to.greedy);
    c["margins"].get_to(to.margins);
    c["greedy_logprobs"].get_to(to.logprobs);
    for (const auto& row : c["logits"]) {
      const size_t predicts = row["position"].get<size_t>() + 1;
      if (predicts < to.prompt.size()) continue;
      StoredTop& top = to.top[predicts - to.prompt.size()];
      for (size_t i = 0; i < row["ids"].size(); ++i)
        top.emplace_back(row["ids"][i].get<int32_t>(),
                         row["logits"][i].get<double>() - row["logsumexp"].get<double>());
    }
  }
  return cases;
}

inline SamplingParams greedy(int32_t max_tokens) {
  SamplingParams p;
  p.temperature = 0;
  p.max_tokens = max_tokens;
  p.ignore_eos = true;
  return p;
}

inline std::shared_ptr<Collector> submit(Engine& engine, const std::vector<int32_t>& prompt,
                                         SamplingParams sampling) {
  auto sink = std::make_shared<Collector>();
  Request request;
  request.prompt = prompt;
  request.sampling = std::move(sampling);
  const Result<RequestId> id = engine.submit(std::move(request), sink);
  if (!id) sink->refuse(id.error());
  return sink;
}
inline std::shared_ptr<Collector> submit(Engine& engine, const Case& c) {
  return submit(engine, c.prompt, greedy(static_cast<int32_t>(c.greedy.size())));
}

// A step that was under way when the last request ended has to run first.
inline void expect_nothing_held(const Engine& engine) {
  for (int i = 0; i < 500 && engine.stats().blocks_held > 0; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(engine.stats().blocks_held, 0);
}

}  // namespace quire::golden
