// quire's engine: open a model, submit requests, receive token events.
// All methods may be called from any thread. Events arrive on one delivery thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "quire/config.h"
#include "quire/request.h"
#include "quire/result.h"

namespace quire {

struct ModelCard {
  std::string name, architecture, dtype, device;
  int64_t num_parameters = 0;
  int32_t num_layers = 0, vocab_size = 0, max_context_tokens = 0;
  int64_t kv_bytes_per_token = 0;
  std::vector<int32_t> eos_token_ids;
  int32_t bos_token_id = -1;
  bool has_tokenizer = false, has_chat_template = false;
  // What its generation_config.json says of temperature, top_k, top_p, min_p, typical_p and repetition_penalty; else neutral.
  // submit() takes a request as it is: whoever makes one for a client starts from these.
  SamplingParams default_sampling;
};

// Of a tier of the prefix cache below the device. Failures are copies; a block is cached while it is copied too.
struct TierStats {
  int64_t hit_tokens_total = 0;  // prompt tokens found there and not above it
  int64_t blocks_written_total = 0, write_failures_total = 0, read_failures_total = 0, evictions_total = 0;
  int64_t blocks_total = 0, blocks_cached = 0;
};

// Of the running sequences under one KV policy, now. A block that several of them hold counts for each.
struct PolicyStats {
  std::string name;  // "none", "window", ..
  int32_t sequences = 0;
  int64_t slots = 0, blocks = 0;
};

// Counters since start and gauges of now. Monotonic names end in _total.
struct EngineStats {
  int64_t requests_submitted_total = 0, requests_finished_total = 0, requests_refused_total = 0,
          requests_cancelled_total = 0, requests_failed_total = 0;
  int64_t prompt_tokens_total = 0, generation_tokens_total = 0, cached_tokens_total = 0;
  int64_t prefix_queries_tokens_total = 0;  // prompt tokens that were looked for in the prefix cache
  int64_t shared_read_tokens_total =
      0;  // K and V not read again in decode steps, for other sequences of the step had read them
  int64_t host_sampled_steps_total =
      0;  // on a device with memory of its own: steps whose logits came to the host
  int64_t uploaded_bytes_total = 0;  // arrays and block tables of steps, to a device with memory of its own
  int64_t failed_without_logits_total = 0;  // requests to which the model gave nothing but NaN and -infinity
  int64_t preemptions_total = 0, copies_on_write_total = 0, evictions_total = 0, steps_total = 0;
  std::vector<PolicyStats> policies;        // every policy there is
  int64_t policy_dropped_tokens_total = 0;  // that KV policies took out of lists, for all layers and heads
  // K and V that decode steps' attention reads, by the lengths of lists; what sequences share and read once counts once. Layers with a
  // window of the model's own read less.
  int64_t attention_read_bytes_total = 0;
  // Copied between the device and the host's memory or a disk, from either tier; and from the host's memory to a disk.
  int64_t bytes_from_device_total = 0, bytes_to_device_total = 0, bytes_host_to_disk_total = 0;
  TierStats host, disk;
  int64_t disk_corrupt_blocks_total = 0;  // not what had been written there: lost, and computed again
  // "" = no disk tier was asked for | "on" | "off: REASON" (it could not be opened) | "not written: REASON" |
  // "hangs: N copies have not returned"
  std::string disk_kv_state;
  // Preempted sequences that kept their first blocks; times that one lost more of them to others while it waited.
  int64_t tail_drops_total = 0, heads_shortened_total = 0;
  // Requests that computed their prefix, since a tier below the device had not given it in time.
  int64_t tier_waits_given_up_total = 0;
  int64_t swap_outs_total = 0, swap_ins_total = 0,
          swap_failures_total = 0;  // of preempted sequences; failed copies
  int32_t requests_waiting = 0, sequences_running = 0, sequences_preempted = 0;
  int32_t blocks_total = 0, blocks_free = 0, blocks_held = 0, blocks_cached = 0;
  int32_t swap_blocks_total = 0, swap_blocks_held = 0;  // in host memory
  int32_t block_tokens = 0;
  int64_t kv_bytes_total = 0;
  double waste_percent = 0;         // of held blocks: slots reserved and not filled
  double host_us_per_step_p50 = 0;  // plan + commit
  double step_ms_p50 = 0;
  double device_idle_us_p50 = 0;  // between steps, where config.time_device_idle asks; 0: not timed
  double last_step_age_ms = 0;    // a wedged engine shows here
};

struct Submission {
  Request request;
  std::shared_ptr<TokenSink> sink;
};

class Engine {
 public:
  // Loads the model, sizes the cache, starts the threads. Errors name the file, tensor, field or limit at fault.
  static Result<std::unique_ptr<Engine>> open(const EngineConfig& config);
  virtual ~Engine() = default;

  // Queues a request. Refusals (bad field, prompt too long, queue full) are returned, not delivered.
  virtual Result<RequestId> submit(Request request, std::shared_ptr<TokenSink> sink) = 0;
  // The same for several at once, which no step sees apart. If one of them is refused all are.
  virtual Result<std::vector<RequestId>> submit_together(std::vector<Submission> batch) = 0;
  // Ends a request with kCancelled; its blocks are free within one step. Unknown ids are ignored.
  virtual void abort(RequestId id) = 0;
  // Stops running a request's sequences until resumed: a reader that does not keep up holds no step.
  virtual void set_paused(RequestId id, bool paused) = 0;
  // kFailedPrecondition: no tokenizer, or no chat template; kInvalidArgument: no UTF-8, an unknown id, what the template raises.
  virtual Result<std::vector<int32_t>> tokenize(const std::string& text, bool add_special_tokens,
                                                bool special_as_text) = 0;
  virtual Result<std::string> detokenize(const std::vector<int32_t>& token_ids, bool skip_special_tokens) = 0;
  virtual Result<std::string> render_chat(const std::vector<ChatMessage>& messages) = 0;

  virtual ModelCard model() const = 0;
  virtual EngineStats stats() const = 0;
  virtual const EngineConfig& config() const = 0;  // every 0 / "auto" resolved

  // Refuses new requests (kUnavailable), waits up to timeout_ms for the running ones, cancels the rest.
  virtual void drain(int64_t timeout_ms) = 0;
};

}  // namespace quire
