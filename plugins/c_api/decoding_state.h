// The check of the decoding state that a launcher gets.
#pragma once

#include "status.h"

namespace d3llm {

// That every field of both is there and aligned.
d3llm_status check_state(const char* launcher, const d3llm_settings& settings, const d3llm_progress& progress);

}  // namespace d3llm
