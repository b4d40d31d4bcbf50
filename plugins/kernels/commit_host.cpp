// The commit logic on the CPU.
#include "commit_host.h"

#include "commit_logic.h"
#include "host_team.h"

extern "C" d3llm_status d3llm_commit_host(const d3llm_commit_params* params, int32_t threads) {
  if (params->struct_size != sizeof(d3llm_commit_params) || threads < 1) return D3LLM_INVALID_ARGUMENT;
  std::vector<int> counters(threads + 1);
  d3llm::run_team(threads, [&](d3llm::HostTeam& team) {
    for (int entry = 0; entry < params->batch; ++entry) d3llm::commit::step(team, *params, entry, counters.data());
  });
  return D3LLM_SUCCESS;
}
