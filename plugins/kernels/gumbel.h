// Gumbel noise from a counter: that of plugins/gumbel.py, bit for bit.
#pragma once

#include "device.h"

namespace d3llm {

constexpr uint64_t kIncrement = 0x9E3779B97F4A7C15;  // of SplitMix64, as are the multipliers

D3LLM_DEVICE uint64_t mixed(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

D3LLM_DEVICE uint64_t sampling_key(uint64_t seed, uint64_t position, uint64_t number) {
  return mixed(mixed(mixed(seed + kIncrement) + position) + number);
}

// 64 random bits for a token.
D3LLM_DEVICE uint64_t random_word(uint64_t key, int id) {
  return mixed(key + static_cast<uint64_t>(id + 1) * kIncrement);
}

// The logarithm of a positive normal number, to 2 ulp.
D3LLM_DEVICE float exact_log(float x) {
  // log(1 + r) / r between -0.301 and 0.399.
  constexpr float kTerms[] = {1.0f,
                              -0.4999997317790985f,
                              0.33333906531333923f,
                              -0.25003892183303833f,
                              0.19966506958007812f,
                              -0.16513195633888245f,
                              0.14795230329036713f,
                              -0.14725732803344727f,
                              0.09695299714803696f};
  constexpr float kLn2 = 0.6931471824645996f;
  constexpr int32_t kLeastMantissa = 0x3F330000;  // 0.699, as a float
  const auto bits = static_cast<int32_t>(bits_of(x));
  const int32_t power = (bits - kLeastMantissa) >> 23;
  const float r = plus(float_of(bits - power * (1 << 23)), -1.0f);
  return plus(times(static_cast<float>(power), kLn2), times(polynomial(kTerms, r), r));
}

// Bits below 2^53 but not 0, times 2^-53, as a number that is cut off to a float.
D3LLM_DEVICE float uniform_of(uint64_t bits) {
#ifdef __CUDACC__
  const int zeros = __clzll(static_cast<int64_t>(bits));
#else
  const int zeros = __builtin_clzll(bits);
#endif
  return float_of((static_cast<uint32_t>(136 - zeros) << 23) + static_cast<uint32_t>((bits << zeros) >> 40));
}

// Between -3.61 and 36.74. The noise is that of a uniform v, of which the smaller one of v and 1 - v is exact.
D3LLM_DEVICE float gumbel(uint64_t word) {
  const bool upper = word >> 63 != 0;
  const float smaller = uniform_of((upper ? ~word : word) >> 11 | 1), other = plus(1.0f, -smaller);
  const float v = upper ? other : smaller, u = upper ? smaller : other;
  const float exponential = u == 1.0f ? v : times(exact_log(u), over(v, plus(u, -1.0f)));
  return -exact_log(exponential);
}

}  // namespace d3llm
