// Delivery by hand: outcomes in, events out. The text is one letter per id ('a' + id), with stop texts
// matched by the real rule of holding back what a stop may begin in, so that no tokenizer is needed.
#include "src/engine/delivery.h"

#include <gtest/gtest.h>

#include <cmath>

namespace quire {
namespace {

class Letters final : public TextStream {
 public:
  explicit Letters(const SamplingParams& s) : stops_(s.stop), include_(s.include_stop) {}
  Piece push(int32_t id, bool may_stop) override {
    held_ += static_cast<char>('a' + id);
    for (const std::string& stop : stops_)
      if (may_stop && held_.ends_with(stop))
        return {held_.substr(0, held_.size() - (include_ ? 0 : stop.size())), stop};
    size_t keep = 0;
    for (const std::string& stop : stops_)
      for (size_t n = 1; n < stop.size() && n <= held_.size(); ++n)
        if (held_.ends_with(stop.substr(0, n))) keep = std::max(keep, n);
    std::string out = held_.substr(0, held_.size() - keep);
    held_.erase(0, out.size());
    return {out, {}};
  }
  std::string flush() override { return std::exchange(held_, {}); }

 private:
  std::vector<std::string> stops_;
  bool include_;
  std::string held_;
};

class LetterFront final : public TextFront {
 public:
  bool has_tokenizer() const override { return true; }
  bool has_chat_template() const override { return false; }
  Result<std::vector<int32_t>> encode(std::string_view, bool, bool, size_t) const override {
    return std::vector<int32_t>{};
  }
  Result<std::vector<int32_t>> encode_chat(std::span<const ChatMessage>, bool, size_t) const override {
    return std::vector<int32_t>{};
  }
  Result<std::string> render_chat(std::span<const ChatMessage>) const override { return std::string(); }
  Result<std::string> decode(std::span<const int32_t>, bool) const override { return std::string(); }
  std::unique_ptr<TextStream> stream(const SamplingParams& s, std::span<const int32_t>) const override {
    return std::make_unique<Letters>(s);
  }
};

class Events final : public TokenSink {
 public:
  void on_event(const TokenEvent& e) override { events.push_back(e); }
  std::vector<TokenEvent> events;
};

class DeliveryTest : public ::testing::Test {
 protected:
  DeliveryTest()
      : delivery_(text_, {0, 3},
                  {[this](RequestId id, int32_t index) { stopped_.emplace_back(id, index); },
                   [this](RequestId id) { ended_.push_back(id); }}) {}
  void open(SamplingParams sampling, bool stream = true, bool dump = false) {
    DeliveryRequest r;
    r.request = 7;
    r.sink = sink_;
    r.sampling = std::make_shared<const SamplingParams>(sampling);
    r.first_text = text_.stream(sampling, {});
    r.prompt = {1, 2, 3};
    r.stream = stream;
    r.dump_kv = dump;
    delivery_.open(std::move(r));
  }
  static Outcome tokens(std::vector<std::pair<int32_t, int32_t>> index_and_id, float logprob = -1) {
    Outcome o;
    for (const auto& [index, id] : index_and_id)
      o.tokens.push_back({7, index, id, logprob, {{id, logprob}, {id + 1, logprob - 1}}});
    return o;
  }
  static SequenceEnd end_of(int32_t index, FinishReason reason, std::optional<TokenId> stop = {}) {
    SequenceEnd e;
    e.request = 7;
    e.index = index;
    e.finish = reason;
    e.stop_token = stop;
    e.num_computed = 5;
    return e;
  }
  static RequestEnd request_end(FinishReason reason = FinishReason::kLength) {
    RequestEnd e;
    e.request = 7;
    e.finish = reason;
    e.prompt_tokens = 3;
    e.cached_tokens = 2;
    return e;
  }
  // The outcome of a step that ends the only sequence, and the request with it.
  void deliver_end(Outcome last, FinishReason reason = FinishReason::kLength,
                   std::optional<TokenId> stop = {}) {
    last.ends.push_back(end_of(0, reason, stop));
    last.request_ends.push_back(request_end(reason));
    delivery_.deliver(std::move(last));
  }
  const std::vector<TokenEvent>& events() const { return sink_->events; }
  std::string all_text(int32_t index = 0) const {
    std::string s;
    for (const TokenEvent& e : events())
      if (e.index == index) s += e.text;
    return s;
  }
  int32_t num_last() const {
    int32_t n = 0;
    for (const TokenEvent& e : events()) n += e.last ? 1 : 0;
    return n;
  }

