#include "decoding_state.h"

#include "checks.h"

#define D3LLM_CHECK_SETTING(type, name) {#name, settings.name, sizeof(type)},
#define D3LLM_CHECK_PROGRESS(type, name) {#name, progress.name, sizeof(type)},

namespace d3llm {

d3llm_status check_state(const char* launcher, const d3llm_settings& settings, const d3llm_progress& progress) {
  if (auto status = check_pointers(launcher, {D3LLM_SETTINGS(D3LLM_CHECK_SETTING)})) return status;
  return check_pointers(launcher, {D3LLM_PROGRESS(D3LLM_CHECK_PROGRESS)});
}

}  // namespace d3llm
