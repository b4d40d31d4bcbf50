// C launcher of commit: checks, then the kernel.
#include "kernels/commit.h"

#include "checks.h"
#include "decoding_state.h"

namespace d3llm {
namespace {

d3llm_status check_sizes(const d3llm_commit_params& p) {
  if (auto status = check_size("commit", "batch", p.batch, 0, kMostRows)) return status;
  if (auto status = check_size("commit", "rows", p.rows, 0, kMostRows)) return status;
  if (auto status = check_size("commit", "num_slots", p.num_slots, 1, kMostRows)) return status;
  if (auto status = check_size("commit", "max_seq_len", p.max_seq_len, 1, kMostRows)) return status;
  return check_size("commit", "width", p.width, 1, p.max_seq_len);
}

d3llm_status check_rows(const d3llm_commit_params& p) {
  if (p.rows == 0) return D3LLM_SUCCESS;
  return check_pointers("commit", {{"chosen", p.chosen, 8},
                                   {"greedy", p.greedy, 8},
                                   {"sampled", p.sampled, 8},
                                   {"entropy", p.entropy, 4},
                                   {"confidence", p.confidence, 4},
                                   {"logprob", p.logprob, 4},
                                   {"greedy_logprob", p.greedy_logprob, 4}});
}

d3llm_status check(const d3llm_commit_params* params) {
  if (auto status = check_struct("commit", params)) return status;
  if (auto status = check_sizes(*params)) return status;
  if (params->family != 0 && params->family != 1) {
    return invalid("commit: family is %d; allowed: 0 (LLaDA), 1 (Dream)", params->family);
  }
  if (params->batch == 0) return D3LLM_SUCCESS;
  if (auto status = check_state("commit", params->settings, params->progress)) return status;
  if (auto status = check_pointers("commit", {{"slots", params->slots, 8}, {"summary", params->summary, 8}}))
    return status;
  return check_rows(*params);
}

}  // namespace
}  // namespace d3llm

extern "C" d3llm_status d3llm_commit(const d3llm_commit_params* params, void* stream) {
  if (auto status = d3llm::check(params)) return status;
  if (params->batch == 0) return D3LLM_SUCCESS;
  return d3llm::from_cuda("commit", d3llm::launch_commit(*params, static_cast<cudaStream_t>(stream)));
}
