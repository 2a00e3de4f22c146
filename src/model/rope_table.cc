#include "src/model/rope_table.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "src/base/check.h"
#include "src/base/clock.h"
#include "src/base/log.h"
#include "src/base/progress.h"

namespace quire {
namespace {

constexpr int64_t kReportEvery = 4096;  // positions; a millisecond or less of each
constexpr int64_t kLongUs = 1'000'000;

// 1 / theta^(2i / dim) as transformers rounds it: power and quotient in float32.
std::vector<float> plain_frequencies(float theta, int32_t dim) {
  std::vector<float> out(static_cast<size_t>(dim / 2));
  for (size_t i = 0; i < out.size(); ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(dim);
    out[i] = 1.0f / std::pow(theta, exponent);
  }
  return out;
}

// NTK-aware scaling: the base grows with the length (u/emozilla's dynamic form).
float dynamic_theta(const RopeSpec& rope, int32_t dim, int64_t length) {
  const double longest = std::max(static_cast<double>(length), rope.original_max_position);
  const double stretch = rope.factor * longest / rope.original_max_position - (rope.factor - 1);
  return static_cast<float>(rope.theta * std::pow(stretch, dim / (dim - 2.0)));
}

// The (real-valued) pair that makes `rotations` turns over the original length.
double correction_dim(const RopeSpec& rope, int32_t dim, double rotations) {
  return dim * std::log(rope.original_max_position / (rotations * 2 * std::numbers::pi)) /
         (2 * std::log(rope.theta));
}

// YaRN, arXiv 2309.00071 sec. 3.2: fast pairs keep their frequency, slow ones are interpolated, a ramp
// between.
void apply_yarn(const RopeSpec& rope, int32_t dim, std::vector<float>& frequencies) {
  double low = correction_dim(rope, dim, rope.beta_fast), high = correction_dim(rope, dim, rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const float ramp =
        static_cast<float>(std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0));
    const float kept = 1.0f - ramp;
    const float interpolated =
        static_cast<float>(1.0 / (rope.factor * (1.0 / static_cast<double>(frequencies[i]))));
    frequencies[i] = interpolated * (1.0f - kept) + frequencies[i] * kept;
  }
}

// Llama 3.1: by wavelength, with a ramp between the two limits.
void apply_llama3(const RopeSpec& rope, std::vector<float>& frequencies) {
  const double long_wave = rope.original_max_position / rope.low_freq_factor;
  const double short_wave = rope.original_max_position / rope.high_freq_factor;
  for (float& f : frequencies) {
    const double wave = 2 * std::numbers::pi / static_cast<double>(f);
    if (wave < short_wave) continue;
    if (wave > long_wave) {
      f = static_cast<float>(static_cast<double>(f) / rope.factor);
      continue;
    }
    const double smooth = (rope.original_max_position / wave - rope.low_freq_factor) /
                          (rope.high_freq_factor - rope.low_freq_factor);
    f = static_cast<float>((1 - smooth) * static_cast<double>(f) / rope.factor +
                           smooth * static_cast<double>(f));
  }
}

void fill_row(std::span<const float> frequencies, float factor, int64_t position, std::span<float> row) {
  const size_t half = frequencies.size();
  for (size_t i = 0; i < half; ++i) {
    const float angle =
        static_cast<float>(position) * frequencies[i];  // float32, as transformers computes it
    row[i] = static_cast<float>(std::cos(static_cast<double>(angle))) * factor;
    row[half + i] = static_cast<float>(std::sin(static_cast<double>(angle))) * factor;
  }
}

double mscale_of(double scale, double mscale) {
  return scale <= 1 ? 1.0 : 0.1 * mscale * std::log(scale) + 1.0;
}

}  // namespace

std::vector<float> rope_inverse_frequencies(const RopeSpec& rope, int32_t head_dim, int64_t length) {
  check(head_dim >= 2 && head_dim % 2 == 0, "rope: head_dim must be even");
  const bool dynamic = rope.scaling == RopeScaling::kDynamic && head_dim > 2;
  const float theta = dynamic ? dynamic_theta(rope, head_dim, length) : static_cast<float>(rope.theta);
  std::vector<float> out = plain_frequencies(theta, head_dim);
  if (rope.scaling == RopeScaling::kLinear) {
    for (float& f : out) f /= static_cast<float>(rope.factor);
  }
  if (rope.scaling == RopeScaling::kYarn) apply_yarn(rope, head_dim, out);
  if (rope.scaling == RopeScaling::kLlama3) apply_llama3(rope, out);
  return out;
}

float rope_attention_factor(const RopeSpec& rope) {
  if (rope.scaling != RopeScaling::kYarn) return 1.0f;
  if (rope.attention_factor) return static_cast<float>(*rope.attention_factor);
  // Both must be set and not zero, as in transformers (DeepSeek's configs carry zeros).
  if (rope.mscale.value_or(0) != 0 && rope.mscale_all_dim.value_or(0) != 0) {
    return static_cast<float>(mscale_of(rope.factor, *rope.mscale) /
                              mscale_of(rope.factor, *rope.mscale_all_dim));
  }
  return static_cast<float>(mscale_of(rope.factor, 1));
}

void fill_rope_table(const RopeSpec& rope, int32_t head_dim, int64_t num_positions, std::span<float> table) {
  check(static_cast<int64_t>(table.size()) == num_positions * head_dim, "rope: table size");
  const float factor = rope_attention_factor(rope);
  std::vector<float> frequencies = rope_inverse_frequencies(rope, head_dim, 0);
  const bool dynamic = rope.scaling == RopeScaling::kDynamic;
  const SteadyClock clock;
  const int64_t started_us = clock.now_us();
  Progress progress("filling the table of rotary angles", num_positions, "positions");
  for (int64_t p = 0; p < num_positions; ++p) {
    if ((p + 1) % kReportEvery == 0) progress.advance(kReportEvery);
    if (dynamic && static_cast<double>(p + 1) > rope.original_max_position) {
      frequencies = rope_inverse_frequencies(rope, head_dim, p + 1);
    }
    fill_row(frequencies, factor, p,
             table.subspan(static_cast<size_t>(p * head_dim), static_cast<size_t>(head_dim)));
  }
  if (const int64_t us = clock.now_us() - started_us; us >= kLongUs)
    log_line(LogLevel::kInfo, "rope_table_filled", {{"positions", num_positions}, {"ms", us / 1000}});
}

}  // namespace quire
