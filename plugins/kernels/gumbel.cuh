// Gumbel noise from a counter: the integers of plugins/reference.py bit for bit, its logarithms in float32.
#pragma once

#include <cstdint>

namespace d3llm {

constexpr int kUniformBits = 23;
constexpr uint64_t kIncrement = 0x9E3779B97F4A7C15;  // of SplitMix64, as are the multipliers

__device__ __forceinline__ uint64_t mixed(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

__device__ __forceinline__ uint64_t sampling_key(uint64_t seed, uint64_t position, uint64_t number) {
  return mixed(mixed(mixed(seed + kIncrement) + position) + number);
}

__device__ __forceinline__ float gumbel(uint64_t key, int id) {
  const uint64_t bits = mixed(key + static_cast<uint64_t>(id + 1) * kIncrement) >> (64 - kUniformBits);
  const float uniform = (static_cast<float>(static_cast<uint32_t>(bits)) + 0.5f) / (1 << kUniformBits);
  return -logf(-logf(uniform));
}

}  // namespace d3llm
