// C launchers of attention: checks, then the kernels.
#include "kernels/attention.h"

#include "checks.h"

namespace d3llm {
namespace {

d3llm_status check_arrays(const d3llm_attention_params& p) {
  return check_pointers("attention", {{"qkv", p.qkv, 16},
                                      {"kv_cache", p.kv_cache, 16},
                                      {"out", p.out, 16},
                                      {"cos", p.cos, 16},
                                      {"sin", p.sin, 16},
                                      {"out_scale", p.out_scale, 4, false},
                                      {"positions", p.positions, 8},
                                      {"cu_window", p.cu_window, 8},
                                      {"kv_lengths", p.kv_lengths, 8},
                                      {"slots", p.slots, 8}});
}

d3llm_status check_heads(const d3llm_attention_params& p) {
  if (p.head_dim != 32 && p.head_dim != 64 && p.head_dim != 128) {
    return invalid("attention: head_dim is %d; allowed: 32, 64, 128", p.head_dim);
  }
  if (p.num_kv_heads < 1 || p.num_heads < 1 || p.num_heads % p.num_kv_heads != 0 || p.num_heads > 65535) {
    return invalid(
        "attention: num_heads is %d and num_kv_heads %d; allowed: num_heads up to 65535, a multiple of num_kv_heads",
        p.num_heads, p.num_kv_heads);
  }
  if (p.dtype != D3LLM_FLOAT16 && p.dtype != D3LLM_BFLOAT16) {
    return invalid("attention: dtype is %d; allowed: %d (float16), %d (bfloat16)", p.dtype, D3LLM_FLOAT16,
                   D3LLM_BFLOAT16);
  }
  return D3LLM_SUCCESS;
}

d3llm_status check_sizes(const d3llm_attention_params& p) {
  if (auto status = check_size("attention", "tokens", p.tokens, 0, kMostRows)) return status;
  if (auto status = check_size("attention", "batch", p.batch, 0, kMostRows)) return status;
  if (auto status = check_size("attention", "num_slots", p.num_slots, 1, kMostRows)) return status;
  return check_size("attention", "max_seq_len", p.max_seq_len, 1, kMostRows);
}

d3llm_status check(const d3llm_attention_params* params) {
  if (auto status = check_struct("attention", params)) return status;
  if (auto status = check_sizes(*params)) return status;
  if (auto status = check_heads(*params)) return status;
  return params->tokens == 0 ? D3LLM_SUCCESS : check_arrays(*params);
}

}  // namespace
}  // namespace d3llm

extern "C" d3llm_status d3llm_write_kv(const d3llm_attention_params* params, void* stream) {
  if (auto status = d3llm::check(params)) return status;
  if (params->tokens == 0) return D3LLM_SUCCESS;
  return d3llm::from_cuda("write_kv", d3llm::launch_write_kv(*params, static_cast<cudaStream_t>(stream)));
}

extern "C" d3llm_status d3llm_attend(const d3llm_attention_params* params, void* stream) {
  if (auto status = d3llm::check(params)) return status;
  if (params->tokens == 0) return D3LLM_SUCCESS;
  return d3llm::from_cuda("attend", d3llm::launch_attend(*params, false, static_cast<cudaStream_t>(stream)));
}

extern "C" d3llm_status d3llm_window_attention(const d3llm_attention_params* params, void* stream) {
  if (auto status = d3llm_write_kv(params, stream)) return status;
  if (params->tokens == 0) return D3LLM_SUCCESS;
  return d3llm::from_cuda("attend", d3llm::launch_attend(*params, true, static_cast<cudaStream_t>(stream)));
}
