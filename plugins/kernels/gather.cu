// The packed windows of a step: a thread block for every slot of the batch, and one for the padding behind them.
#include "gather.h"
#include "launch.cuh"

namespace d3llm {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr unsigned kAllLanes = 0xffffffff;
constexpr float kNoEps = 1e-12f;

// A request's window [start, end), which attends to [0, length); empty for a slot that does not exist.
struct Window {
  int64_t slot, start, end, length;
};

__device__ Window window_of(const d3llm_gather_params& params, int64_t entry) {
  const int64_t slot = params.slots[entry];
  if (slot < 0 || slot >= params.num_slots) return {0, 0, 0, 0};
  const int64_t length = min(max(params.progress.live_length[slot], int64_t{0}), params.width);
  const int64_t end = min(max(params.progress.window_end[slot], int64_t{0}), length);
  return {slot, min(max(params.progress.window_start[slot], int64_t{0}), end), end, length};
}

__device__ bool is_candidate(const d3llm_gather_params& params, const Window& window, int64_t position) {
  return position < window.end && params.progress.candidates[window.slot * params.max_seq_len + position];
}

// How many threads before this one have `flag`, and in `total` how many in the block.
__device__ int count_before(bool flag, int& total) {
  __shared__ int sums[kWarps];
  const unsigned votes = __ballot_sync(kAllLanes, flag);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  __syncthreads();
  if (lane == 0) sums[warp] = __popc(votes);
  __syncthreads();
  int before = __popc(votes & ((1u << lane) - 1));
  total = 0;
  for (int other = 0; other < kWarps; ++other) {
    if (other < warp) before += sums[other];
    total += sums[other];
  }
  return before;
}

// Rows of the forward pass, and candidates, of the entries before `entry`.
struct Offsets {
  int64_t tokens, rows;
};

__device__ Offsets offsets_of(const d3llm_gather_params& params, int64_t entry) {
  Offsets offsets = {0, 0};
  for (int64_t other = 0; other < entry; ++other) {
    const Window window = window_of(params, other);
    offsets.tokens += window.end - window.start;
    for (int64_t base = window.start; base < window.end; base += kThreads) {
      offsets.rows += __syncthreads_count(is_candidate(params, window, base + threadIdx.x));
    }
  }
  return offsets;
}

__device__ void write_token(const d3llm_gather_params& params, int64_t row, int64_t token, int64_t position) {
  if (row >= params.tokens) return;
  params.token_ids[row] = token;
  params.positions[row] = position;
}

struct Candidate {
  int64_t logit_row, chosen, seed, position, number, top_k;
  double top_p;
  float entropy_eps, temperature;
  const int64_t* barred;  // or NULL
};

__device__ void write_candidate(const d3llm_gather_params& params, int64_t row, const Candidate& candidate) {
  if (row >= params.rows) return;
  params.logit_rows[row] = min(candidate.logit_row, params.tokens - 1);
  params.chosen[row] = candidate.chosen;
  params.entropy_eps[row] = candidate.entropy_eps;
  params.temperature[row] = candidate.temperature;
  params.seed[row] = candidate.seed;
  params.position[row] = candidate.position;
  params.number[row] = candidate.number;
  params.top_k[row] = candidate.top_k;
  params.top_p[row] = candidate.top_p;
  for (int i = 0; i < D3LLM_END_IDS; ++i) {
    params.barred[row * D3LLM_END_IDS + i] = candidate.barred == nullptr ? -1 : candidate.barred[i];
  }
}

// The candidate at `position` of a window, which row `scoring` of the forward pass scores.
__device__ Candidate candidate_at(const d3llm_gather_params& params, const Window& window, int64_t entry,
                                  int64_t position, int64_t scoring) {
  const auto& settings = params.settings;
  const int64_t slot = window.slot, answered = position - settings.prompt_length[slot];
  const bool too_early = answered >= 0 && answered < settings.min_tokens[slot];
  return {scoring,
          entry * params.width + position,
          settings.seed[slot],
          position,
          params.progress.passes[slot] + 1,
          settings.top_k[slot],
          settings.top_p[slot],
          settings.entropy_eps[slot],
          settings.temperature[slot],
          too_early ? settings.end_ids + slot * D3LLM_END_IDS : nullptr};
}

__device__ void gather_window(const d3llm_gather_params& params, int64_t entry, const Offsets& offsets) {
  const Window window = window_of(params, entry);
  if (threadIdx.x == 0) {
    params.cu_window[entry] = min(offsets.tokens, params.tokens);
    params.kv_lengths[entry] = window.length;
  }
  const int64_t* canvas = params.progress.canvas + window.slot * params.max_seq_len;
  int64_t row = offsets.rows;
  for (int64_t base = window.start; base < window.end; base += kThreads) {
    const int64_t position = base + threadIdx.x;
    if (position < window.end) {
      write_token(params, offsets.tokens + position - window.start, canvas[position], position);
    }
    int total;
    const bool candidate = is_candidate(params, window, position);
    const int before = count_before(candidate, total);
    if (candidate) {
      const int64_t scoring = max(position - params.shifted, window.start) - window.start;
      write_candidate(params, row + before, candidate_at(params, window, entry, position, offsets.tokens + scoring));
    }
    row += total;
  }
}

__device__ void gather_padding(const d3llm_gather_params& params, const Offsets& offsets) {
  if (threadIdx.x == 0) params.cu_window[params.batch] = min(offsets.tokens, params.tokens);
  for (int64_t row = offsets.tokens + threadIdx.x; row < params.tokens; row += kThreads) write_token(params, row, 0, 0);
  for (int64_t row = offsets.rows + threadIdx.x; row < params.rows; row += kThreads) {
    write_candidate(params, row, {0, params.batch * params.width, 0, 0, 0, 0, 1.0, kNoEps, 0.0f, nullptr});
  }
}

__global__ void __launch_bounds__(kThreads) gather_kernel(const d3llm_gather_params params) {
  wait_for_previous_kernel();
  const int64_t entry = blockIdx.x;
  const Offsets offsets = offsets_of(params, entry);
  if (entry < params.batch) {
    gather_window(params, entry, offsets);
  } else {
    gather_padding(params, offsets);
  }
}

}  // namespace

cudaError_t launch_gather(const d3llm_gather_params& params, cudaStream_t stream) {
  return launch_kernel<gather_kernel>(static_cast<unsigned>(params.batch + 1), kThreads, 0, true, stream, params);
}

}  // namespace d3llm
