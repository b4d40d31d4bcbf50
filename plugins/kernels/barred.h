// The ids of a row that are never chosen: the mask's, and those that may not come yet.
#pragma once

#include "d3llm_kernels.h"
#include "device.h"

namespace d3llm {

struct Barred {
  int mask;
  const int64_t* others;  // those before the first negative one, of D3LLM_END_IDS; or NULL

  D3LLM_DEVICE Barred(const d3llm_select_params& p, int64_t row) : mask(static_cast<int>(p.mask_id)) {
    others = p.barred == nullptr ? nullptr : p.barred + row * D3LLM_END_IDS;
    if (others != nullptr && others[0] < 0) others = nullptr;
  }

  D3LLM_DEVICE bool has(int id) const {
    if (id == mask) return true;
    if (others == nullptr) return false;
    for (int i = 0; i < D3LLM_END_IDS && others[i] >= 0; ++i)
      if (others[i] == id) return true;
    return false;
  }
};

}  // namespace d3llm
