// RoPE, cache write and attention in double precision, one row at a time.
#pragma once

#include <cstdint>
#include <vector>

namespace host {

// Rows of `slot` at positions [start, start + length); the cache holds what is before.
struct Window {
  int64_t slot;
  int64_t start;
  int64_t length;
};

struct Problem {
  const char* name;
  int heads;
  int kv_heads;
  int head_dim;
  int64_t slots;
  int64_t max_seq_len;
  int64_t padding;  // rows behind the last window
  std::vector<Window> windows;

  int64_t tokens() const;
  int64_t qkv_width() const { return int64_t{heads + 2 * kv_heads} * head_dim; }
  int64_t out_width() const { return int64_t{heads} * head_dim; }
  int64_t cache_size() const { return slots * 2 * kv_heads * max_seq_len * head_dim; }

  // Of one row of K (kind 0) or V (kind 1) in the cache.
  int64_t cache_row(int64_t slot, int kind, int head, int64_t position) const;
};

// Values are what 16 bits hold; `round` brings a double to the nearest of them.
struct Values {
  std::vector<double> qkv;
  std::vector<double> cache;
  std::vector<float> cos;
  std::vector<float> sin;
};

using Round = double (*)(double);

// Puts the windows' K and V into values.cache and returns the attended rows [tokens, heads * head_dim].
std::vector<double> reference(const Problem& problem, Values& values, Round round);

}  // namespace host
