// Hopper's matrix products of attention: wgmma on tiles in shared memory, A fragments in registers.
//
// Descriptors: PTX ISA, "Shared memory matrix descriptor". Keys are K-major (their head dimension is summed over),
// values MN-major (their rows are).
#pragma once

#include <cuda_fp16.h>

#include <type_traits>

#include "attention_tile.cuh"

namespace d3llm {

// clang-format off
#define D3LLM_WGMMA_N64(TYPE, TRANSPOSED)                                                                              \
  asm volatile(                                                                                                        \
      "{ .reg .pred accumulate; setp.ne.b32 accumulate, %37, 0; "                                                      \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {"                                                 \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                         \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                              \
      "{%32, %33, %34, %35}, %36, accumulate, 1, 1, " TRANSPOSED "; }"                                                 \
      : "+f"(D[0]), "+f"(D[1]), "+f"(D[2]), "+f"(D[3]), "+f"(D[4]), "+f"(D[5]), "+f"(D[6]), "+f"(D[7]),                \
        "+f"(D[8]), "+f"(D[9]), "+f"(D[10]), "+f"(D[11]), "+f"(D[12]), "+f"(D[13]), "+f"(D[14]), "+f"(D[15]),          \
        "+f"(D[16]), "+f"(D[17]), "+f"(D[18]), "+f"(D[19]), "+f"(D[20]), "+f"(D[21]), "+f"(D[22]), "+f"(D[23]),        \
        "+f"(D[24]), "+f"(D[25]), "+f"(D[26]), "+f"(D[27]), "+f"(D[28]), "+f"(D[29]), "+f"(D[30]), "+f"(D[31])         \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate))

#define D3LLM_WGMMA_N128(TYPE, TRANSPOSED)                                                                             \
  asm volatile(                                                                                                        \
      "{ .reg .pred accumulate; setp.ne.b32 accumulate, %69, 0; "                                                      \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {"                                                \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                         \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                               \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                               \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                              \
      "{%64, %65, %66, %67}, %68, accumulate, 1, 1, " TRANSPOSED "; }"                                                 \
      : "+f"(D[0]), "+f"(D[1]), "+f"(D[2]), "+f"(D[3]), "+f"(D[4]), "+f"(D[5]), "+f"(D[6]), "+f"(D[7]),                \
        "+f"(D[8]), "+f"(D[9]), "+f"(D[10]), "+f"(D[11]), "+f"(D[12]), "+f"(D[13]), "+f"(D[14]), "+f"(D[15]),          \
        "+f"(D[16]), "+f"(D[17]), "+f"(D[18]), "+f"(D[19]), "+f"(D[20]), "+f"(D[21]), "+f"(D[22]), "+f"(D[23]),        \
        "+f"(D[24]), "+f"(D[25]), "+f"(D[26]), "+f"(D[27]), "+f"(D[28]), "+f"(D[29]), "+f"(D[30]), "+f"(D[31]),        \
        "+f"(D[32]), "+f"(D[33]), "+f"(D[34]), "+f"(D[35]), "+f"(D[36]), "+f"(D[37]), "+f"(D[38]), "+f"(D[39]),        \
        "+f"(D[40]), "+f"(D[41]), "+f"(D[42]), "+f"(D[43]), "+f"(D[44]), "+f"(D[45]), "+f"(D[46]), "+f"(D[47]),        \
        "+f"(D[48]), "+f"(D[49]), "+f"(D[50]), "+f"(D[51]), "+f"(D[52]), "+f"(D[53]), "+f"(D[54]), "+f"(D[55]),        \
        "+f"(D[56]), "+f"(D[57]), "+f"(D[58]), "+f"(D[59]), "+f"(D[60]), "+f"(D[61]), "+f"(D[62]), "+f"(D[63])         \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate))
// clang-format on

// Calls return at once; the result, and the registers and tiles it is made from, are free after wait().
template <typename T, int kHeadDim>
struct HopperMma {
  using Layout = TileLayout<kHeadDim>;
  static constexpr int kDepth = kHeadDim / 16;

  // scores = queries * keys^T
  static __device__ __forceinline__ void issue_scores(float (&scores)[kTileRows / 2], const uint32_t (&queries)[kDepth][4],
                                                      uint32_t keys) {
    begin();
#pragma unroll
    for (int depth = 0; depth < kDepth; ++depth) {
      const uint32_t address = keys + depth / 4 * Layout::kPanelBytes + depth % 4 * 32;
      multiply<false>(scores, queries[depth], descriptor(address, 16), depth > 0);
    }
    end();
  }

  // outputs += probabilities * values
  static __device__ __forceinline__ void issue_outputs(float (&outputs)[kHeadDim / 2], const uint32_t (&probabilities)[4][4],
                                                       uint32_t values) {
    begin();
#pragma unroll
    for (int depth = 0; depth < kTileRows / 16; ++depth) {
      const uint32_t address = values + depth * 16 * Layout::kRowBytes;
      multiply<true>(outputs, probabilities[depth], descriptor(address, Layout::kPanelBytes), 1);
    }
    end();
  }

  // Until at most the last `kPending` calls are unfinished.
  template <int kPending>
  static __device__ __forceinline__ void wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  }

 private:
  static __device__ __forceinline__ void begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

  static __device__ __forceinline__ void end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

  // 128-byte swizzle; groups of 8 rows are 1024 bytes apart.
  static __device__ __forceinline__ uint64_t descriptor(uint32_t address, uint32_t panel_stride) {
    constexpr uint64_t kSwizzle128 = 1ull << 62, kGroupStride = 1024ull >> 4 << 32;
    return (address & 0x3ffff) >> 4 | static_cast<uint64_t>(panel_stride >> 4) << 16 | kGroupStride | kSwizzle128;
  }

  template <bool kTransposed, int kValues>
  static __device__ __forceinline__ void multiply(float (&D)[kValues], const uint32_t (&a)[4], uint64_t b, int accumulate) {
    constexpr bool kHalf = std::is_same_v<T, __half>;
    if constexpr (kValues == 64) {
      static_assert(kTransposed);
      if constexpr (kHalf) D3LLM_WGMMA_N128("f16", "1");
      else D3LLM_WGMMA_N128("bf16", "1");
    } else if constexpr (kTransposed) {
      if constexpr (kHalf) D3LLM_WGMMA_N64("f16", "1");
      else D3LLM_WGMMA_N64("bf16", "1");
    } else {
      if constexpr (kHalf) D3LLM_WGMMA_N64("f16", "0");
      else D3LLM_WGMMA_N64("bf16", "0");
    }
  }
};

#undef D3LLM_WGMMA_N64
#undef D3LLM_WGMMA_N128

}  // namespace d3llm
