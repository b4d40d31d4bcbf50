// Residual + RMSNorm and SiLU x up, each rounded where the tensor code rounds, with FP8 output where asked for.
#include <algorithm>
#include <cstring>

#include "kernels/elementwise.h"
#include "kernels/fp8.cuh"
#include "kernels/launch.cuh"
#include "kernels/numeric.cuh"

namespace d3llm {
namespace {

constexpr int kVector = 8;  // elements of 16 bytes

// Numbers are rounded by pairs: the GPU rounds a single one at a quarter of the speed, or less.
template <typename T, int kWidth>
__device__ __forceinline__ void to_pairs(uint32_t (&pairs)[(kWidth + 1) / 2], const float (&x)[kWidth]) {
#pragma unroll
  for (int i = 0; i < kWidth; i += 2) pairs[i / 2] = pack<T>(x[i], i + 1 < kWidth ? x[i + 1] : 0.f);
}

template <typename T, int kWidth>
__device__ __forceinline__ void from_pairs(float (&x)[kWidth], const uint32_t (&pairs)[(kWidth + 1) / 2]) {
#pragma unroll
  for (int i = 0; i < kWidth; i += 2) {
    const float2 pair = unpack<T>(pairs[i / 2]);
    x[i] = pair.x;
    if (i + 1 < kWidth) x[i + 1] = pair.y;
  }
}

template <typename T, int kWidth>
__device__ __forceinline__ void round_to(float (&x)[kWidth]) {
  uint32_t pairs[(kWidth + 1) / 2];
  to_pairs<T>(pairs, x);
  from_pairs<T>(x, pairs);
}

// kWidth elements as they lie in memory.
template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T at[kWidth];
};

template <typename T, int kWidth>
__device__ __forceinline__ Pack<T, kWidth> read(const void* data, int64_t offset) {
  return *reinterpret_cast<const Pack<T, kWidth>*>(static_cast<const T*>(data) + offset);
}

template <typename T, int kWidth>
__device__ __forceinline__ void to_floats(float (&x)[kWidth], const Pack<T, kWidth>& pack) {
  uint32_t pairs[(kWidth + 1) / 2] = {};
  memcpy(pairs, &pack, sizeof(pack));
  from_pairs<T>(x, pairs);
}

template <typename T, int kWidth>
__device__ __forceinline__ void store(void* data, int64_t offset, const float (&x)[kWidth]) {
  uint32_t pairs[(kWidth + 1) / 2];
  to_pairs<T>(pairs, x);
  Pack<T, kWidth> pack;
  memcpy(&pack, pairs, sizeof(pack));
  *reinterpret_cast<Pack<T, kWidth>*>(static_cast<T*>(data) + offset) = pack;
}

template <int kWidth>
__device__ __forceinline__ void store_fp8(void* data, int64_t offset, const float (&x)[kWidth], const Unit& unit) {
  Pack<uint8_t, kWidth> pack;
#pragma unroll
  for (int i = 0; i < kWidth; i += 2) {
    const uint16_t pair = unit.pair(x[i], i + 1 < kWidth ? x[i + 1] : 0.f);
    pack.at[i] = static_cast<uint8_t>(pair);
    if (i + 1 < kWidth) pack.at[i + 1] = static_cast<uint8_t>(pair >> 8);
  }
  *reinterpret_cast<Pack<uint8_t, kWidth>*>(static_cast<uint8_t*>(data) + offset) = pack;
}

// x as T, or as FP8 where there is a unit.
template <typename T, int kWidth>
__device__ __forceinline__ void store_result(void* data, int64_t offset, const float (&x)[kWidth], const Unit& unit) {
  if (unit.exists) {
    store_fp8<kWidth>(data, offset, x, unit);
  } else {
    store<T>(data, offset, x);
  }
}

// Every thread gets the sum.
__device__ float sum_block(float value) {
  __shared__ float of_warps[32];
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  value = threadIdx.x % 32 < blockDim.x / 32 ? of_warps[threadIdx.x % 32] : 0.f;
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

// x, or the sum of x and the residual, which is then kept.
template <typename T, int kWidth>
__device__ __forceinline__ void load_sum(const d3llm_rms_norm_params& p, int64_t offset, float (&x)[kWidth]) {
  to_floats<T>(x, read<T, kWidth>(p.x, offset));
  if (p.residual != nullptr) {
    float other[kWidth];
    to_floats<T>(other, read<T, kWidth>(p.residual, offset));
#pragma unroll
    for (int i = 0; i < kWidth; ++i) x[i] += other[i];
    round_to<T>(x);
  }
  if (p.sum_out != nullptr) store<T>(p.sum_out, offset, x);
}

// One block per row, kPacks packs of kWidth elements per thread.
template <typename T, int kWidth, int kPacks>
__global__ void __launch_bounds__(512) rms_norm_kernel(const d3llm_rms_norm_params p) {
  const Unit unit(p.out_scale);
  const int64_t row = blockIdx.x * p.hidden_size;
  const int stride = blockDim.x * kWidth, start = threadIdx.x * kWidth, hidden = p.hidden_size;
  Pack<T, kWidth> weights[kPacks];  // of the network, so they are there before the previous kernel has ended
#pragma unroll
  for (int pack = 0; pack < kPacks; ++pack) {
    const int column = start + pack * stride;
    if (column < hidden) weights[pack] = read<T, kWidth>(p.weight, column);
  }
  wait_for_previous_kernel();
  float x[kPacks][kWidth];
  float squares = 0.f;
#pragma unroll
  for (int pack = 0; pack < kPacks; ++pack) {
    const int column = start + pack * stride;
    if (column >= hidden) break;
    load_sum<T, kWidth>(p, row + column, x[pack]);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) squares = fmaf(x[pack][i], x[pack][i], squares);
  }
  const float factor = rsqrtf(sum_block(squares) / static_cast<float>(hidden) + p.eps);
#pragma unroll
  for (int pack = 0; pack < kPacks; ++pack) {
    const int column = start + pack * stride;
    if (column >= hidden) break;
    float weight[kWidth];
    to_floats<T>(weight, weights[pack]);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) x[pack][i] *= factor;
    round_to<T>(x[pack]);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) x[pack][i] *= weight[i];
    round_to<T>(x[pack]);
    store_result<T, kWidth>(p.out, row + column, x[pack], unit);
  }
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(256) silu_mul_kernel(const d3llm_silu_mul_params p) {
  const Unit unit(p.out_scale);
  wait_for_previous_kernel();
  const int64_t row = blockIdx.x, column = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kWidth;
  if (column >= p.intermediate_size) return;
  const auto gates = read<T, kWidth>(p.gate_up, 2 * row * p.intermediate_size + column);
  const auto ups = read<T, kWidth>(p.gate_up, (2 * row + 1) * p.intermediate_size + column);
  float gate[kWidth], up[kWidth];
  to_floats<T>(gate, gates);
  to_floats<T>(up, ups);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const float divisor = 1.f + expf(-gate[i]);
    gate[i] = divide(gate[i], divisor, fast_inverse(divisor));
  }
  round_to<T>(gate);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) gate[i] *= up[i];
  round_to<T>(gate);
  store_result<T, kWidth>(p.out, row * p.intermediate_size + column, gate, unit);
}

