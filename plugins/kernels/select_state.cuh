// What one pass over logits keeps: a softmax with its entropy, and the best tokens. States of parts of a row merge.
#pragma once

#include "race.h"

namespace d3llm {

constexpr float kLn2 = 0.6931471805599453f;

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

  __device__ float log_probability(float x) const { return kLn2 * (fmaf(x, kLog2e, -shift) - log2f(sum)); }
};

template <class Score>
__device__ Best<Score> from_lane(const Best<Score>& best, int distance) {
  return {__shfl_down_sync(~0u, best.score, distance), __shfl_down_sync(~0u, best.id, distance)};
}

struct SelectState {
  Softmax softmax;
  Best<float> greedy;  // its id is that of the first element of the vector that has the score
  Race race;

  __device__ void merge(const SelectState& other) {
    softmax.merge(other.softmax);
    greedy.merge(other.greedy);
    race.best.merge(other.race.best);
  }

  __device__ void merge_warp() {
    for (int distance = 16; distance > 0; distance /= 2) {
      merge({softmax.from_lane(distance), from_lane(greedy, distance), {from_lane(race.best, distance)}});
    }
  }
};

}  // namespace d3llm
