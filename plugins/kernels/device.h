// What code for thread blocks and for host threads alike is written with.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define D3LLM_DEVICE __device__ __forceinline__
#define D3LLM_DEVICE_CALLED __device__ __noinline__  // for what is called from several places
#else
#define D3LLM_DEVICE inline
#define D3LLM_DEVICE_CALLED inline
#endif

namespace d3llm {

template <class T>
D3LLM_DEVICE T smaller(T a, T b) {
  return b < a ? b : a;
}

template <class T>
D3LLM_DEVICE T larger(T a, T b) {
  return a < b ? b : a;
}

D3LLM_DEVICE uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

D3LLM_DEVICE float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// Operations with a rounding of their own, as those of tensors have: the compiler does not fuse them.
D3LLM_DEVICE float plus(float a, float b) {
#ifdef __CUDACC__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

D3LLM_DEVICE float times(float a, float b) {
#ifdef __CUDACC__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

D3LLM_DEVICE float over(float a, float b) {
#ifdef __CUDACC__
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

// The polynomial of these coefficients, the constant term first.
template <int kTerms>
D3LLM_DEVICE float polynomial(const float (&terms)[kTerms], float x) {
  float result = terms[kTerms - 1];
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int i = kTerms - 2; i >= 0; --i) result = plus(times(result, x), terms[i]);
  return result;
}

// To 2 ulp on the GPU.
D3LLM_DEVICE float fast_exp2(float x) {
#ifdef __CUDACC__
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  return std::exp2(x);
#endif
}

// A float that is not above `value`.
D3LLM_DEVICE float float_below(double value) {
#ifdef __CUDACC__
  return __double2float_rd(value);
#else
  const float nearest = static_cast<float>(value);
  return nearest > value ? std::nextafter(nearest, -INFINITY) : nearest;
#endif
}

}  // namespace d3llm
