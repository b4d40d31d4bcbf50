// Hopper's matrix products of attention: wgmma, which runs beside the threads that issued it.
//
// Descriptors: PTX ISA, "Shared memory matrix descriptor". Queries and keys are K-major (the head dimension is summed
// over), values MN-major (their rows are).
#pragma once

#include <cuda_fp16.h>

#include <type_traits>

#include "attention_tile.cuh"

namespace d3llm {

// clang-format off
#define D3LLM_WGMMA_SS_N128(TYPE)                                                                                      \
  asm volatile(                                                                                                        \
      "{ .reg .pred accumulate; setp.ne.b32 accumulate, %66, 0; "                                                      \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {"                                                \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                         \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                               \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                               \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                              \
      "%64, %65, accumulate, 1, 1, 0, 0; }"                                                                            \
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),                \
        "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]),          \
        "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]),        \
        "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]),        \
        "+f"(c[32]), "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]),        \
        "+f"(c[40]), "+f"(c[41]), "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]),        \
        "+f"(c[48]), "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]),        \
        "+f"(c[56]), "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63])         \
      : "l"(a), "l"(b), "r"(accumulate))

#define D3LLM_WGMMA_RS_N64(TYPE)                                                                                       \
  asm volatile(                                                                                                        \
      "{ .reg .pred accumulate; setp.ne.b32 accumulate, %37, 0; "                                                      \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " {"                                                 \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                         \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                              \
      "{%32, %33, %34, %35}, %36, accumulate, 1, 1, 1; }"                                                              \
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),                \
        "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]),          \
        "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]),        \
        "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31])         \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate))

#define D3LLM_WGMMA_RS_N128(TYPE)                                                                                      \
  asm volatile(                                                                                                        \
      "{ .reg .pred accumulate; setp.ne.b32 accumulate, %69, 0; "                                                      \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " {"                                                \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                         \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                               \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                               \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                              \
      "{%64, %65, %66, %67}, %68, accumulate, 1, 1, 1; }"                                                              \
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),                \
        "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]),          \
        "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]),        \
        "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31]),        \
        "+f"(c[32]), "+f"(c[33]), "+f"(c[34]), "+f"(c[35]), "+f"(c[36]), "+f"(c[37]), "+f"(c[38]), "+f"(c[39]),        \
        "+f"(c[40]), "+f"(c[41]), "+f"(c[42]), "+f"(c[43]), "+f"(c[44]), "+f"(c[45]), "+f"(c[46]), "+f"(c[47]),        \
        "+f"(c[48]), "+f"(c[49]), "+f"(c[50]), "+f"(c[51]), "+f"(c[52]), "+f"(c[53]), "+f"(c[54]), "+f"(c[55]),        \
        "+f"(c[56]), "+f"(c[57]), "+f"(c[58]), "+f"(c[59]), "+f"(c[60]), "+f"(c[61]), "+f"(c[62]), "+f"(c[63])         \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate))
// clang-format on

// Calls return at once; the result, and the registers and tiles it is made from, are free after wait(). A tile has 128
// keys, a warpgroup 64 query rows.
template <typename T, int kHeadDim>
struct WarpgroupMma {
  static constexpr int kKeys = 128;
  using Queries = TileLayout<kHeadDim, kQueryRows>;
  using Layout = TileLayout<kHeadDim, kKeys>;

  // scores = queries * keys^T
  static __device__ __forceinline__ void issue_scores(float (&scores)[kKeys / 2], uint32_t queries, uint32_t keys) {
    begin();
#pragma unroll
    for (int depth = 0; depth < kHeadDim / 16; ++depth) {
      const uint32_t panel = depth / 4, inside = depth % 4 * 32;
      const uint64_t a = descriptor(queries + panel * Queries::kPanelBytes + inside, 16);
      multiply(scores, a, descriptor(keys + panel * Layout::kPanelBytes + inside, 16), depth > 0);
    }
    end();
  }

  // outputs += probabilities * values
  static __device__ __forceinline__ void issue_outputs(float (&outputs)[kHeadDim / 2],
                                                       const uint32_t (&probabilities)[kKeys / 16][4],
                                                       uint32_t values) {
    begin();
#pragma unroll
    for (int depth = 0; depth < kKeys / 16; ++depth) {
      const uint32_t address = values + depth * 16 * Layout::kRowBytes;
      multiply(outputs, probabilities[depth], descriptor(address, Layout::kPanelBytes), 1);
    }
    end();
  }

  // Until at most the last `kPending` calls are unfinished.
  template <int kPending>
  static __device__ __forceinline__ void wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
  }

 private:
  static constexpr bool kHalf = std::is_same_v<T, __half>;

  static __device__ __forceinline__ void begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

  static __device__ __forceinline__ void end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

  // 128-byte swizzle; groups of 8 rows are 1024 bytes apart.
  static __device__ __forceinline__ uint64_t descriptor(uint32_t address, uint32_t panel_stride) {
    constexpr uint64_t kSwizzle128 = 1ull << 62, kGroupStride = 1024ull >> 4 << 32;
    return (address & 0x3ffff) >> 4 | static_cast<uint64_t>(panel_stride >> 4) << 16 | kGroupStride | kSwizzle128;
  }

  static __device__ __forceinline__ void multiply(float (&c)[64], uint64_t a, uint64_t b, int accumulate) {
    if constexpr (kHalf)
      D3LLM_WGMMA_SS_N128("f16");
    else
      D3LLM_WGMMA_SS_N128("bf16");
  }

  template <int kValues>
  static __device__ __forceinline__ void multiply(float (&c)[kValues], const uint32_t (&a)[4], uint64_t b,
                                                  int accumulate) {
    static_assert(kValues == 32 || kValues == 64);
    if constexpr (kValues == 64 && kHalf)
      D3LLM_WGMMA_RS_N128("f16");
    else if constexpr (kValues == 64)
      D3LLM_WGMMA_RS_N128("bf16");
    else if constexpr (kHalf)
      D3LLM_WGMMA_RS_N64("f16");
    else
      D3LLM_WGMMA_RS_N64("bf16");
  }
};

#undef D3LLM_WGMMA_SS_N128
#undef D3LLM_WGMMA_RS_N64
#undef D3LLM_WGMMA_RS_N128

}  // namespace d3llm
