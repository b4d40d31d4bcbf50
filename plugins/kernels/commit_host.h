/* The commit kernel's logic on the CPU, for tests only: the same source as the kernel's, compiled without CUDA. */
#ifndef D3LLM_COMMIT_HOST_H
#define D3LLM_COMMIT_HOST_H

#include "d3llm_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* d3llm_commit over host pointers, done by a team of `threads` threads for each entry, one entry after the other.
 * Arguments are trusted. */
D3LLM_API d3llm_status d3llm_commit_host(const d3llm_commit_params* params, int32_t threads);

#ifdef __cplusplus
}
#endif

#endif
