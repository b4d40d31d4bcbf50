#include "status.h"

#include <cstdarg>
#include <cstdio>

#ifndef D3LLM_VERSION
#error "the build defines D3LLM_VERSION"
#endif

namespace {

thread_local char last_error[512] = "";

}  // namespace

extern "C" const char* d3llm_version(void) { return D3LLM_VERSION; }

extern "C" const char* d3llm_last_error(void) { return last_error; }

namespace d3llm {

d3llm_status invalid(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error, sizeof(last_error), format, arguments);
  va_end(arguments);
  return D3LLM_INVALID_ARGUMENT;
}

d3llm_status from_cuda(const char* launcher, cudaError_t error) {
  if (error == cudaSuccess) return D3LLM_SUCCESS;
  cudaGetLastError();  // forgets it, or the next launcher would report it as its own
  std::snprintf(last_error, sizeof(last_error), "%s: %s", launcher, cudaGetErrorString(error));
  return D3LLM_CUDA_ERROR;
}

}  // namespace d3llm
