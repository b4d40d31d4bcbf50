// float16 and bfloat16 by pairs, and RoPE's rotation.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace d3llm {

template <typename T>
__device__ __forceinline__ float2 unpack(uint32_t pair);

template <>
__device__ __forceinline__ float2 unpack<__half>(uint32_t pair) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}

template <>
__device__ __forceinline__ float2 unpack<__nv_bfloat16>(uint32_t pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}

template <typename T>
__device__ __forceinline__ uint32_t pack(float low, float high);

template <>
__device__ __forceinline__ uint32_t pack<__half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

template <>
__device__ __forceinline__ uint32_t pack<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Half-split RoPE of two neighbouring columns and of the two that stand half a head behind them, in float32.
template <typename T>
__device__ __forceinline__ void rotate(uint32_t& first, uint32_t& second, float2 cosine, float2 sine) {
  const float2 x = unpack<T>(first), y = unpack<T>(second);
  first = pack<T>(x.x * cosine.x - y.x * sine.x, x.y * cosine.y - y.y * sine.y);
  second = pack<T>(y.x * cosine.x + x.x * sine.x, y.y * cosine.y + x.y * sine.y);
}

// Cosine and sine of 8 neighbouring columns.
struct Angles {
  float4 cosine[2], sine[2];
};

__device__ __forceinline__ Angles load_angles(const float* cosine, const float* sine, int64_t at) {
  const float4* c = reinterpret_cast<const float4*>(cosine + at);
  const float4* s = reinterpret_cast<const float4*>(sine + at);
  return {{c[0], c[1]}, {s[0], s[1]}};
}

// The same for 8 columns.
template <typename T>
__device__ __forceinline__ void rotate(uint4& first, uint4& second, const Angles& angles) {
  const float4 *c = angles.cosine, *s = angles.sine;
  rotate<T>(first.x, second.x, {c[0].x, c[0].y}, {s[0].x, s[0].y});
  rotate<T>(first.y, second.y, {c[0].z, c[0].w}, {s[0].z, s[0].w});
  rotate<T>(first.z, second.z, {c[1].x, c[1].y}, {s[1].x, s[1].y});
  rotate<T>(first.w, second.w, {c[1].z, c[1].w}, {s[1].z, s[1].w});
}

}  // namespace d3llm
