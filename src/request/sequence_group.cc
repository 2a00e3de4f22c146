#include "src/request/sequence_group.h"

#include <algorithm>

#include "src/base/random.h"

namespace quire {

uint64_t seed_of_sample(uint64_t seed, int32_t index) {
  return index == 0 ? seed : Random(Random(seed).next() + static_cast<uint64_t>(index)).next();
}

namespace {

std::vector<TokenId> ending_ids(const SamplingParams& sampling, const std::vector<TokenId>& eos) {
  std::vector<TokenId> ids = sampling.stop_token_ids;
  if (!sampling.ignore_eos) ids.insert(ids.end(), eos.begin(), eos.end());
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

}  // namespace

int32_t SequenceGroup::slots_wanted() const {
  if (is_beam || !forked) return num_slots();
  return static_cast<int32_t>(std::ranges::count_if(sequences, [](const auto& s) { return !s->finished(); }));
}

int32_t SequenceGroup::slots_in_use() const {
  if (is_beam || !forked) return num_slots();
  return static_cast<int32_t>(std::ranges::count_if(sequences, [](const auto& s) { return s->running(); }));
}

bool SequenceGroup::some_run() const {
  return std::ranges::any_of(sequences, [](const auto& s) { return s->running(); });
}

std::unique_ptr<SequenceGroup> make_group(GroupSetup setup) {
  auto group = std::make_unique<SequenceGroup>();
  group->request = setup.request;
  group->end_ids = ending_ids(*setup.sampling, setup.eos_token_ids);
  group->eos_token_ids = std::move(setup.eos_token_ids);
  group->tenant = std::move(setup.tenant);
  group->priority = setup.priority;
  group->order = setup.order;
  group->deadline_us = setup.deadline_us;
  group->ns = setup.ns;
  group->share_prefix = setup.share_prefix;
  group->policy = setup.policy;
  group->traits = traits(setup.policy);
  group->dump_kv = setup.dump_kv;
  group->is_beam = setup.sampling->beam_width > 0;
  group->prompt_reported = setup.sampling->prompt_logprobs < 0;
  group->retention = setup.retention;
  group->times.arrival_us = setup.arrival_us;
  group->max_total_tokens = static_cast<int32_t>(setup.prompt.size()) + setup.sampling->max_tokens;
  group->next_index = 1;

  auto first = std::make_unique<Sequence>();
  first->id = setup.first_sequence;
  first->group = group.get();
  first->seed = seed_of_sample(setup.seed, 0);
  first->num_prompt_tokens = static_cast<int32_t>(setup.prompt.size());
  first->tokens = std::move(setup.prompt);
  group->sequences.push_back(std::move(first));
  group->sampling = std::move(setup.sampling);
  return group;
}

}  // namespace quire
