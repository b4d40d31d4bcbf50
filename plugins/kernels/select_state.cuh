// What one pass over logits keeps: a softmax with its entropy, and the best tokens. States of parts of a row merge.
#pragma once

#include <climits>
#include <cstdint>

namespace d3llm {

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kInfinity = __builtin_huge_valf();

__device__ __forceinline__ float fast_exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Sums over e = exp2(y), y = x log2(e) - shift. H = ln(sum e) - ln2 * (sum e y) / (sum e), whatever the shift is.
struct Softmax {
  static constexpr float kSlack = 8.f;  // nats that x may lie over the shift before it moves: far from overflow

  float limit = -kInfinity;  // of x under this shift
  float shift = 0.f;
  float sum = 0.f;
  float weighted = 0.f;

  __device__ __forceinline__ void make_room(float largest) {
    if (largest > limit) {
      move_to(largest * kLog2e);
      limit = largest + kSlack;
    }
  }

  __device__ __forceinline__ void move_to(float new_shift) {
    if (sum != 0.f) {
      const float delta = shift - new_shift, scale = fast_exp2(delta);
      weighted = (weighted + delta * sum) * scale;
      sum *= scale;
    }
    shift = new_shift;
  }

  __device__ __forceinline__ void add(float x) {
    const float y = fmaf(x, kLog2e, -shift), e = fast_exp2(y);
    sum += e;
    weighted = fmaf(fmaxf(y, -1000.f), e, weighted);  // of x = -inf: 0, not inf * 0
  }

  __device__ void merge(Softmax other) {
    const float own = sum != 0.f ? shift : -kInfinity, its = other.sum != 0.f ? other.shift : -kInfinity;
    const float top = fmaxf(own, its);
    move_to(top);
    other.move_to(top);
    sum += other.sum;
    weighted += other.weighted;
  }

  __device__ Softmax from_lane(int distance) const {
    Softmax other;
    other.shift = __shfl_down_sync(~0u, shift, distance);
    other.sum = __shfl_down_sync(~0u, sum, distance);
    other.weighted = __shfl_down_sync(~0u, weighted, distance);
    return other;
  }

  __device__ float entropy() const { return kLn2 * (log2f(sum) - weighted / sum); }

  __device__ float probability(float x) const { return fast_exp2(fmaf(x, kLog2e, -shift)) / sum; }
};

// The largest score and its id; of equals the lowest id. NaN and -inf are never taken.
struct Best {
  float score = -kInfinity;
  int id = INT_MAX;

  // For ids in ascending order.
  __device__ __forceinline__ void offer(float other, int other_id) {
    if (other > score) {
      score = other;
      id = other_id;
    }
  }

  __device__ void merge(const Best& other) {
    if (other.score > score || (other.score == score && other.id < id)) *this = other;
  }

  __device__ Best from_lane(int distance) const {
    return {__shfl_down_sync(~0u, score, distance), __shfl_down_sync(~0u, id, distance)};
  }
};

struct SelectState {
  Softmax softmax;
  Best greedy;  // its id is that of the first element of the vector that has the score
  Best sampled;

  __device__ void merge(const SelectState& other) {
    softmax.merge(other.softmax);
    greedy.merge(other.greedy);
    sampled.merge(other.sampled);
  }

  __device__ void merge_warp() {
    for (int distance = 16; distance > 0; distance /= 2) {
      merge({softmax.from_lane(distance), greedy.from_lane(distance), sampled.from_lane(distance)});
    }
  }
};

}  // namespace d3llm
