// A KV policy as a value: which tokens of a sequence stay in its cache, what that needs from attention, and how much room it takes.
// Parsed from "name:key=value,key=value" (command line, jsonl, wire). The scheduler asks traits(), capacity() and the functions of blocks below.
// The papers are named at each kind; README.md says how a policy meets the rest of the engine.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "quire/result.h"

namespace quire {

enum class RetentionKind {
  kKeepAll,
  // The last `window` tokens (Beltagy et al. 2020, Longformer: The Long-Document Transformer, 3.1; Jiang et al. 2023, Mistral 7B, 2).
  kWindow,
  // The first `sinks` and the last `recent` tokens, distances counted inside the cache (Xiao et al. 2023, Efficient Streaming Language
  // Models with Attention Sinks, 3.2).
  kStream,
  // The `budget` tokens the last query looked at most, per layer (Oren et al. 2024, Transformers are Multi-State RNNs, 3.2).
  kTova,
  // The `heavy` tokens of most attention so far and the last `recent`, per KV head (Zhang et al. 2023, H2O: Heavy-Hitter Oracle for
  // Efficient Generative Inference of Large Language Models, 4).
  kH2o,
};

struct PolicySpec {
  RetentionKind kind = RetentionKind::kKeepAll;
  int32_t window = 0;  // tokens, the current one included
  int32_t sinks = 0, recent = 0;
  int32_t budget = 0;
  int32_t heavy = 0;
  bool operator==(const PolicySpec&) const = default;
};

// Which lists a policy keeps apart: their contents differ, their lengths do not.
enum class ListShard { kSequence, kLayer, kLayerHead };

// What of a cached prefix a request under this policy may use (README.md, Publishing).
enum class PrefixRule {
  kBlocks,     // any pristine block: every row the decisions need is run again
  kOwnPolicy,  // blocks under a key that names the policy: they were computed under its lossy attention
  kNone,       // the decisions need sums over the prefix's own rows, which a hit would skip
};

struct PolicyTraits {
  ListShard shard = ListShard::kSequence;
  bool drops_tokens = false;
  bool slides =
      false;  // lets go of the whole blocks that its window (sliding_window) has left behind, after its sinks'
  bool row_logits = false;         // needs a decode row's logits by slot, and those of the last prompt row
  bool column_sums = false;        // needs each slot's probabilities summed over the prompt's rows
  bool sink_rotation = false;      // sees its sinks through a second rotation of the query
  bool cuts_after_prompt = false;  // full attention over the prompt, one cut at its end
  bool overwrites_slots =
      false;  // a new token takes the victim's slot: blocks cannot be shared or published afterwards
  bool recompute_safe = true;  // re-running prompt + output gives the same cache
  PrefixRule prefix = PrefixRule::kBlocks;
};

// Slots of one list that its rows see: peak while the prompt runs, steady after it. Where a policy goes by scores they are all that
// the list has; windows let go of whole blocks only, later (list_blocks).
struct PolicyBound {
  int64_t peak_slots = 0, steady_slots = 0;
};

// "" and "none" keep everything; at most 1024 bytes. Errors name the policy or key and list the known ones.
Result<PolicySpec> parse_policy(std::string_view text);
std::string to_string(const PolicySpec& spec);
std::vector<std::string> policy_names();

PolicyTraits traits(const PolicySpec& spec);
std::string_view name_of(RetentionKind kind);
std::string_view prefill_mode_of(const PolicySpec& spec);  // KvUsage::prefill_mode
// For a prompt of `prompt_tokens`, at most `max_new_tokens` more, prefilled in chunks of at most `chunk_tokens`.
PolicyBound bound(const PolicySpec& spec, int64_t prompt_tokens, int64_t max_new_tokens,
                  int64_t chunk_tokens);

// Longest chunk that a policy's list is computed in: what a window holds beside itself grows with it. No longer than the prompt, also
// where a long output is computed again after a preemption, but not so short that this takes for ever.
int64_t most_chunk_tokens(const PolicySpec& spec, int64_t prompt_tokens, int64_t chunk_tokens);
// A list that is cut after its prompt: the prompt may be longer than what is kept.
bool cuts_prompt(const PolicySpec& spec, int64_t prompt_tokens);
// Fresh blocks, at most, that a list whose prompt is not cut takes to overwrite slots of blocks that others may find or hold: its
// whole prompt's full ones, unless it ends before it is full.
int64_t overwrite_copies(const PolicySpec& spec, int64_t prompt_tokens, int64_t tokens, int32_t block_tokens);
// Blocks that a list of `tokens` tokens holds at most, from its prompt's end on. Windows let go of whole blocks only, after the chunk
// that saw them.
int64_t list_blocks(const PolicySpec& spec, int64_t tokens, int64_t chunk_tokens, int32_t block_tokens);
// Most blocks that `sequences` continuations of one prompt hold together, prompt and lists: what admission must have.
int64_t peak_blocks(const PolicySpec& spec, int64_t prompt_tokens, int64_t max_new_tokens, int64_t sequences,
                    int64_t chunk_tokens, int32_t block_tokens);

// The positions that a row at position `last` sees under a position-only policy (kKeepAll, kWindow, kStream), ascending. layer_window: the
// model's own window, 0 = none.
std::vector<int32_t> visible_positions(const PolicySpec& spec, int32_t last, int32_t layer_window);

// Most tokens a list keeps once it is full; 0 = no limit.
int32_t capacity(const PolicySpec& spec);
// Of a policy that slides: the last tokens that a row sees, itself included, beside its sinks. Else 0.
int32_t sliding_window(const PolicySpec& spec);

}  // namespace quire
