// Select: one pass over each row of logits gives its best tokens, entropy and the probability of its token.
//
// Rows whose choice is limited take more passes for that (limited_choice.h).
#include "kernels/block_team.cuh"
#include "kernels/launch.cuh"
#include "kernels/limited_choice.h"
#include "kernels/logits_row.cuh"
#include "kernels/select.h"
#include "kernels/select_state.cuh"

namespace d3llm {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kLoads = 4;             // in flight per thread, of 16 bytes each
constexpr float kNegligible = 1e-6f;  // nats that entropy_eps may add up to before it is taken literally

__device__ Sampler sampler_of(const d3llm_select_params& p, int64_t row) {
  if (p.temperature == nullptr || !(p.temperature[row] > 0.f)) return {};
  return {p.temperature[row], sampling_key(p.seed[row], p.position[row], p.number[row])};
}

__device__ Limits limits_of(const d3llm_select_params& p, int64_t row) {
  return {p.top_k == nullptr ? 0 : p.top_k[row], p.top_p == nullptr ? 1.0 : p.top_p[row]};
}

template <int kSize>
__device__ __forceinline__ float largest(const float (&x)[kSize]) {
  float result = x[0];
#pragma unroll
  for (int i = 1; i < kSize; ++i) result = fmaxf(result, x[i]);
  return result;
}

template <int kSize>
__device__ __forceinline__ float largest_but(const float (&x)[kSize], int without) {
  float result = -kInfinity;
#pragma unroll
  for (int i = 0; i < kSize; ++i) result = i == without ? result : fmaxf(result, x[i]);
  return result;
}

// The largest value of all lanes of the warp.
__device__ __forceinline__ float warp_largest(float value) {
  const auto ordered = [](int bits) {
    return bits < 0 ? bits ^ INT_MAX : bits;
  };  // floats as integers that compare alike
  return __int_as_float(ordered(__reduce_max_sync(~0u, ordered(__float_as_int(value)))));
}

template <int kSize>
__device__ __forceinline__ void take(SelectState& state, const float (&x)[kSize], int first, int mask) {
  const float peak = largest(x);
  const auto masked = static_cast<unsigned>(mask - first);
  state.greedy.offer(masked < kSize ? largest_but(x, masked) : peak, first);
  state.softmax.make_room(peak);
#pragma unroll
  for (int i = 0; i < kSize; ++i) state.softmax.add(x[i]);
}

// Few tokens are not lost before their noise is computed: those are read again, one after the other.
template <typename T, int kSize>
__device__ __forceinline__ void race(Race& race, const float (&x)[kSize], int first, const Row<T>& row,
                                     const Sampler& sampler) {
  if (race.is_lost(sampler, largest(x))) return;
  unsigned entering = 0;
#pragma unroll
  for (int i = 0; i < kSize; ++i) entering |= static_cast<unsigned>(!race.is_lost(sampler, x[i], first + i)) << i;
  for (; entering != 0; entering &= entering - 1) {
    const int id = first + __ffs(entering) - 1;
    if (id != row.mask) race.enter(sampler, row.at(id), id);
  }
}

template <bool kSampling, typename T, int kSize>
__device__ __forceinline__ void take(SelectState& state, const float (&x)[kSize], int first, const Row<T>& row,
                                     const Sampler& sampler) {
  take(state, x, first, row.mask);
  if constexpr (kSampling) race(state.race, x, first, row, sampler);
}

template <bool kSampling, typename T>
__device__ __forceinline__ void take_element(SelectState& state, const Row<T>& row, int id, const Sampler& sampler) {
  const float x[1] = {row.at(id)};
  take<kSampling>(state, x, id, row, sampler);
}

// The loop is the same for all lanes of a warp, as they share what the race has reached.
template <bool kSampling, typename T>
__device__ __forceinline__ SelectState scan(const Row<T>& row, const Sampler& sampler) {
  constexpr int kSize = Row<T>::kSize;
  const int lane = threadIdx.x % 32;
  SelectState state;
  if (threadIdx.x < row.head) take_element<kSampling>(state, row, threadIdx.x, sampler);
  const auto* vectors = reinterpret_cast<const uint4*>(row.logits + row.head);
  for (int start = threadIdx.x - lane; start < row.vectors; start += kLoads * blockDim.x) {
    uint4 loaded[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      loaded[i] = __ldg(vectors + min(start + lane + i * static_cast<int>(blockDim.x), row.vectors - 1));
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int at = start + lane + i * blockDim.x;
      if (at < row.vectors) {
        float x[kSize];
        unpack_vector<T>(loaded[i], x);
        take<kSampling>(state, x, row.head + at * kSize, row, sampler);
      }
      if constexpr (kSampling) state.race.bound = warp_largest(state.race.bound);
    }
  }
  const int last = row.tail() + threadIdx.x;
  if (last < row.vocab) take_element<kSampling>(state, row, last, sampler);
  return state;
}

// Thread 0 gets the state of the whole row.
__device__ void merge_block(SelectState& state) {
  __shared__ SelectState of_warps[kMaxThreads / 32];
  state.merge_warp();
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = state;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  state = threadIdx.x < blockDim.x / 32 ? of_warps[threadIdx.x] : SelectState{};
  state.merge_warp();
}

// The first element with the score in the vector that starts at best.id; without one the lowest id but the mask's.
template <typename T>
__device__ int locate(const Row<T>& row, const Best<float>& best) {
  if (best.id == INT_MAX) return row.mask == 0;
  int found = best.id;
#pragma unroll
  for (int i = Row<T>::kSize - 1; i >= 0; --i) {
    const int id = best.id + i;
    if (id < row.vocab && id != row.mask && row.at(id) == best.score) found = id;
  }
  return found;
}

template <typename T>
__device__ Choice choice_of(const Row<T>& row, const SelectState& state) {
  const int greedy = locate(row, state.greedy), sampled = state.race.best.id;
  return {greedy, sampled == INT_MAX ? greedy : sampled};
}

// A function of its own, so that it takes no registers from the pass over other rows.
__device__ __noinline__ Choice limited_choice(const d3llm_select_params& p, int greedy) {
  using Team = BlockTeam<kMaxThreads, false>;
  __shared__ Exchange<kMaxThreads> exchange;
  __shared__ NucleusMemory memory;
  Team team(exchange);
  return choose(team, memory, AnyRow(p, blockIdx.x), sampler_of(p, blockIdx.x), limits_of(p, blockIdx.x), greedy);
}

__device__ float sum_block(float value) {
  __shared__ float of_warps[kMaxThreads / 32];
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_down_sync(~0u, value, distance);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x >= 32) return 0.f;
  value = threadIdx.x < blockDim.x / 32 ? of_warps[threadIdx.x] : 0.f;
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_down_sync(~0u, value, distance);
  return value;
}

