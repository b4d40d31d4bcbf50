// Checks of one argument each, which name the launcher and the argument.
#pragma once

#include <cinttypes>
#include <cstdint>

#include "status.h"

namespace d3llm {

constexpr int64_t kMostRows = 1 << 30;

struct NamedPointer {
  const char* name;
  const void* value;
  unsigned alignment;  // bytes
  bool required = true;
};

inline d3llm_status check_pointer(const char* launcher, const NamedPointer& pointer) {
  if (pointer.value == nullptr && pointer.required) return invalid("%s: %s is NULL", launcher, pointer.name);
  if (reinterpret_cast<uintptr_t>(pointer.value) % pointer.alignment == 0) return D3LLM_SUCCESS;
  return invalid("%s: %s is not aligned to %u bytes", launcher, pointer.name, pointer.alignment);
}

template <size_t count>
d3llm_status check_pointers(const char* launcher, const NamedPointer (&pointers)[count]) {
  for (const NamedPointer& pointer : pointers) {
    if (auto status = check_pointer(launcher, pointer)) return status;
  }
  return D3LLM_SUCCESS;
}

inline d3llm_status check_size(const char* launcher, const char* name, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return D3LLM_SUCCESS;
  return invalid("%s: %s is %" PRId64 "; allowed: %" PRId64 " to %" PRId64, launcher, name, value, least, most);
}

template <typename Params>
d3llm_status check_struct(const char* launcher, const Params* params) {
  if (params == nullptr) return invalid("%s: params is NULL", launcher);
  if (params->struct_size == sizeof(*params)) return D3LLM_SUCCESS;
  return invalid("%s: struct_size is %zu; this library's is %zu", launcher, params->struct_size, sizeof(*params));
}

}  // namespace d3llm
