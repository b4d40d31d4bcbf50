// Select: one pass over each row of logits gives its best tokens, entropy and the probability of its token.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/gumbel.cuh"
#include "kernels/launch.cuh"
#include "kernels/numeric.cuh"
#include "kernels/select.h"
#include "kernels/select_state.cuh"

namespace d3llm {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kLoads = 4;             // in flight per thread, of 16 bytes each
constexpr float kNegligible = 1e-6f;  // nats that entropy_eps may add up to before it is taken literally

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ void unpack_vector(uint4 vector, float (&x)[8]) {
  const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack<T>(words[i]);
    x[2 * i] = pair.x;
    x[2 * i + 1] = pair.y;
  }
}

template <typename T>
__device__ __forceinline__ void unpack_vector(uint4 vector, float (&x)[4]) {
  x[0] = __uint_as_float(vector.x);
  x[1] = __uint_as_float(vector.y);
  x[2] = __uint_as_float(vector.z);
  x[3] = __uint_as_float(vector.w);
}

// A row as whole vectors between a head and a tail of single elements.
template <typename T>
struct Row {
  static constexpr int kSize = 16 / sizeof(T);

  const T* logits;
  int vocab, mask;
  int head, vectors;

  __device__ Row(const d3llm_select_params& p, int64_t row)
      : logits(static_cast<const T*>(p.logits) + row * p.row_stride), vocab(p.vocab_size), mask(p.mask_id) {
    const auto misaligned = static_cast<int>(reinterpret_cast<uintptr_t>(logits) % 16 / sizeof(T));
    head = min((kSize - misaligned) % kSize, vocab);
    vectors = (vocab - head) / kSize;
  }

  __device__ int tail() const { return head + vectors * kSize; }

  __device__ __forceinline__ void load(int index, float (&x)[kSize]) const {
    unpack_vector<T>(__ldg(reinterpret_cast<const uint4*>(logits + head) + index), x);
  }
};

struct Sampler {
  float temperature = 0.f;
  uint64_t key = 0;

  __device__ Sampler(const d3llm_select_params& p, int64_t row) {
    if (p.temperature == nullptr || !(p.temperature[row] > 0.f)) return;
    temperature = p.temperature[row];
    key = sampling_key(p.seed[row], p.position[row], p.number[row]);
  }

  // Two roundings, as of a product and a sum of tensors.
  __device__ __forceinline__ float noisy(float x, int id) const {
    return __fadd_rn(x, __fmul_rn(temperature, gumbel(key, id)));
  }
};

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

template <bool kSampling, int kSize>
__device__ __forceinline__ void take(SelectState& state, const float (&x)[kSize], int first, int mask,
                                     const Sampler& sampler) {
  const float peak = largest(x);
  const auto masked = static_cast<unsigned>(mask - first);
  state.greedy.offer(masked < kSize ? largest_but(x, masked) : peak, first);
  state.softmax.make_room(peak);
#pragma unroll
  for (int i = 0; i < kSize; ++i) state.softmax.add(x[i]);
  if constexpr (kSampling) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if (i != masked) state.sampled.offer(sampler.noisy(x[i], first + i), first + i);
    }
  }
}

template <typename T, bool kSampling>
__device__ __forceinline__ void take_element(SelectState& state, const Row<T>& row, int id, const Sampler& sampler) {
  const float x[1] = {to_float(row.logits[id])};
  take<kSampling>(state, x, id, row.mask, sampler);
}

template <typename T, bool kSampling>
__device__ __forceinline__ SelectState scan(const Row<T>& row, const Sampler& sampler) {
  constexpr int kSize = Row<T>::kSize;
  SelectState state;
  if (threadIdx.x < row.head) take_element<T, kSampling>(state, row, threadIdx.x, sampler);
  const auto* vectors = reinterpret_cast<const uint4*>(row.logits + row.head);
  for (int index = threadIdx.x; index < row.vectors; index += kLoads * blockDim.x) {
    uint4 loaded[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      loaded[i] = __ldg(vectors + min(index + i * static_cast<int>(blockDim.x), row.vectors - 1));
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int at = index + i * blockDim.x;
      if (at >= row.vectors) break;
      float x[kSize];
      unpack_vector<T>(loaded[i], x);
      take<kSampling>(state, x, row.head + at * kSize, row.mask, sampler);
    }
  }
  const int last = row.tail() + threadIdx.x;
  if (last < row.vocab) take_element<T, kSampling>(state, row, last, sampler);
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
__device__ int locate(const Row<T>& row, const Best& best) {
  if (best.id == INT_MAX) return row.mask == 0;
  int found = best.id;
#pragma unroll
  for (int i = Row<T>::kSize - 1; i >= 0; --i) {
    const int id = best.id + i;
    if (id < row.vocab && id != row.mask && to_float(row.logits[id]) == best.score) found = id;
  }
  return found;
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
  if (threadIdx.x < row.head) add(to_float(row.logits[threadIdx.x]));
  for (int index = threadIdx.x; index < row.vectors; index += blockDim.x) {
    float x[kSize];
    row.load(index, x);
#pragma unroll
    for (int i = 0; i < kSize; ++i) add(x[i]);
  }
  const int last = row.tail() + threadIdx.x;
  if (last < row.vocab) add(to_float(row.logits[last]));
  return -kLn2 * sum_block(total);
}

template <typename T>
__device__ void write_tokens(const d3llm_select_params& p, const Row<T>& row, const SelectState& state, bool sampling) {
  const int greedy = locate(row, state.greedy);
  const int unlikely = state.sampled.id == INT_MAX ? greedy : state.sampled.id;
  const int sampled = sampling ? unlikely : greedy;
  p.greedy[blockIdx.x] = greedy;
  p.sampled[blockIdx.x] = sampled;
  p.confidence[blockIdx.x] = state.softmax.probability(to_float(row.logits[sampled]));
}

template <typename T>
__global__ void __launch_bounds__(kMaxThreads) select_kernel(const d3llm_select_params p) {
  wait_for_previous_kernel();
  __shared__ Softmax of_row;
  const Row<T> row(p, blockIdx.x);
  const Sampler sampler(p, blockIdx.x);
  const bool sampling = sampler.temperature > 0.f;
  SelectState state = sampling ? scan<T, true>(row, sampler) : scan<T, false>(row, sampler);
  merge_block(state);
  if (threadIdx.x == 0) {
    write_tokens(p, row, state, sampling);
    of_row = state.softmax;
  }
  const float eps = p.entropy_eps[blockIdx.x];
  const bool literal = eps * p.vocab_size > kNegligible;
  __syncthreads();
  const float entropy = literal ? literal_entropy(row, of_row, eps) : of_row.entropy();
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
