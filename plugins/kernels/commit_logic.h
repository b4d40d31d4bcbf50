// The bookkeeping of one step for one entry of its batch, written once for thread blocks and for teams of host threads.
//
// The rules are those of d3llm_trt/runtime/decoding, whose tensor code is the reference.
#pragma once

#include "commit_accept.h"
#include "commit_plan.h"

namespace d3llm {
namespace commit {

// Whether a slot exists and no earlier entry of the batch names it.
template <class Team>
D3LLM_DEVICE bool is_first_of_slot(Team& team, const d3llm_commit_params& params, int entry) {
  const int64_t slot = params.slots[entry];
  Sum earlier;
  for (int i = team.rank(); i < entry; i += team.size()) earlier.value += params.slots[i] == slot;
  return team.reduce(earlier).value == 0 && slot >= 0 && slot < params.num_slots;
}

template <class Team>
D3LLM_DEVICE Candidates candidates_of(Team& team, const d3llm_commit_params& params, int entry) {
  const int64_t base = entry * params.width;
  const Bounds rows = rows_between(team, params.chosen, static_cast<int>(params.rows), base, base + params.width);
  return {params.chosen,  params.greedy,         params.sampled, params.entropy, params.confidence,
          params.logprob, params.greedy_logprob, base,           rows.begin,     rows.end};
}

// `counters` are team.size() + 1 numbers that the team shares.
template <class Team>
D3LLM_DEVICE void step(Team& team, const d3llm_commit_params& params, int entry, int* counters) {
  int64_t* summary = params.summary + 5 * static_cast<int64_t>(entry);
  if (!is_first_of_slot(team, params, entry)) {
    for (int i = team.rank(); i < 5; i += team.size()) summary[i] = 0;
    return;
  }
  const int64_t slot = params.slots[entry];
  Request request;
  read_settings(params, slot, request);
  read_progress(params, slot, request);
  accept(team, request, candidates_of(team, params, entry));
  const int num_candidates = plan(team, request, static_cast<int>(params.width), counters);
  if (team.rank() != 0) return;
  store_progress(params, slot, request);
  store_summary(summary, request, num_candidates);
}

}  // namespace commit
}  // namespace d3llm