  LetterFront text_;
  std::shared_ptr<Events> sink_ = std::make_shared<Events>();
  std::vector<std::pair<RequestId, int32_t>> stopped_;
  std::vector<RequestId> ended_;
  Delivery delivery_;
};

TEST_F(DeliveryTest, TokensStreamAndTheLastEventCarriesUsage) {
  open({});
  delivery_.deliver(tokens({{0, 0}}));
  ASSERT_EQ(events().size(), 1u);
  EXPECT_EQ(events()[0].text, "a");
  EXPECT_EQ(events()[0].prompt_token_ids, (std::vector<int32_t>{1, 2, 3}));
  deliver_end(tokens({{0, 1}}));
  ASSERT_EQ(events().size(), 2u);
  EXPECT_EQ(events()[1].text, "b");
  EXPECT_TRUE(events()[1].prompt_token_ids.empty());
  EXPECT_EQ(events()[1].finish, FinishReason::kLength);
  EXPECT_TRUE(events()[1].last);
  EXPECT_EQ(events()[1].usage.completion_tokens, 2);
  EXPECT_EQ(events()[1].usage.cached_tokens, 2);
  EXPECT_EQ(ended_, std::vector<RequestId>{7});
  EXPECT_TRUE(delivery_.empty());
}

TEST_F(DeliveryTest, AStopTextAcrossTokensEndsTheSequenceAndDropsWhatWasComputedPastIt) {
  SamplingParams p;
  p.stop = {"bcd"};
  open(p);
  for (const int32_t id : {0, 1, 2, 3}) delivery_.deliver(tokens({{0, id}}));
  EXPECT_EQ(all_text(), "a") << "nothing a stop may begin in is sent";
  EXPECT_EQ(stopped_, (std::vector<std::pair<RequestId, int32_t>>{{7, 0}}));
  EXPECT_EQ(num_last(), 0) << "usage comes with the scheduler's word";
  delivery_.deliver(tokens({{0, 9}}));  // was already under way
  deliver_end({}, FinishReason::kStop);
  EXPECT_EQ(num_last(), 1);
  EXPECT_EQ(events().back().stop_text, "bcd");
  EXPECT_EQ(events().back().usage.completion_tokens, 4);
  EXPECT_EQ(all_text(), "a");
  EXPECT_EQ(stopped_.size(), 1u);
}

TEST_F(DeliveryTest, AStopTextBeforeMinTokensIsText) {
  SamplingParams p;
  p.stop = {"b"};
  p.min_tokens = 2;
  open(p);
  delivery_.deliver(tokens({{0, 1}}));
  delivery_.deliver(tokens({{0, 0}}));
  EXPECT_TRUE(stopped_.empty());
  delivery_.deliver(tokens({{0, 1}}));
  EXPECT_EQ(stopped_.size(), 1u);
  EXPECT_EQ(all_text(), "ba");
}

TEST_F(DeliveryTest, HeldBackTextComesOutAtAnotherEnd) {
  SamplingParams p;
  p.stop = {"bcd"};
  open(p);
  deliver_end(tokens({{0, 1}}));
  EXPECT_EQ(all_text(), "b");
}

TEST_F(DeliveryTest, AnEndingIdIsReportedAndNotPartOfTheText) {
  for (const bool include : {false, true}) {
    sink_->events.clear();
    SamplingParams p;
    p.include_stop = include;
    open(p);
    deliver_end(tokens({{0, 4}}), FinishReason::kStop, 4);
    EXPECT_EQ(all_text(), include ? "e" : "");
    EXPECT_EQ(events().back().token_ids, std::vector<int32_t>{4});
    EXPECT_EQ(events().back().stop_token_id, 4);
  }
}

TEST_F(DeliveryTest, OnlyTheLastOfSeveralSamplesIsHeld) {
  SamplingParams p;
  p.n = 2;
  open(p);
  Outcome o = tokens({{0, 0}, {1, 1}});
  o.ends.push_back(end_of(1, FinishReason::kLength));
  delivery_.deliver(std::move(o));
  ASSERT_EQ(events().size(), 2u);
  EXPECT_EQ(events()[1].finish, FinishReason::kLength);
  EXPECT_FALSE(events()[1].last);
  deliver_end(tokens({{0, 2}}));
  EXPECT_EQ(num_last(), 1);
  EXPECT_TRUE(events().back().last);
  EXPECT_EQ(events().back().index, 0);
  EXPECT_EQ(events().back().usage.completion_tokens, 3);
}

// Two of three samples, the likeliest by mean logprob. Where the request was cut off two may have come to their ends and be the likeliest:
// the last event still tells what became of it.
TEST_F(DeliveryTest, BestOfReturnsTheLikeliestAndSaysLastWhatBecameOfTheRequest) {
  struct Sample {
    float logprob;
    FinishReason finish;
  };
  struct Case {
    std::vector<Sample> samples;  // their texts: a, b, c
    FinishReason request;
    std::vector<std::pair<std::string, FinishReason>> returned;
  };
  constexpr FinishReason kLength = FinishReason::kLength, kCancelled = FinishReason::kCancelled;
  for (const Case& c :
       {Case{{{-3, kLength}, {-1, kLength}, {-2, kLength}}, kLength, {{"b", kLength}, {"c", kLength}}},
        Case{{{-1, kLength}, {-5, kCancelled}, {-2, kLength}},
             kCancelled,
             {{"a", kLength}, {"b", kCancelled}}}}) {
    SCOPED_TRACE(c.returned[0].first);
    sink_->events.clear();
    SamplingParams p;
    p.n = 2;
    p.best_of = 3;
    open(p);
    Outcome o;
    for (int32_t i = 0; i < 3; ++i) {
      const Sample& sample = c.samples[static_cast<size_t>(i)];
      o.tokens.push_back({7, i, i, sample.logprob, {}});
      o.ends.push_back(end_of(i, sample.finish));
    }
    o.request_ends.push_back(request_end(c.request));
    delivery_.deliver(std::move(o));
    ASSERT_EQ(events().size(), 2u);
    for (size_t i = 0; i < 2; ++i) {
      EXPECT_EQ(events()[i].text, c.returned[i].first);
      EXPECT_EQ(events()[i].finish, c.returned[i].second);
      EXPECT_EQ(events()[i].index, static_cast<int32_t>(i));
      EXPECT_EQ(events()[i].last, i == 1);
    }
    EXPECT_EQ(events()[1].usage.completion_tokens, 3) << "what was made, not only what is returned";
  }
}

TEST_F(DeliveryTest, WithoutStreamingASequenceIsOneEvent) {
  open({}, false);
  for (const int32_t id : {0, 1, 2}) delivery_.deliver(tokens({{0, id}}));
  EXPECT_TRUE(events().empty());
  deliver_end({}, FinishReason::kCancelled);
  ASSERT_EQ(events().size(), 1u);
  EXPECT_EQ(events()[0].text, "abc");
  EXPECT_EQ(events()[0].finish, FinishReason::kCancelled);
}

TEST_F(DeliveryTest, LogprobsHaveAsManyAlternativesAsAsked) {
  for (const int32_t wanted : {-1, 0, 1}) {
    sink_->events.clear();
    SamplingParams p;
    p.logprobs = wanted;
    open(p);
    deliver_end(tokens({{0, 0}}));
    ASSERT_EQ(events().back().logprobs.size(), wanted < 0 ? 0u : 1u);
    if (wanted >= 0) {
      EXPECT_EQ(events().back().logprobs[0].top.size(), static_cast<size_t>(wanted));
    }
  }
}

TEST_F(DeliveryTest, ADumpGivesThePositionsEachLayerStillSees) {
  open({}, true, true);
  deliver_end(tokens({{0, 0}}));
  const KvDump expected{{{0, 1, 2, 3, 4}}, {{2, 3, 4}}};  // full attention, and a window of 3
  EXPECT_EQ(events().back().kv_dump, expected);
}

TEST_F(DeliveryTest, BeamsComeWholeAtTheEnd) {
  SamplingParams p;
  p.beam_width = 2;
  p.n = 2;
  open(p);
  Outcome o;
  for (int32_t i = 0; i < 2; ++i) {
    SequenceEnd e = end_of(i, FinishReason::kLength);
    e.tokens = {i, i + 1};
    e.logprobs = {{i, -1, {}}, {i + 1, -1, {}}};
    o.ends.push_back(std::move(e));
  }
  o.request_ends.push_back(request_end());
  delivery_.deliver(std::move(o));
  ASSERT_EQ(events().size(), 2u);
  EXPECT_EQ(events()[0].text, "ab");
  EXPECT_EQ(events()[1].text, "bc");
  EXPECT_TRUE(events()[1].last);
}

TEST_F(DeliveryTest, PromptLogprobsComeWithTheFirstEvent) {
  open({});
  Outcome o = tokens({{0, 0}});
  o.prompts.push_back({7, {{1, NAN, {}}, {2, -1, {}}, {3, -2, {}}}});
  delivery_.deliver(std::move(o));
  delivery_.deliver(tokens({{0, 1}}));
  EXPECT_EQ(events()[0].prompt_logprobs.size(), 3u);
  EXPECT_TRUE(events()[1].prompt_logprobs.empty());
}

}  // namespace
}  // namespace quire
