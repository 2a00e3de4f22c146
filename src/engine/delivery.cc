#include "src/engine/delivery.h"

#include <algorithm>
#include <functional>

#include "src/base/check.h"
#include "src/base/log.h"

namespace quire {
namespace {

// Whether a stop text that the last of so many tokens completes ends them.
bool may_stop(const SamplingParams& sampling, int32_t num_tokens) {
  return num_tokens > sampling.min_tokens &&
         num_tokens >= static_cast<int32_t>(sampling.forced_token_ids.size());
}

bool is_collected(const DeliveryRequest& r) {
  // best_of is ranked and beams are found at the end; nothing of them can be streamed.
  return !r.stream || r.sampling->beam_width > 0 || r.sampling->best_of > r.sampling->n;
}

bool is_ranked(const SamplingParams& s) {
  return s.beam_width == 0 && s.best_of > s.n;
}

}  // namespace

Delivery::Delivery(const TextFront& text, std::vector<int32_t> layer_windows, Hooks hooks)
    : text_(text), layer_windows_(std::move(layer_windows)), hooks_(std::move(hooks)) {}

void Delivery::open(DeliveryRequest request) {
  const RequestId id = request.request;
  Open open;
  open.request = std::move(request);
  open.streams[0].text = std::move(open.request.first_text);
  const bool is_new = requests_.emplace(id, std::move(open)).second;
  check(is_new, "a request is opened for delivery once");
}

Delivery::Stream& Delivery::stream_of(Open& open, int32_t index) {
  const auto [it, is_new] = open.streams.try_emplace(index);
  if (is_new) it->second.text = text_.stream(*open.request.sampling, open.request.prompt);
  return it->second;
}

void Delivery::deliver(Outcome outcome) {
  const auto find = [this](RequestId id) -> Open& {
    const auto it = requests_.find(id);
    check(it != requests_.end(), "invariant 9: an outcome belongs to a request that has not ended");
    return it->second;
  };
  for (PromptOutput& p : outcome.prompts) find(p.request).prompt_logprobs = std::move(p.logprobs);
  for (const SequenceEnd& e : outcome.ends) {
    Stream& stream = stream_of(find(e.request), e.index);
    stream.ends_now = true;
    stream.ends_by_id = e.stop_token && e.tokens.empty();
  }
  // In two steps: arguments are made in any order.
  for (TokenOutput& t : outcome.tokens) {
    Open& open = find(t.request);
    take_token(open, std::move(t));
  }
  for (SequenceEnd& e : outcome.ends) {
    Open& open = find(e.request);
    take_end(open, std::move(e));
  }
  for (const RequestEnd& e : outcome.request_ends) take_request_end(find(e.request), e);
}

void Delivery::take_token(Open& open, TokenOutput token) {
  Stream& stream = stream_of(open, token.index);
  if (stream.done) return;  // computed past a stop text
  const bool silent = stream.ends_by_id && !open.request.sampling->include_stop;
  add_token(open, stream, token.token, token.logprob, std::move(token.top), silent);
  if (stream.done) hooks_.stop_sequence(open.request.request, token.index);
  if (!stream.ends_now) flush(open, token.index, stream);
}

void Delivery::add_token(const Open& open, Stream& stream, int32_t id, float logprob,
                         std::vector<std::pair<int32_t, float>> top, bool silent) {
  const SamplingParams& sampling = *open.request.sampling;
  TokenEvent& event = stream.event;
  event.token_ids.push_back(id);
  stream.sum_logprob += static_cast<double>(logprob);
  ++stream.num_tokens;
  if (sampling.logprobs >= 0) {
    if (top.size() > static_cast<size_t>(sampling.logprobs)) top.resize(sampling.logprobs);
    event.logprobs.push_back({id, logprob, std::move(top)});
  }
  if (stream.text == nullptr || silent) return;
  TextStream::Piece piece = stream.text->push(id, may_stop(sampling, stream.num_tokens));
  event.text += piece.text;
  if (!piece.stop) return;
  event.stop_text = std::move(*piece.stop);
  event.finish = FinishReason::kStop;
  stream.done = true;
}

void Delivery::take_end(Open& open, SequenceEnd end) {
  Stream& stream = stream_of(open, end.index);
  stream.confirmed = true;
  if (open.request.dump_kv)
    stream.event.kv_dump =
        end.kv_dump.empty() ? dump(open.request.policy, end.num_computed) : std::move(end.kv_dump);
  if (!stream.done) {
    for (size_t i = 0; i < end.tokens.size(); ++i) {
      TokenLogprob& l = end.logprobs[i];
      const bool silent =
          end.stop_token && i + 1 == end.tokens.size() && !open.request.sampling->include_stop;
      add_token(open, stream, l.token_id, l.logprob, std::move(l.top), silent);
    }
    if (stream.text != nullptr) stream.event.text += stream.text->flush();
    stream.event.finish = end.finish;
    stream.event.stop_token_id = end.stop_token;
    stream.event.error = std::move(end.error);
    stream.done = true;
  }
  flush(open, end.index, stream);
}

// Sends what a stream has, unless it is collected until its end, or is its request's last end (see
// delivery.h).
void Delivery::flush(Open& open, int32_t index, Stream& stream) {
  if (stream.sent || is_ranked(*open.request.sampling) || open.request.sampling->beam_width > 0) return;
  if (stream.done && !stream.confirmed && open.request.dump_kv) return;  // its end brings the dump
  if (!stream.done && (is_collected(open.request) || stream.event.token_ids.empty())) return;
  const auto unfinished = [](const auto& entry) { return !entry.second.sent; };
  const auto left =
      static_cast<int32_t>(std::count_if(open.streams.begin(), open.streams.end(), unfinished)) +
      open.request.sampling->num_sequences() - static_cast<int32_t>(open.streams.size());
  if (stream.done && left == 1) return;
  stream.sent = stream.done;
  TokenEvent event = std::exchange(stream.event, {});
  event.index = index;
  send(open, std::move(event));
}

// The sequences to report at the end, best first where they are ranked: by mean logprob (best_of).
std::vector<Delivery::Report> Delivery::final_reports(const Open& open, FinishReason finish) const {
  std::vector<Report> reports;
  for (const auto& [index, stream] : open.streams)
    if (!stream.sent) reports.push_back({index, index});
  const SamplingParams& sampling = *open.request.sampling;
  // A request that was cut off says so with its last report, though samples of it had come to their ends before.
  const bool cut_off = finish != FinishReason::kStop && finish != FinishReason::kLength;
  const auto comes_last = [&](const Report& r) {
    return cut_off && open.streams.at(r.stream).event.finish == finish;
  };
  if (is_ranked(sampling)) {
    const auto mean = [&](const Report& r) {
      const Stream& s = open.streams.at(r.stream);
      return s.num_tokens == 0 ? 0.0 : s.sum_logprob / s.num_tokens;
    };
    std::ranges::stable_sort(reports, std::greater(), mean);
    const auto end = reports.begin() + std::min<ptrdiff_t>(std::ssize(reports), sampling.n);
    const auto said = std::find_if(reports.begin(), reports.end(), comes_last);
    if (said != reports.end() && said >= end) std::iter_swap(end - 1, said);
    reports.erase(end, reports.end());
    for (size_t i = 0; i < reports.size(); ++i) reports[i].index = static_cast<int32_t>(i);
  }
  std::ranges::stable_partition(reports, std::not_fn(comes_last));
  return reports;
}

void Delivery::take_request_end(Open& open, const RequestEnd& end) {
  const RequestId id = open.request.request;
  const std::vector<Report> reports = final_reports(open, end.finish);
  check(!reports.empty(), "invariant 9: a request's last sequence ends with it");
  int32_t completion_tokens = 0;
  for (const auto& [index, stream] : open.streams) completion_tokens += stream.num_tokens;
  for (const Report& report : reports) {
    TokenEvent event = std::move(open.streams.at(report.stream).event);
    event.index = report.index;
    event.last = &report == &reports.back();
    if (event.last) {
      event.usage = {end.prompt_tokens, completion_tokens, end.cached_tokens};
      event.kv = end.kv;
      event.timings = end.timings;
    }
    send(open, std::move(event));
  }
  log_line(LogLevel::kDebug, "request_end",  // who asked has a line of its own about what became of it
           {{"id", id},
            {"client_id", open.request.client_request_id},
            {"finish", to_string(end.finish)},
            {"prompt_tokens", end.prompt_tokens},
            {"cached_tokens", end.cached_tokens},
            {"completion_tokens", completion_tokens},
            {"first_token_ms", end.timings.first_token_ms},
            {"total_ms", end.timings.total_ms}});
  requests_.erase(id);
  hooks_.request_ended(id);
}

void Delivery::send(Open& open, TokenEvent event) {
  event.request = open.request.request;
  if (!open.started) {
    event.prompt_token_ids = open.request.prompt;
    event.prompt_logprobs = std::move(open.prompt_logprobs);
    open.started = true;
  }
  open.request.sink->on_event(event);
}

KvDump Delivery::dump(const PolicySpec& policy, int32_t num_computed) const {
  KvDump layers;
  for (const int32_t window : layer_windows_)
    layers.push_back({visible_positions(policy, num_computed - 1, window)});
  return layers;
}

}  // namespace quire
