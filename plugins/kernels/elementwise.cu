// Residual + RMSNorm and SiLU x up, each rounded where the tensor code rounds, with FP8 output where asked for; and
// the same FP8 of what another kernel gave.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <algorithm>

#include "kernels/elementwise.h"
#include "kernels/launch.cuh"

namespace d3llm {
namespace {

constexpr int kVector = 8;  // elements of 16 bytes

__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T rounded_to(float x);
template <>
__device__ __forceinline__ __half rounded_to<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 rounded_to<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

template <typename T>
__device__ __forceinline__ float rounded(float x) {
  return to_float(rounded_to<T>(x));
}

template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T at[kWidth];
};

template <typename T, int kWidth>
__device__ __forceinline__ void load(const void* data, int64_t offset, float (&x)[kWidth]) {
  const auto pack = *reinterpret_cast<const Pack<T, kWidth>*>(static_cast<const T*>(data) + offset);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) x[i] = to_float(pack.at[i]);
}

template <typename T, int kWidth>
__device__ __forceinline__ void store(void* data, int64_t offset, const float (&x)[kWidth]) {
  Pack<T, kWidth> pack;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) pack.at[i] = rounded_to<T>(x[i]);
  *reinterpret_cast<Pack<T, kWidth>*>(static_cast<T*>(data) + offset) = pack;
}

// The unit of FP8 numbers, or none. Made before the numbers are there, so that reading it costs no time of its own.
struct Unit {
  bool exists;
  float scale, inverse;

  __device__ __forceinline__ explicit Unit(const float* from)
      : exists(from != nullptr), scale(exists ? *from : 1.f), inverse(1.f / scale) {}
  // Rounded as x / scale is: the remainder corrects the product (Markstein), where there is one.
  __device__ __forceinline__ float of(float x) const {
    const float product = x * inverse, remainder = fmaf(-product, scale, x);
    return remainder != 0.f && fabsf(remainder) < 1e30f ? fmaf(remainder, inverse, product) : product;
  }
};

template <int kWidth>
__device__ __forceinline__ void store_fp8(void* data, int64_t offset, const float (&x)[kWidth], const Unit& unit) {
  Pack<uint8_t, kWidth> pack;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) pack.at[i] = __nv_cvt_float_to_fp8(unit.of(x[i]), __NV_SATFINITE, __NV_E4M3);
  *reinterpret_cast<Pack<uint8_t, kWidth>*>(static_cast<uint8_t*>(data) + offset) = pack;
}

// x as T, or as FP8 where there is a unit.
template <typename T, int kWidth>
__device__ __forceinline__ void store_result(void* data, int64_t offset, const float (&x)[kWidth], const Unit& unit) {
  if (unit.exists) {
    store_fp8<kWidth>(data, offset, x, unit);
  } else {
    store<T, kWidth>(data, offset, x);
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

template <typename T, int kWidth>
__device__ __forceinline__ void load_sum(const d3llm_rms_norm_params& p, int64_t offset, float (&x)[kWidth]) {
  load<T, kWidth>(p.x, offset, x);
  if (p.residual != nullptr) {
    float other[kWidth];
    load<T, kWidth>(p.residual, offset, other);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) x[i] = rounded<T>(x[i] + other[i]);
  }
  if (p.sum_out != nullptr) store<T, kWidth>(p.sum_out, offset, x);
}

// One block per row, kPacks packs of kWidth elements per thread.
template <typename T, int kWidth, int kPacks>
__global__ void __launch_bounds__(512) rms_norm_kernel(const d3llm_rms_norm_params p) {
  wait_for_previous_kernel();
  const Unit unit(p.out_scale);
  const int64_t row = blockIdx.x * p.hidden_size;
  const int stride = blockDim.x * kWidth, start = threadIdx.x * kWidth, hidden = p.hidden_size;
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
    load<T, kWidth>(p.weight, column, weight);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) x[pack][i] = rounded<T>(rounded<T>(x[pack][i] * factor) * weight[i]);
    store_result<T, kWidth>(p.out, row + column, x[pack], unit);
  }
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(256) silu_mul_kernel(const d3llm_silu_mul_params p) {
  wait_for_previous_kernel();
  const int64_t row = blockIdx.x, column = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kWidth;
  if (column >= p.intermediate_size) return;
  const Unit unit(p.out_scale);
  float gate[kWidth], up[kWidth];
  load<T, kWidth>(p.gate_up, 2 * row * p.intermediate_size + column, gate);
  load<T, kWidth>(p.gate_up, (2 * row + 1) * p.intermediate_size + column, up);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const float silu = __fdiv_rn(gate[i], 1.f + expf(-gate[i]));
    gate[i] = rounded<T>(rounded<T>(silu) * up[i]);
  }
  store_result<T, kWidth>(p.out, row * p.intermediate_size + column, gate, unit);
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(256) quantize_fp8_kernel(const d3llm_quantize_fp8_params p) {
  wait_for_previous_kernel();
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kWidth;
  if (at >= p.count) return;
  float x[kWidth];
  load<T, kWidth>(p.x, at, x);
  store_fp8<kWidth>(p.out, at, x, Unit(p.scale));
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

template <typename T, int kWidth>
cudaError_t quantize_fp8_width(const d3llm_quantize_fp8_params& params, cudaStream_t stream) {
  constexpr int kThreads = 256;
  const auto blocks = static_cast<unsigned>((params.count / kWidth + kThreads - 1) / kThreads);
  return launch_kernel<quantize_fp8_kernel<T, kWidth>>(blocks, kThreads, 0, true, stream, params);
}

template <typename T>
cudaError_t quantize_fp8(const d3llm_quantize_fp8_params& params, cudaStream_t stream) {
  if (vectorizable(params.count, params.x, params.out)) return quantize_fp8_width<T, kVector>(params, stream);
  return quantize_fp8_width<T, 1>(params, stream);
}

}  // namespace

cudaError_t launch_rms_norm(const d3llm_rms_norm_params& params, cudaStream_t stream) {
  return params.dtype == D3LLM_FLOAT16 ? rms_norm<__half>(params, stream) : rms_norm<__nv_bfloat16>(params, stream);
}

cudaError_t launch_silu_mul(const d3llm_silu_mul_params& params, cudaStream_t stream) {
  return params.dtype == D3LLM_FLOAT16 ? silu_mul<__half>(params, stream) : silu_mul<__nv_bfloat16>(params, stream);
}

cudaError_t launch_quantize_fp8(const d3llm_quantize_fp8_params& params, cudaStream_t stream) {
  return params.dtype == D3LLM_FLOAT16 ? quantize_fp8<__half>(params, stream)
                                       : quantize_fp8<__nv_bfloat16>(params, stream);
}

}  // namespace d3llm
