// What sequences' histories and lists make of their logits: src/sample/processors.h on the device, by the same arithmetic, so that a
// greedy token is the same. Bounded by one read and one write of the row, and one read of the history by each block (from L2).
//
// A block has a range of ids. It marks in shared memory what the history and the lists say of them, by counts and maxima, whose order
// does not matter, then changes its logits one by one.
#include <algorithm>

#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/portable.h"
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/sampling_row.h"
#include "kernels/op_checks.h"

namespace quire::QUIRE_SIDE {
namespace {

constexpr int kThreads = 256;
constexpr int kRange = 2048;  // ids of a block

// Where an edit's lists lie, as kernels/sampling.h puts them one behind the other.
struct Lists {
  const int32_t *bias_ids, *bias_amounts, *allowed, *word_ends, *words, *ending;

  __device__ Lists(const int32_t* ints, const LogitEdit& e)
      : bias_ids(ints + e.lists),
        bias_amounts(bias_ids + e.num_bias),
        allowed(bias_amounts + e.num_bias),
        word_ends(allowed + e.num_allowed),
        words(word_ends + e.num_bad_words + 1),
        ending(ints + e.ending) {}
};

// What is known of the ids [first, first + kRange).
class Marks {
 public:
  static constexpr int kBytes = kRange * 4 * 4;

  __device__ Marks(Shared<char> memory, int first)
      : first_(first),
        values_(memory.as<float>()),
        in_output_((values_ + kRange).as<int32_t>()),
        seen_(in_output_ + kRange),
        rule_(seen_ + kRange) {}

  __device__ void clear() const {
    for (int i = static_cast<int>(threadIdx.x); i < kRange; i += kThreads)
      in_output_[i] = 0, seen_[i] = 0, rule_[i] = kNoRule;
  }
  __device__ bool has(int32_t id) const { return id >= first_ && id < first_ + kRange; }
  __device__ void allow(int32_t id) const { raise(rule_, id, kAllowed); }
  __device__ void forbid(int32_t id) const { raise(rule_, id, kForbidden); }
  __device__ void see(int32_t id, bool in_output) const {
    if (!has(id)) return;
    atomic_max(seen_ + (id - first_), int32_t{1});
    if (in_output) atomic_add(in_output_ + (id - first_), int32_t{1});
  }

  __device__ Shared<float> values() const { return values_; }
  __device__ bool stays(int i, bool only_allowed) const {
    const int32_t rule = rule_[i];
    return rule != kForbidden && (!only_allowed || rule == kAllowed);
  }
  __device__ bool seen(int i) const { return seen_[i] != 0; }
  __device__ int32_t in_output(int i) const { return in_output_[i]; }

 private:
  enum : int32_t { kNoRule, kAllowed, kForbidden };  // the higher one holds
  __device__ void raise(Shared<int32_t> marks, int32_t id, int32_t mark) const {
    if (has(id)) atomic_max(marks + (id - first_), mark);
  }

  int first_;
  Shared<float> values_;
  Shared<int32_t> in_output_, seen_, rule_;
};

// f(i) for this thread's share of [0, count).
template <class F>
__device__ inline void for_each_of(int count, F f) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) f(i);
}

// Do the last `count` tokens of the history equal those at `tokens`?
__device__ inline bool ends_with(const int32_t* history, int length, const int32_t* tokens, int count) {
  if (count > length) return false;
  for (int i = 0; i < count; ++i)
    if (load(history + length - count + i) != load(tokens + i)) return false;
  return true;
}

__device__ inline void mark_history(const int32_t* history, const LogitEdit& e, const Marks& marks) {
  const int before = e.no_repeat_ngram - 1;
  for_each_of(e.history_tokens, [&](int i) {
    const int32_t id = load(history + i);
    if (!marks.has(id)) return;
    if (e.penalizes()) marks.see(id, i >= e.prompt_tokens);
    // Would the token after the last n - 1 again be this one?
    if (before >= 0 && i >= before && ends_with(history, e.history_tokens, history + i - before, before))
      marks.forbid(id);
  });
}

__device__ inline void mark_lists(const int32_t* history, const Lists& lists, const LogitEdit& e,
                                  const Marks& marks) {
  for_each_of(e.num_allowed, [&](int i) { marks.allow(load(lists.allowed + i)); });
  for_each_of(e.num_ending, [&](int i) { marks.forbid(load(lists.ending + i)); });
  for_each_of(e.num_bad_words, [&](int i) {
    const int begin = load(lists.word_ends + i), last = load(lists.word_ends + i + 1) - 1;
    const int32_t id = load(lists.words + last);
    if (marks.has(id) && ends_with(history, e.history_tokens, lists.words + begin, last - begin))
      marks.forbid(id);
  });
}

__device__ inline float penalized(float logit, const LogitEdit& e, int32_t in_output) {
  logit = logit > 0 ? logit / e.repetition : logit * e.repetition;
  if (in_output > 0) logit -= static_cast<float>(e.presence + e.frequency * in_output);
  return logit;
}

// grid (edits, ranges of ids)
__global__ void __launch_bounds__(kThreads, 4) edit_ranges(EditLogitsParams p) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const LogitEdit e = load(p.edits + blockIdx.x);
  if (e.edited_row < 0) return;  // all of the block
  const int first = static_cast<int>(blockIdx.y) * kRange, count = min(kRange, p.vocab - first);
  const float* row = p.logits + int64_t{e.logits_row} * p.vocab + first;
  const int32_t* history = p.ints + e.history;
  const Lists lists(p.ints, e);
  const Marks marks(dynamic_shared<char>(), first);

  marks.clear();
  for_each_of(count, [&](int i) { marks.values()[i] = load(row + i); });
  sync_threads();
  for_each_of(e.num_bias, [&](int i) {
    const int32_t id = load(lists.bias_ids + i);
    if (!marks.has(id)) return;
    const float amount = bits_to_f32(static_cast<uint32_t>(load(lists.bias_amounts + i)));
    marks.values()[id - first] = marks.values()[id - first] + amount;
  });
  mark_history(history, e, marks);
  mark_lists(history, lists, e, marks);
  sync_threads();
  float* edited = p.edited + int64_t{e.edited_row} * p.vocab + first;
  for_each_of(count, [&](int i) {
    float x = marks.values()[i];
    if (e.penalizes() && marks.seen(i)) x = penalized(x, e, marks.in_output(i));
    store(edited + i, marks.stays(i, e.num_allowed > 0) ? x : kMasked);
  });
}

}  // namespace

void edit_logits(const Target& target, const EditLogitsParams& p) {
  if (p.num_edits == 0) return;
  check_given("edit_logits, logits", p.logits);
  check_given("edit_logits, edited", p.edited);
  check_given("edit_logits, ints", p.ints);
  check_given("edit_logits, edits", p.edits);
  launch<edit_ranges>({.grid = {as_grid(p.num_edits), as_grid(ceil_div(p.vocab, kRange))},
                       .block = kThreads,
                       .shared_bytes = Marks::kBytes,
                       .stream = target.stream,
                       .dependent = true,
                       .carveout = carveout_of(p.num_edits)},
                      p);
}

}  // namespace quire::QUIRE_SIDE
