// C launcher of gather: checks, then the kernel.
#include "kernels/gather.h"

#include "checks.h"
#include "decoding_state.h"

namespace d3llm {
namespace {

d3llm_status check_sizes(const d3llm_gather_params& p) {
  if (auto status = check_size("gather", "batch", p.batch, 0, kMostRows - 1)) return status;
  if (auto status = check_size("gather", "num_slots", p.num_slots, 1, kMostRows)) return status;
  if (auto status = check_size("gather", "max_seq_len", p.max_seq_len, 1, kMostRows)) return status;
  if (auto status = check_size("gather", "width", p.width, 1, p.max_seq_len)) return status;
  if (auto status = check_size("gather", "tokens", p.tokens, 1, kMostRows)) return status;
  if (auto status = check_size("gather", "rows", p.rows, 1, kMostRows)) return status;
  return check_size("gather", "shifted", p.shifted, 0, 1);
}

d3llm_status check_arrays(const d3llm_gather_params& p) {
  return check_pointers("gather", {{"slots", p.slots, 8},
                                   {"token_ids", p.token_ids, 8},
                                   {"positions", p.positions, 8},
                                   {"cu_window", p.cu_window, 8},
                                   {"kv_lengths", p.kv_lengths, 8},
                                   {"logit_rows", p.logit_rows, 8},
                                   {"chosen", p.chosen, 8},
                                   {"entropy_eps", p.entropy_eps, 4},
                                   {"temperature", p.temperature, 4},
                                   {"seed", p.seed, 8},
                                   {"position", p.position, 8},
                                   {"number", p.number, 8},
                                   {"top_k", p.top_k, 8},
                                   {"top_p", p.top_p, 8},
                                   {"barred", p.barred, 8}});
}

}  // namespace
}  // namespace d3llm

extern "C" d3llm_status d3llm_gather(const d3llm_gather_params* params, void* stream) {
  using namespace d3llm;
  if (auto status = check_struct("gather", params)) return status;
  if (auto status = check_sizes(*params)) return status;
  if (auto status = check_state("gather", params->settings, params->progress)) return status;
  if (auto status = check_arrays(*params)) return status;
  return from_cuda("gather", launch_gather(*params, static_cast<cudaStream_t>(stream)));
}