// -sum p ln(p + eps) in a second pass over the row; in thread 0.
template <typename T>
__device__ float literal_entropy(const Row<T>& row, const Softmax& softmax, float eps) {
  constexpr int kSize = Row<T>::kSize;
  const float share = 1.f / softmax.sum;
  float total = 0.f;
  const auto add = [&](float x) {
    const float p = fast_exp2(fmaf(x, kLog2e, -softmax.shift)) * share;
    total = fmaf(p, __log2f(p + eps), total);
  };
  if (threadIdx.x < row.head) add(row.at(threadIdx.x));
  for (int index = threadIdx.x; index < row.vectors; index += blockDim.x) {
    float x[kSize];
    row.load(index, x);
#pragma unroll
    for (int i = 0; i < kSize; ++i) add(x[i]);
  }
  const int last = row.tail() + threadIdx.x;
  if (last < row.vocab) add(row.at(last));
  return -kLn2 * sum_block(total);
}

template <typename T>
__device__ void write_tokens(const d3llm_select_params& p, const Row<T>& row, const Softmax& softmax, Choice choice) {
  const float sampled = row.at(choice.sampled);
  p.greedy[blockIdx.x] = choice.greedy;
  p.sampled[blockIdx.x] = choice.sampled;
  p.confidence[blockIdx.x] = softmax.probability(sampled);
  p.logprob[blockIdx.x] = softmax.log_probability(sampled);
  p.greedy_logprob[blockIdx.x] = softmax.log_probability(row.at(choice.greedy));
}

template <typename T>
__global__ void __launch_bounds__(kMaxThreads) select_kernel(const __grid_constant__ d3llm_select_params p) {
  wait_for_previous_kernel();
  __shared__ Softmax softmax;
  __shared__ Choice choice;
  const Row<T> row(p, blockIdx.x);
  const Sampler sampler = sampler_of(p, blockIdx.x);
  const bool sampling = sampler.temperature > 0.f;
  const bool limited = Barred(p, blockIdx.x).others != nullptr || (sampling && limits_of(p, blockIdx.x).any());
  SelectState state = sampling && !limited ? scan<true>(row, sampler) : scan<false>(row, sampler);
  merge_block(state);
  if (threadIdx.x == 0) {
    softmax = state.softmax;
    choice = choice_of(row, state);
  }
  const float eps = p.entropy_eps[blockIdx.x];
  const bool literal = eps * p.vocab_size > kNegligible;
  __syncthreads();
  const Choice chosen = limited ? limited_choice(p, choice.greedy) : choice;
  if (threadIdx.x == 0) write_tokens(p, row, softmax, chosen);
  const float entropy = literal ? literal_entropy(row, softmax, eps) : softmax.entropy();
  if (threadIdx.x == 0) p.entropy[blockIdx.x] = entropy;
}

template <typename T>
cudaError_t launch(const d3llm_select_params& params, cudaStream_t stream) {
  int device = 0, multiprocessors = 0;
  if (auto error = cudaGetDevice(&device)) return error;
  if (auto error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device)) return error;
  // Two blocks share a multiprocessor where there are more rows than that.
  const int threads = params.rows > multiprocessors ? kMaxThreads / 2 : kMaxThreads;
  return launch_kernel<select_kernel<T>>(static_cast<unsigned>(params.rows), threads, 0, true, stream, params);
}

}  // namespace

cudaError_t launch_select(const d3llm_select_params& params, cudaStream_t stream) {
  switch (params.dtype) {
    case D3LLM_FLOAT32: return launch<float>(params, stream);
    case D3LLM_FLOAT16: return launch<__half>(params, stream);
    default: return launch<__nv_bfloat16>(params, stream);
  }
}

}  // namespace d3llm
