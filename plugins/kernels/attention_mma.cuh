// The two matrix products of attention for 64 query rows and 64 keys, 4 warps of 16 rows, FP32 accumulation.
//
// Fragments: a thread holds rows lane / 4 and lane / 4 + 8 of its warp. Score and output fragments have 4 values for
// every 8 columns (two neighbouring columns of the first row, two of the second); A fragments have 4 registers for
// every 16 columns. Ampere's mma and Hopper's wgmma agree on both.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "attention_tile.cuh"

namespace d3llm {

constexpr int kScoreValues = kTileRows / 2;  // per thread

// Any GPU from SM80. Everything is done when a call returns.
template <typename T, int kHeadDim>
struct PortableMma {
  using Layout = TileLayout<kHeadDim>;
  static constexpr int kDepth = kHeadDim / 16;

  // scores = queries * keys^T
  static __device__ __forceinline__ void issue_scores(float (&scores)[kScoreValues], const uint32_t (&queries)[kDepth][4],
                                                      uint32_t keys) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (float& score : scores) score = 0.0f;
#pragma unroll
    for (int depth = 0; depth < kDepth; ++depth) {
#pragma unroll
      for (int block = 0; block < kTileRows / 16; ++block) {
        uint32_t b[4];
        load_matrices(b, keys + Layout::offset(block * 16 + lane / 16 * 8 + lane % 8, depth * 2 + lane / 8 % 2));
        multiply(&scores[block * 8], queries[depth], b[0], b[1]);
        multiply(&scores[block * 8 + 4], queries[depth], b[2], b[3]);
      }
    }
  }

  // outputs += probabilities * values
  static __device__ __forceinline__ void issue_outputs(float (&outputs)[kHeadDim / 2], const uint32_t (&probabilities)[4][4],
                                                       uint32_t values) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int depth = 0; depth < kTileRows / 16; ++depth) {
#pragma unroll
      for (int block = 0; block < kHeadDim / 16; ++block) {
        uint32_t b[4];
        load_transposed(b, values + Layout::offset(depth * 16 + lane % 16, block * 2 + lane / 16));
        multiply(&outputs[block * 8], probabilities[depth], b[0], b[1]);
        multiply(&outputs[block * 8 + 4], probabilities[depth], b[2], b[3]);
      }
    }
  }

  template <int kPending>
  static __device__ __forceinline__ void wait() {}

 private:
  static __device__ __forceinline__ void load_matrices(uint32_t (&b)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"(address)
                 : "memory");
  }

  static __device__ __forceinline__ void load_transposed(uint32_t (&b)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"(address)
                 : "memory");
  }

  static __device__ __forceinline__ void multiply(float* c, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    if constexpr (std::is_same_v<T, __half>) {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    } else {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
  }
};

}  // namespace d3llm

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#include "attention_wgmma.cuh"
#endif

namespace d3llm {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
template <typename T, int kHeadDim>
using Mma = std::conditional_t<kHeadDim >= 64, HopperMma<T, kHeadDim>, PortableMma<T, kHeadDim>>;
#else
template <typename T, int kHeadDim>
using Mma = PortableMma<T, kHeadDim>;
#endif

}  // namespace d3llm
