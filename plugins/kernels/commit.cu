// The commit kernel: a thread block as the team of commit_logic.h.
#include "block_team.cuh"
#include "commit.h"
#include "commit_logic.h"
#include "launch.cuh"

namespace d3llm {
namespace {

constexpr int kThreads = 256;

// One block is enough for a multiprocessor: without that bound registers are spilled for an occupancy of no use here.
__global__ void __launch_bounds__(kThreads, 1) commit_kernel(const __grid_constant__ d3llm_commit_params params) {
  wait_for_previous_kernel();
  __shared__ Exchange<kThreads> exchange;
  __shared__ int counters[kThreads + 1];
  BlockTeam<kThreads> team(exchange);
  commit::step(team, params, blockIdx.x, counters);
}

}  // namespace

cudaError_t launch_commit(const d3llm_commit_params& params, cudaStream_t stream) {
  return launch_kernel<commit_kernel>(static_cast<unsigned>(params.batch), kThreads, 0, true, stream, params);
}

}  // namespace d3llm
