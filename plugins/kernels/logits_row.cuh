// Rows of logits anywhere in memory.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "barred.h"
#include "numeric.cuh"

namespace d3llm {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ void unpack_vector(uint4 vector, float (&x)[8]) {
  const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack<T>(words[i]);
    x[2 * i] = pair.x;
    x[2 * i + 1] = pair.y;
  }
}

template <typename T>
__device__ __forceinline__ void unpack_vector(uint4 vector, float (&x)[4]) {
  x[0] = __uint_as_float(vector.x);
  x[1] = __uint_as_float(vector.y);
  x[2] = __uint_as_float(vector.z);
  x[3] = __uint_as_float(vector.w);
}

// A row as whole vectors of 16 bytes between a head and a tail of single elements.
template <typename T>
struct Row {
  static constexpr int kSize = 16 / sizeof(T);

  const T* logits;
  int vocab, mask;
  int head, vectors;

  __device__ Row(const d3llm_select_params& p, int64_t row)
      : logits(static_cast<const T*>(p.logits) + row * p.row_stride), vocab(p.vocab_size), mask(p.mask_id) {
    const auto misaligned = static_cast<int>(reinterpret_cast<uintptr_t>(logits) % 16 / sizeof(T));
    head = min((kSize - misaligned) % kSize, vocab);
    vectors = (vocab - head) / kSize;
  }

  __device__ int tail() const { return head + vectors * kSize; }

  __device__ __forceinline__ float at(int id) const { return to_float(logits[id]); }

  __device__ __forceinline__ void load(int index, float (&x)[kSize]) const {
    unpack_vector<T>(__ldg(reinterpret_cast<const uint4*>(logits + head) + index), x);
  }
};

// A row of any dtype, read by elements: as nucleus.h takes it.
struct AnyRow {
  const void* logits;
  int64_t start;
  int dtype, vocab;
  Barred barred;

  __device__ AnyRow(const d3llm_select_params& p, int64_t row)
      : logits(p.logits), start(row * p.row_stride), dtype(p.dtype), vocab(p.vocab_size), barred(p, row) {}

  __device__ __forceinline__ float at(int id) const {
    switch (dtype) {
      case D3LLM_FLOAT32: return static_cast<const float*>(logits)[start + id];
      case D3LLM_FLOAT16: return to_float(static_cast<const __half*>(logits)[start + id]);
      default: return to_float(static_cast<const __nv_bfloat16*>(logits)[start + id]);
    }
  }

  template <class Team, class Visit>
  __device__ __forceinline__ void for_each(const Team& team, Visit visit) const {
    for (int id = team.rank(); id < vocab; id += team.size())
      if (!barred.has(id)) visit(id, at(id));
  }
};

}  // namespace d3llm
