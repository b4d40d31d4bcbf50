// FP8 (e4m3) numbers in units of a scale, and division without branches.
#pragma once

#include <cuda_fp8.h>

#include <cstdint>

namespace d3llm {

__device__ __forceinline__ float fast_inverse(float x) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
  return inverse;
}

// x / divisor, rounded as division rounds (Markstein), and without its branches. Signs of zeros are kept; what has no
// remainder, as infinities have none, is the product.
__device__ __forceinline__ float divide(float x, float divisor, float inverse) {
  const float product = x * inverse;
  const float corrected = fmaf(-fmaf(product, divisor, -x), inverse, product);
  return isnan(corrected) ? product : corrected;
}

// The unit of FP8 numbers, or none. Made before the numbers are there, so that reading it costs no time of its own.
struct Unit {
  bool exists;
  float scale, inverse;

  __device__ __forceinline__ explicit Unit(const float* from)
      : exists(from != nullptr), scale(exists ? *from : 1.f), inverse(fast_inverse(scale)) {
    inverse = fmaf(inverse, fmaf(-scale, inverse, 1.f), inverse);
  }
  // Two numbers, the first in the lower byte; beyond the range the largest.
  __device__ __forceinline__ uint16_t pair(float low, float high) const {
    return __nv_cvt_float2_to_fp8x2({divide(low, scale, inverse), divide(high, scale, inverse)}, __NV_SATFINITE,
                                    __NV_E4M3);
  }
};

}  // namespace d3llm
