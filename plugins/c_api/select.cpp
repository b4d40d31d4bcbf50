// C launcher of select: checks, then the kernel.
#include "kernels/select.h"

#include "checks.h"

namespace d3llm {
namespace {

constexpr const char* kName = "select";
constexpr int64_t kMostVocab = 1 << 22;  // masses of as many tokens add up in 64 bits

d3llm_status check_sizes(const d3llm_select_params& p) {
  if (auto status = check_size(kName, "rows", p.rows, 0, kMostRows)) return status;
  if (auto status = check_size(kName, "vocab_size", p.vocab_size, 2, kMostVocab)) return status;
  if (auto status = check_size(kName, "row_stride", p.row_stride, p.vocab_size, INT64_MAX)) return status;
  return check_size(kName, "mask_id", p.mask_id, 0, p.vocab_size - 1);
}

d3llm_status check_sampling(const d3llm_select_params& p) {
  const bool any = p.temperature != nullptr || p.seed != nullptr || p.position != nullptr || p.number != nullptr;
  const NamedPointer keys[] = {{"temperature", p.temperature, 4, any},
                               {"seed", p.seed, 8, any},
                               {"position", p.position, 8, any},
                               {"number", p.number, 8, any},
                               {"top_k", p.top_k, 8, p.top_p != nullptr},
                               {"top_p", p.top_p, 8, p.top_k != nullptr},
                               {"barred", p.barred, 8, false}};
  return check_pointers(kName, keys);
}

d3llm_status check(const d3llm_select_params* params) {
  if (auto status = check_struct(kName, params)) return status;
  const d3llm_select_params& p = *params;
  if (auto status = check_sizes(p)) return status;
  if (p.dtype != D3LLM_FLOAT32 && p.dtype != D3LLM_FLOAT16 && p.dtype != D3LLM_BFLOAT16) {
    return invalid("select: dtype is %d; allowed: %d (float32), %d (float16), %d (bfloat16)", p.dtype, D3LLM_FLOAT32,
                   D3LLM_FLOAT16, D3LLM_BFLOAT16);
  }
  if (p.rows == 0) return D3LLM_SUCCESS;
  const NamedPointer pointers[] = {{"logits", p.logits, p.dtype == D3LLM_FLOAT32 ? 4u : 2u},
                                   {"entropy_eps", p.entropy_eps, 4},
                                   {"greedy", p.greedy, 8},
                                   {"sampled", p.sampled, 8},
                                   {"entropy", p.entropy, 4},
                                   {"confidence", p.confidence, 4},
                                   {"logprob", p.logprob, 4},
                                   {"greedy_logprob", p.greedy_logprob, 4}};
  if (auto status = check_pointers(kName, pointers)) return status;
  return check_sampling(p);
}

}  // namespace
}  // namespace d3llm

extern "C" d3llm_status d3llm_select(const d3llm_select_params* params, void* stream) {
  if (auto status = d3llm::check(params)) return status;
  if (params->rows == 0) return D3LLM_SUCCESS;
  return d3llm::from_cuda("select", d3llm::launch_select(*params, static_cast<cudaStream_t>(stream)));
}
