// Turns outcomes into a client's events: text from ids, stop texts, logprobs, the best n of best_of, and
// exactly one last event per request. Delivery thread only.
//
// A sequence's end is told at once while others of its request go on; the end of the last one is held until
// the scheduler has confirmed the request's (one step at most, when a stop text ended it), so that usage
// comes with it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "quire/request.h"
#include "src/engine/text_front.h"
#include "src/policy/policy_spec.h"
#include "src/schedule/outcome.h"

namespace quire {

// What delivery must know of a request, given before its first outcome.
struct DeliveryRequest {
  RequestId request = 0;
  std::string client_request_id;
  std::shared_ptr<TokenSink> sink;
  std::shared_ptr<const SamplingParams> sampling;
  std::vector<int32_t> prompt;
  std::unique_ptr<TextStream> first_text;  // of sequence 0; nullptr: ids only
  bool stream = true;
  bool dump_kv = false;
  PolicySpec policy;
};

class Delivery {
 public:
  struct Hooks {
    std::function<void(RequestId, int32_t)> stop_sequence;  // a stop text was met
    std::function<void(RequestId)> request_ended;           // after its last event
  };
  // layer_windows: attention window of each layer, 0 = all; for dumps.
  Delivery(const TextFront& text, std::vector<int32_t> layer_windows, Hooks hooks);

  void open(DeliveryRequest request);
  void deliver(Outcome outcome);
  bool empty() const { return requests_.empty(); }

 private:
  struct Stream {
    std::unique_ptr<TextStream> text;
    TokenEvent event;        // what has not been sent
    int32_t num_tokens = 0;  // delivered or about to be
    double sum_logprob = 0;
    bool ends_now = false;    // its end is in the outcome at hand: token and end go out as one event
    bool ends_by_id = false;  // the token that comes next is the one that ends it
    bool done = false;        // has its finish reason; later tokens are dropped
    bool confirmed = false;   // the scheduler has ended it too
    bool sent = false;        // its finishing event is out
  };
  struct Open {
    DeliveryRequest request;
    std::map<int32_t, Stream> streams;
    std::vector<TokenLogprob> prompt_logprobs;
    bool started = false;  // an event was sent
  };
  Stream& stream_of(Open& open, int32_t index);
  void take_token(Open& open, TokenOutput token);
  void add_token(const Open& open, Stream& stream, int32_t id, float logprob,
                 std::vector<std::pair<int32_t, float>> top, bool silent);
  void take_end(Open& open, SequenceEnd end);
  void flush(Open& open, int32_t index, Stream& stream);
  void take_request_end(Open& open, const RequestEnd& end);
  struct Report {
    int32_t stream = 0, index = 0;  // whose, and as which it is told
  };
  std::vector<Report> final_reports(const Open& open, FinishReason finish) const;
  void send(Open& open, TokenEvent event);
  KvDump dump(const PolicySpec& policy, int32_t num_computed) const;

  const TextFront& text_;
  std::vector<int32_t> layer_windows_;
  Hooks hooks_;
  std::unordered_map<RequestId, Open> requests_;
};

}  // namespace quire
