// One request as the commit kernel sees it: its settings, its rows of the state, and the arithmetic of its blocks.
#pragma once

#include "d3llm_kernels.h"
#include "team.h"

namespace d3llm {
namespace commit {

constexpr int kNowhere = INT32_MAX;  // a position or block that none has
constexpr int64_t kNoPass = -1;      // in done_pass
constexpr int64_t kMasked = 0;       // in commit_steps

enum Algorithm : int { kFullAttnMultiBlock, kEntropyThreshold, kMultiBlock, kLowConfidence };
enum Family : int { kLlada, kDream };

// Block 0 is the prompt. Everybody in a team holds the same copy; scalars of the progress change in it and are stored
// once, at the end of the step.
struct Request {
  int family;
  int algorithm;
  int prompt;
  int length;
  int block_size;
  int num_blocks;
  int64_t mask_id;
  int64_t eos_id;          // what stands behind the end of the answer; negative without early stop
  int64_t end_id;          // the first of those that end it
  const int64_t* end_ids;  // all of them, or NULL where the first is the only one
  float threshold;
  bool by_quota;
  bool cached;
  double block_add_threshold;
  double decoded_token_threshold;
  int64_t cache_delay;
  int refresh_interval;
  bool full_settling;
  int64_t window_ahead;  // blocks behind the last opened one, negative for all
  bool published_shift;
  int steps_per_block;

  int64_t* canvas;
  int64_t* commit_steps;
  float* logprobs;
  uint8_t* candidates;
  uint8_t* active;
  uint8_t* block_cached;
  int64_t* done_pass;
  int opened;
  int window_start;
  int window_end;
  int live_length;
  int cache_length;
  int64_t opened_pass;
  int64_t passes;
  bool done;
  bool failed;

  D3LLM_DEVICE int end_of(int block) const {
    return static_cast<int>(smaller<int64_t>(prompt + static_cast<int64_t>(block) * block_size, length));
  }

  D3LLM_DEVICE int start_of(int block) const { return block == 0 ? 0 : end_of(block - 1); }

  D3LLM_DEVICE int block_at(int position) const {
    if (position < prompt) return 0;
    return static_cast<int>(static_cast<uint32_t>(position - prompt) / static_cast<uint32_t>(block_size)) + 1;
  }

  D3LLM_DEVICE bool masked(int position) const { return canvas[position] == mask_id; }

  D3LLM_DEVICE bool ends_with(int64_t token) const {
    if (token == end_id || end_ids == nullptr) return token == end_id;
    for (int i = 1; i < D3LLM_END_IDS && end_ids[i] >= 0; ++i)
      if (end_ids[i] == token) return true;
    return false;
  }

  // The share of a block that is decoded; in this order in float64, as the published decoders have it.
  D3LLM_DEVICE double share_of(int block, int masks) const {
    const int size = end_of(block) - start_of(block);
    return 1 - static_cast<double>(masks) / static_cast<double>(larger(size, 1));
  }
};

D3LLM_DEVICE void read_settings(const d3llm_commit_params& params, int64_t slot, Request& request) {
  const d3llm_settings& settings = params.settings;
  request.family = params.family;
  request.mask_id = params.mask_id;
  request.algorithm = static_cast<int>(settings.algorithm[slot]);
  // Clamped so that no slot, not even a free one, leads outside of its row.
  request.length = static_cast<int>(smaller(larger<int64_t>(settings.length[slot], 0), params.width));
  request.prompt = static_cast<int>(smaller<int64_t>(larger<int64_t>(settings.prompt_length[slot], 0), request.length));
  request.block_size = static_cast<int>(smaller<int64_t>(larger<int64_t>(settings.block_size[slot], 1), INT32_MAX));
  request.num_blocks = static_cast<int>(smaller(larger<int64_t>(settings.num_blocks[slot], 0), params.max_seq_len));
  request.eos_id = settings.eos_id[slot];
  const int64_t* end_ids = settings.end_ids + slot * D3LLM_END_IDS;
  request.end_id = request.eos_id < 0 ? request.eos_id : end_ids[0];
  request.end_ids = request.eos_id < 0 || end_ids[1] < 0 ? nullptr : end_ids;
  request.threshold = settings.threshold[slot];
  request.by_quota = settings.by_quota[slot] != 0;
  request.cached = settings.cached[slot] != 0;
  request.block_add_threshold = settings.block_add_threshold[slot];
  request.decoded_token_threshold = settings.decoded_token_threshold[slot];
  request.cache_delay = settings.cache_delay[slot];
  request.refresh_interval = static_cast<int>(settings.refresh_interval[slot]);
  request.full_settling = settings.full_settling[slot] != 0;
  request.window_ahead = settings.window_ahead[slot];
  request.published_shift = settings.published_shift[slot] != 0;
  request.steps_per_block = static_cast<int>(settings.steps_per_block[slot]);
}

D3LLM_DEVICE void read_progress(const d3llm_commit_params& params, int64_t slot, Request& request) {
  const d3llm_progress& progress = params.progress;
  const int64_t by_position = slot * params.max_seq_len, by_block = slot * (params.max_seq_len + 1);
  request.canvas = progress.canvas + by_position;
  request.commit_steps = progress.commit_steps + by_position;
  request.logprobs = progress.logprobs + by_position;
  request.candidates = progress.candidates + by_position;
  request.active = progress.active + by_block;
  request.block_cached = progress.block_cached + by_block;
  request.done_pass = progress.done_pass + by_block;
  request.opened = static_cast<int>(progress.opened[slot]);
  request.window_start = static_cast<int>(progress.window_start[slot]);
  request.window_end = static_cast<int>(progress.window_end[slot]);
  request.live_length = static_cast<int>(progress.live_length[slot]);
  request.cache_length = static_cast<int>(progress.cache_length[slot]);
  request.opened_pass = progress.opened_pass[slot];
  request.passes = progress.passes[slot];
  request.done = progress.done[slot] != 0;
  request.failed = progress.failed[slot] != 0;
}

D3LLM_DEVICE void store_progress(const d3llm_commit_params& params, int64_t slot, const Request& request) {
  const d3llm_progress& progress = params.progress;
  progress.opened[slot] = request.opened;
  progress.opened_pass[slot] = request.opened_pass;
  progress.window_start[slot] = request.window_start;
  progress.window_end[slot] = request.window_end;
  progress.live_length[slot] = request.live_length;
  progress.cache_length[slot] = request.cache_length;
  progress.passes[slot] = request.passes;
  progress.done[slot] = request.done;
  progress.failed[slot] = request.failed;
}

D3LLM_DEVICE void store_summary(int64_t* summary, const Request& request, int num_candidates) {
  summary[0] = request.done;
  summary[1] = request.failed;
  summary[2] = request.passes;
  summary[3] = request.window_end - request.window_start;
  summary[4] = num_candidates;
}

}  // namespace commit
}  // namespace d3llm
