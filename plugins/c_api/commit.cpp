// C launcher of commit: checks, then the kernel.
#include "kernels/commit.h"

#include <cinttypes>
#include <cstring>

#include "status.h"

namespace d3llm {
namespace {

struct Field {
  const char* name;
  unsigned size;  // bytes of an element
};

constexpr Field kSettings[] = {
    {"algorithm", 8}, {"prompt_length", 8}, {"length", 8}, {"block_size", 8}, {"num_blocks", 8}, {"eos_id", 8},
    {"threshold", 4}, {"by_quota", 1}, {"entropy_eps", 4}, {"block_add_threshold", 8}, {"decoded_token_threshold", 8},
    {"cached", 1}, {"cache_delay", 8}, {"refresh_interval", 8}, {"steps_per_block", 8}, {"temperature", 4},
    {"seed", 8}};
constexpr Field kProgress[] = {
    {"canvas", 8}, {"commit_steps", 8}, {"candidates", 1}, {"active", 1}, {"block_cached", 1}, {"done_pass", 8},
    {"opened", 8}, {"opened_pass", 8}, {"window_start", 8}, {"live_length", 8}, {"cache_length", 8}, {"passes", 8},
    {"done", 1}, {"failed", 1}};

d3llm_status check_pointer(const Field& field, const void* value) {
  if (value == nullptr) return invalid("commit: %s is NULL", field.name);
  if (reinterpret_cast<uintptr_t>(value) % field.size == 0) return D3LLM_SUCCESS;
  return invalid("commit: %s is not aligned to %u bytes", field.name, field.size);
}

// A struct that is nothing but pointers, one per field.
template <class Struct, size_t count>
d3llm_status check_fields(const Field (&fields)[count], const Struct& all) {
  static_assert(sizeof(Struct) == count * sizeof(void*), "a field without a name");
  const void* pointers[count];
  std::memcpy(pointers, &all, sizeof(all));
  for (size_t i = 0; i < count; ++i) {
    if (auto status = check_pointer(fields[i], pointers[i])) return status;
  }
  return D3LLM_SUCCESS;
}

d3llm_status check_rows(const d3llm_commit_params& p) {
  if (p.rows == 0) return D3LLM_SUCCESS;
  if (auto status = check_pointer({"chosen", 8}, p.chosen)) return status;
  if (auto status = check_pointer({"greedy", 8}, p.greedy)) return status;
  if (auto status = check_pointer({"sampled", 8}, p.sampled)) return status;
  if (auto status = check_pointer({"entropy", 4}, p.entropy)) return status;
  return check_pointer({"confidence", 4}, p.confidence);
}

d3llm_status check_sizes(const d3llm_commit_params& p) {
  constexpr int64_t kMost = 1 << 30;
  if (p.batch < 0 || p.batch > kMost) {
    return invalid("commit: batch is %" PRId64 "; allowed: 0 to %" PRId64, p.batch, kMost);
  }
  if (p.rows < 0 || p.rows > kMost) {
    return invalid("commit: rows is %" PRId64 "; allowed: 0 to %" PRId64, p.rows, kMost);
  }
  if (p.num_slots < 1) return invalid("commit: num_slots is %" PRId64 "; allowed: 1 or more", p.num_slots);
  if (p.max_seq_len < 1 || p.max_seq_len > kMost) {
    return invalid("commit: max_seq_len is %" PRId64 "; allowed: 1 to %" PRId64, p.max_seq_len, kMost);
  }
  if (p.width < 1 || p.width > p.max_seq_len) {
    return invalid("commit: width is %" PRId64 "; allowed: 1 to max_seq_len, %" PRId64, p.width, p.max_seq_len);
  }
  return D3LLM_SUCCESS;
}

d3llm_status check(const d3llm_commit_params* params) {
  if (params == nullptr) return invalid("commit: params is NULL");
  if (params->struct_size != sizeof(*params)) {
    return invalid("commit: struct_size is %zu; this library's is %zu", params->struct_size, sizeof(*params));
  }
  if (auto status = check_sizes(*params)) return status;
  if (params->family != 0 && params->family != 1) {
    return invalid("commit: family is %d; allowed: 0 (LLaDA), 1 (Dream)", params->family);
  }
  if (params->batch == 0) return D3LLM_SUCCESS;
  if (auto status = check_fields(kSettings, params->settings)) return status;
  if (auto status = check_fields(kProgress, params->progress)) return status;
  if (auto status = check_pointer({"slots", 8}, params->slots)) return status;
  if (auto status = check_pointer({"report", 8}, params->report)) return status;
  return check_rows(*params);
}

}  // namespace
}  // namespace d3llm

extern "C" d3llm_status d3llm_commit(const d3llm_commit_params* params, void* stream) {
  if (auto status = d3llm::check(params)) return status;
  if (params->batch == 0) return D3LLM_SUCCESS;
  return d3llm::from_cuda("commit", d3llm::launch_commit(*params, static_cast<cudaStream_t>(stream)));
}
