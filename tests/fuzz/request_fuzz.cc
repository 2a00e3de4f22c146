// A request as a jsonl line and as a message of the wire: mapped, or refused with a message. Input: 'j' and JSON, or 'p' and protobuf.
#include <iterator>

#include "quire/sampling_params.h"
#include "server/json_message.h"
#include "server/list_counts.h"
#include "server/request_mapping.h"
#include "src/base/check.h"
#include "tests/fuzz/fuzz_target.h"

namespace quire::fuzz {

const char* const kCorpus = "request";

namespace {

constexpr int32_t kVocab = 4096;

void map(const v1::GenerateRequest& wire) {
  const Result<Request> request = server::to_request(wire, kVocab);
  if (!request) {
    check(!request.error().message.empty(), "a refusal says why");
    return;
  }
  const Status valid = validate(request->sampling, {.vocab_size = kVocab});
  check(valid || !valid.error().message.empty(), "a refusal says why");
}

}  // namespace

void fuzz_one(std::string_view input) {
  if (input.empty()) return;
  const char kind = input[0];
  input.remove_prefix(1);
  if (kind == 'p') {
    v1::GenerateRequest wire;
    const server::WireRequest seen = server::look_at_generate(input);
    if (!wire.ParseFromArray(input.data(), static_cast<int>(input.size()))) return;
    const v1::SamplingParams& sampling = wire.sampling();
    check(seen.request_id == wire.request_id() && seen.lists.bad_words == sampling.bad_words_size() &&
              seen.lists.stop == sampling.stop_size() &&
              seen.lists.logit_bias >= std::ssize(sampling.logit_bias()),
          "what is counted before is what is parsed");
    map(wire);
    return;
  }
  const Result<v1::GenerateRequest> wire = server::request_from_json(input);
  if (wire)
    map(*wire);
  else
    check(!wire.error().message.empty(), "a refusal says why");
}

}  // namespace quire::fuzz
