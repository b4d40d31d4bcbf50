#include "decoding_state.h"

#include "checks.h"

namespace d3llm {

d3llm_status check_state(const char* launcher, const d3llm_settings& s, const d3llm_progress& p) {
  const NamedPointer settings[] = {{"algorithm", s.algorithm, 8},
                                   {"prompt_length", s.prompt_length, 8},
                                   {"length", s.length, 8},
                                   {"block_size", s.block_size, 8},
                                   {"num_blocks", s.num_blocks, 8},
                                   {"eos_id", s.eos_id, 8},
                                   {"threshold", s.threshold, 4},
                                   {"by_quota", s.by_quota, 1},
                                   {"entropy_eps", s.entropy_eps, 4},
                                   {"block_add_threshold", s.block_add_threshold, 8},
                                   {"decoded_token_threshold", s.decoded_token_threshold, 8},
                                   {"cached", s.cached, 1},
                                   {"cache_delay", s.cache_delay, 8},
                                   {"refresh_interval", s.refresh_interval, 8},
                                   {"steps_per_block", s.steps_per_block, 8},
                                   {"temperature", s.temperature, 4},
                                   {"seed", s.seed, 8}};
  static_assert(sizeof(settings) / sizeof(settings[0]) == sizeof(s) / sizeof(void*), "a field without a check");
  const NamedPointer progress[] = {{"canvas", p.canvas, 8},
                                   {"commit_steps", p.commit_steps, 8},
                                   {"candidates", p.candidates, 1},
                                   {"active", p.active, 1},
                                   {"block_cached", p.block_cached, 1},
                                   {"done_pass", p.done_pass, 8},
                                   {"opened", p.opened, 8},
                                   {"opened_pass", p.opened_pass, 8},
                                   {"window_start", p.window_start, 8},
                                   {"live_length", p.live_length, 8},
                                   {"cache_length", p.cache_length, 8},
                                   {"passes", p.passes, 8},
                                   {"done", p.done, 1},
                                   {"failed", p.failed, 1}};
  static_assert(sizeof(progress) / sizeof(progress[0]) == sizeof(p) / sizeof(void*), "a field without a check");
  if (auto status = check_pointers(launcher, settings)) return status;
  return check_pointers(launcher, progress);
}

}  // namespace d3llm
