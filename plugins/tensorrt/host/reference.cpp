// Straight from the definition: nothing here is fast.
#include "reference.h"

#include <algorithm>
#include <cmath>

namespace host {
namespace {

// One head of one row, rotated half-split at `position`.
std::vector<double> rotated(const Problem& problem, const Values& values, const double* row, int64_t position) {
  const int half = problem.head_dim / 2;
  std::vector<double> result(problem.head_dim);
  for (int i = 0; i < half; ++i) {
    const double cos = values.cos[position * half + i], sin = values.sin[position * half + i];
    result[i] = row[i] * cos - row[i + half] * sin;
    result[i + half] = row[i + half] * cos + row[i] * sin;
  }
  return result;
}

void write_row(const Problem& problem, Values& values, const double* row, int64_t slot, int64_t position, Round round) {
  const int d = problem.head_dim;
  for (int head = 0; head < problem.kv_heads; ++head) {
    const double* key = row + int64_t{problem.heads + head} * d;
    const double* value = key + int64_t{problem.kv_heads} * d;
    const std::vector<double> turned = rotated(problem, values, key, position);
    double* key_row = &values.cache[problem.cache_row(slot, 0, head, position)];
    std::transform(turned.begin(), turned.end(), key_row, round);
    std::copy(value, value + d, &values.cache[problem.cache_row(slot, 1, head, position)]);
  }
}

void attend_head(const Problem& problem, const Values& values, const double* query, int64_t position,
                 const Window& window, int kv_head, double* out) {
  const int d = problem.head_dim;
  const int64_t length = window.start + window.length;
  const std::vector<double> turned = rotated(problem, values, query, position);
  std::vector<double> weights(length);
  for (int64_t key = 0; key < length; ++key) {
    const double* row = &values.cache[problem.cache_row(window.slot, 0, kv_head, key)];
    for (int i = 0; i < d; ++i) weights[key] += turned[i] * row[i] / std::sqrt(double(d));
  }
  const double largest = *std::max_element(weights.begin(), weights.end());
  double total = 0;
  for (double& weight : weights) total += weight = std::exp(weight - largest);
  std::fill(out, out + d, 0.0);
  for (int64_t key = 0; key < length; ++key) {
    const double* row = &values.cache[problem.cache_row(window.slot, 1, kv_head, key)];
    for (int i = 0; i < d; ++i) out[i] += weights[key] / total * row[i];
  }
}

}  // namespace

int64_t Problem::tokens() const {
  int64_t total = padding;
  for (const Window& window : windows) total += window.length;
  return total;
}

int64_t Problem::cache_row(int64_t slot, int kind, int head, int64_t position) const {
  return (((slot * 2 + kind) * kv_heads + head) * max_seq_len + position) * head_dim;
}

std::vector<double> reference(const Problem& problem, Values& values, Round round) {
  std::vector<double> out(problem.tokens() * problem.out_width(), 0.0);
  int64_t first = 0;
  for (const Window& window : problem.windows) {
    const double* rows = values.qkv.data() + first * problem.qkv_width();
    for (int64_t i = 0; i < window.length; ++i) {
      write_row(problem, values, rows + i * problem.qkv_width(), window.slot, window.start + i, round);
    }
    for (int64_t i = 0; i < window.length; ++i) {
      for (int head = 0; head < problem.heads; ++head) {
        const double* query = rows + i * problem.qkv_width() + int64_t{head} * problem.head_dim;
        const int kv_head = head / (problem.heads / problem.kv_heads);
        double* result = &out[(first + i) * problem.out_width() + int64_t{head} * problem.head_dim];
        attend_head(problem, values, query, window.start + i, window, kv_head, result);
      }
    }
    first += window.length;
  }
  return out;
}

}  // namespace host
