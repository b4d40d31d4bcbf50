/* Parts of the select kernel on the CPU, for tests only: the same source as the kernel's, compiled without CUDA. */
#ifndef D3LLM_SELECT_HOST_H
#define D3LLM_SELECT_HOST_H

#include "d3llm_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* greedy and sampled of d3llm_select over host pointers to float32, by a team of `threads` threads for each row, one
 * row after the other. Arguments are trusted, and all but barred are given. */
D3LLM_API d3llm_status d3llm_select_host(const d3llm_select_params* params, int32_t threads);

/* The Gumbel noise of `count` random words. */
D3LLM_API void d3llm_gumbel_host(const int64_t* words, int64_t count, float* noise);

#ifdef __cplusplus
}
#endif

#endif
