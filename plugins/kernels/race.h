// Sampling as a race: the token with the largest sum of its logit and Gumbel noise wins.
#pragma once

#include <climits>

#include "gumbel.h"

namespace d3llm {

constexpr float kInfinity = __builtin_huge_valf();
constexpr float kLog2e = 1.4426950408889634f;

// The largest score and its id; of equals the lowest id. NaN and -inf are never taken.
template <class Score>
struct Best {
  Score score = -kInfinity;
  int id = INT_MAX;

  // For ids in ascending order.
  D3LLM_DEVICE void offer(Score other, int other_id) {
    if (other > score) {
      score = other;
      id = other_id;
    }
  }

  D3LLM_DEVICE void merge(const Best& other) {
    if (other.score > score || (other.score == score && other.id < id)) *this = other;
  }
};

// What the noise of one row is made of.
struct Sampler {
  float temperature = 0.f;
  float octaves_per_nat = 0.f;  // of probability, at this temperature
  uint64_t key = 0;

  Sampler() = default;

  D3LLM_DEVICE Sampler(float temperature, uint64_t key)
      : temperature(temperature), octaves_per_nat(over(kLog2e, temperature)), key(key) {}

  // In float64, so that neither low temperatures nor high ones lose the noise or the logit.
  D3LLM_DEVICE double score(float x, int id) const {
    const float noise = gumbel(random_word(key, id));
    return static_cast<double>(x) + static_cast<double>(temperature) * static_cast<double>(noise);
  }
};

// One runner's view of the race. Most tokens are out of it before their noise is computed: `bound` is a score that some
// token has reached, and a bound on a token's noise costs less than the noise.
struct Race {
  static constexpr float kMostOctaves = 54.f;  // that noise lifts a token
  static constexpr float kSlack = 1e-3f;       // over all errors of rounding

  Best<double> best;
  float bound = -kInfinity;

  // Whether no token up to `x` can win.
  D3LLM_DEVICE bool is_lost(const Sampler& sampler, float x) const {
    return (x - bound) * sampler.octaves_per_nat < -kMostOctaves;
  }

  // The same of one token, from the leading bits of its noise.
  D3LLM_DEVICE bool is_lost(const Sampler& sampler, float x, int id) const {
    const uint64_t word = random_word(sampler.key, id);
    // Noise is at most -log(v). To win, a token needs v up to exp of what it is ahead, in nats at this temperature.
    const float ahead = fast_exp2((x - bound) * sampler.octaves_per_nat);
    const float one_and_v = float_of(static_cast<uint32_t>(word >> 41) | 0x3F800000);  // v's leading 23 bits
    return one_and_v > 1.0f + kSlack * 1e-3f + ahead * (1.0f + kSlack);
  }

  D3LLM_DEVICE void enter(const Sampler& sampler, float x, int id) {
    best.merge({sampler.score(x, id), id});
    bound = larger(bound, float_below(best.score));
  }

  D3LLM_DEVICE void enter_unless_lost(const Sampler& sampler, float x, int id) {
    if (!is_lost(sampler, x, id)) enter(sampler, x, id);
  }
};

}  // namespace d3llm