template <typename... Pointers>
bool vectorizable(int64_t columns, Pointers... pointers) {
  return columns % kVector == 0 && ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

template <typename T>
cudaError_t rms_norm_vectors(const d3llm_rms_norm_params& params, cudaStream_t stream) {
  const auto rows = static_cast<unsigned>(params.rows);
  const int vectors = static_cast<int>(params.hidden_size / kVector);
  const int per_thread = vectors <= 256 ? 1 : vectors <= 1024 ? 2 : 4;
  const int threads = (vectors + 32 * per_thread - 1) / (32 * per_thread) * 32;
  if (per_thread == 1) return launch_kernel<rms_norm_kernel<T, kVector, 1>>(rows, threads, 0, true, stream, params);
  if (per_thread == 2) return launch_kernel<rms_norm_kernel<T, kVector, 2>>(rows, threads, 0, true, stream, params);
  return launch_kernel<rms_norm_kernel<T, kVector, 4>>(rows, threads, 0, true, stream, params);
}

template <typename T>
cudaError_t rms_norm(const d3llm_rms_norm_params& params, cudaStream_t stream) {
  if (vectorizable(params.hidden_size, params.x, params.residual, params.weight, params.sum_out, params.out)) {
    return rms_norm_vectors<T>(params, stream);
  }
  constexpr int kPacks = kMostHidden / 512;
  const auto rows = static_cast<unsigned>(params.rows);
  return launch_kernel<rms_norm_kernel<T, 1, kPacks>>(rows, 512, 0, true, stream, params);
}

template <typename T, int kWidth>
cudaError_t silu_mul_width(const d3llm_silu_mul_params& params, cudaStream_t stream) {
  const int64_t packs = params.intermediate_size / kWidth, threads = std::min<int64_t>(256, (packs + 31) / 32 * 32);
  const dim3 grid(static_cast<unsigned>(params.rows), static_cast<unsigned>((packs + threads - 1) / threads));
  return launch_kernel<silu_mul_kernel<T, kWidth>>(grid, static_cast<int>(threads), 0, true, stream, params);
}

template <typename T>
cudaError_t silu_mul(const d3llm_silu_mul_params& params, cudaStream_t stream) {
  if (vectorizable(params.intermediate_size, params.gate_up, params.out)) {
    return silu_mul_width<T, kVector>(params, stream);
  }
  return silu_mul_width<T, 1>(params, stream);
}

}  // namespace

cudaError_t launch_rms_norm(const d3llm_rms_norm_params& params, cudaStream_t stream) {
  return params.dtype == D3LLM_FLOAT16 ? rms_norm<__half>(params, stream) : rms_norm<__nv_bfloat16>(params, stream);
}

cudaError_t launch_silu_mul(const d3llm_silu_mul_params& params, cudaStream_t stream) {
  return params.dtype == D3LLM_FLOAT16 ? silu_mul<__half>(params, stream) : silu_mul<__nv_bfloat16>(params, stream);
}

}  // namespace d3llm
