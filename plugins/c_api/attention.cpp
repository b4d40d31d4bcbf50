// C launchers of attention: checks, then the kernels.
#include "kernels/attention.h"

#include <cinttypes>
#include <cstdint>

#include "status.h"

namespace d3llm {
namespace {

struct NamedPointer {
  const char* name;
  const void* value;
  unsigned alignment;  // bytes
};

d3llm_status check_pointers(const d3llm_attention_params& p) {
  const NamedPointer pointers[] = {{"qkv", p.qkv, 16},
                                   {"kv_cache", p.kv_cache, 16},
                                   {"out", p.out, 16},
                                   {"cos", p.cos, 16},
                                   {"sin", p.sin, 16},
                                   {"positions", p.positions, 8},
                                   {"cu_window", p.cu_window, 8},
                                   {"kv_lengths", p.kv_lengths, 8},
                                   {"slots", p.slots, 8}};
  for (const NamedPointer& pointer : pointers) {
    if (pointer.value == nullptr) return invalid("attention: %s is NULL", pointer.name);
    if (reinterpret_cast<uintptr_t>(pointer.value) % pointer.alignment != 0) {
      return invalid("attention: %s is not aligned to %u bytes", pointer.name, pointer.alignment);
    }
  }
  return D3LLM_SUCCESS;
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
  constexpr int64_t kMost = 1 << 30;
  if (p.tokens < 0 || p.tokens > kMost) {
    return invalid("attention: tokens is %" PRId64 "; allowed: 0 to %" PRId64, p.tokens, kMost);
  }
  if (p.batch < 0 || p.batch > kMost) {
    return invalid("attention: batch is %" PRId64 "; allowed: 0 to %" PRId64, p.batch, kMost);
  }
  if (p.num_slots < 1) return invalid("attention: num_slots is %" PRId64 "; allowed: 1 or more", p.num_slots);
  if (p.max_seq_len < 1 || p.max_seq_len > kMost) {
    return invalid("attention: max_seq_len is %" PRId64 "; allowed: 1 to %" PRId64, p.max_seq_len, kMost);
  }
  return D3LLM_SUCCESS;
}

d3llm_status check(const d3llm_attention_params* params) {
  if (params == nullptr) return invalid("attention: params is NULL");
  if (params->struct_size != sizeof(*params)) {
    return invalid("attention: struct_size is %zu; this library's is %zu", params->struct_size, sizeof(*params));
  }
  if (auto status = check_sizes(*params)) return status;
  if (auto status = check_heads(*params)) return status;
  return params->tokens == 0 ? D3LLM_SUCCESS : check_pointers(*params);
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
