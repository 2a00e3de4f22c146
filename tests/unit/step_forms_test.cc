// Which steps a captured graph serves, and at what sizes.
#include <gtest/gtest.h>

#include "src/execute/step_forms.h"

namespace quire {
namespace {

constexpr GraphRules kRules{.max_rows = 1024, .logits_rows = 64, .max_samples = 256};

StepShape shape(int64_t rows, int32_t sequences, int32_t samples) {
  return {.rows = rows, .sequences = sequences, .logits_rows = samples, .samples = samples};
}

TEST(StepForms, ADecodeStepIsPaddedToItsSize) {
  StepShape s = shape(41, 41, 41);
  s.edits = 1;
  s.retained = 3;
  ASSERT_EQ(pad_for_graph(kRules, true, s), StepForm::kDecode);
  StepShape wanted = shape(48, 48, 48);
  wanted.edits = 48;
  wanted.retained = 4;
  EXPECT_EQ(s, wanted);
}

TEST(StepForms, AStepWithPromptsIsPaddedToItsTokens) {
  StepShape s = shape(300, 9, 7);
  s.reports = 2;
  ASSERT_EQ(pad_for_graph(kRules, false, s), StepForm::kWithPrompts);
  StepShape wanted = shape(320, 32, 32);
  wanted.reports = 32;
  wanted.with_prompts = true;
  EXPECT_EQ(s, wanted);
  StepShape unsampled = shape(300, 1, 0);
  ASSERT_EQ(pad_for_graph(kRules, false, unsampled), StepForm::kWithPrompts);
  EXPECT_EQ(unsampled.logits_rows, 0) << "nobody asks for the last layer's work";
}

TEST(StepForms, WhatNoGraphServesKeepsItsSizes) {
  StepShape with_scores = shape(300, 9, 7);
  with_scores.retained = 1;
  for (StepShape s : {shape(0, 0, 0), shape(1025, 9, 7), with_scores, shape(65, 65, 65)}) {
    const StepShape before = s;
    EXPECT_EQ(pad_for_graph(kRules, s.rows == 65, s), StepForm::kLaunched) << s.rows;
    EXPECT_EQ(s, before);
  }
}

TEST(StepForms, TheLargestStepHoldsEveryPaddedOne) {
  const StepLimits limits{.max_rows = 100,
                          .max_sequences = 60,
                          .max_context_tokens = 100,
                          .block_tokens = 16,
                          .num_blocks = 10,
                          .vocab_size = 50};
  const StepShape largest = largest_step(limits);
  EXPECT_EQ(table_stride(limits), 16);
  for (int32_t n = 1; n <= 60; ++n) {
    StepShape s = shape(n, n, n);
    pad_for_graph({.max_rows = 1024, .logits_rows = 1024, .max_samples = 64}, true, s);
    EXPECT_LE(s.rows, largest.rows);
    EXPECT_LE(s.samples, largest.samples);
    EXPECT_LE(s.samples, sampling_sizes(limits).max_samples);
  }
}

}  // namespace
}  // namespace quire
